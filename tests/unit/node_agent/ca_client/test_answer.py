"""What the CA answered is used only if it is what was asked for."""

from __future__ import annotations

import pytest

from istio_auth.bundle import BundleSet
from istio_auth.keys import new_private_key
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from node_agent.ca_client.answer import BadAnswer, accepted
from tests.fakes.certificate_client import FakeCA, Fault
from tests.fakes.clock import FakeClock

WEB = SpiffeID(TrustDomain("cluster.local"), "/ns/default/sa/web")
WORDS = {
    Fault.WRONG_KEY: "key",
    Fault.WRONG_NAME: "name",
    Fault.EXPIRED: "expired",
    Fault.NOT_YET_VALID: "not yet valid",
    Fault.UNKNOWN_ROOT: "does not chain to the bundle",
    Fault.SHORT_CHAIN: "does not chain to the bundle",
    Fault.TOO_SHORT: "too short",
    Fault.CA_CERTIFICATE: "CA certificate as leaf",
    Fault.EMPTY: "no certificate",
}


@pytest.mark.parametrize("fault", WORDS, ids=lambda fault: fault.value)
def test_an_answer_with_one_fault_is_refused_and_one_without_is_taken(clock: FakeClock, fault: Fault) -> None:
    ca, key = FakeCA(clock), new_private_key()
    bundles = BundleSet((ca.root.bundle(),))
    ca.fault = fault
    with pytest.raises(BadAnswer) as refused:
        accepted(ca.issue(WEB, key.public_key()), key, WEB, bundles=bundles, now=clock.now())
    assert refused.value.fault == WORDS[fault]
    ca.fault = Fault.NONE
    svid = accepted(ca.issue(WEB, key.public_key()), key, WEB, bundles=bundles, now=clock.now())
    assert svid.id == WEB
    assert svid.private_key is key


def test_every_fault_has_a_test() -> None:
    assert set(WORDS) == set(Fault) - {Fault.NONE}


def test_a_certificate_of_another_trust_domain_is_refused(clock: FakeClock) -> None:
    foreign, key = FakeCA(clock, "foreign.test"), new_private_key()
    elsewhere = SpiffeID(TrustDomain("foreign.test"), WEB.path)
    chain = foreign.issue(elsewhere, key.public_key())
    with pytest.raises(BadAnswer) as refused:
        accepted(chain, key, WEB, bundles=BundleSet((FakeCA(clock).root.bundle(),)), now=clock.now())
    assert refused.value.fault == "no bundle for the trust domain"
    with pytest.raises(BadAnswer) as refused:
        accepted(chain, key, WEB, bundles=BundleSet((foreign.root.bundle(),)), now=clock.now())
    assert refused.value.fault == "name"
