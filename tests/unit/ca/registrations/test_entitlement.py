"""Who may have which identity: three rules, and no others."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ca.agents.agent import Evictions
from ca.attest import Attested
from ca.registrations.entitlement import EntitledIdentities
from ca.registrations.table import Registered, RegistrationTable
from ca.registry import Grant
from istio_auth.errors import NotAuthorized
from istio_auth.registration import Registration, Selector
from istio_auth.spiffe_id import SpiffeID
from tests.fakes.clock import FakeClock
from tests.fakes.standalone import DOMAIN, NODE, WEB

DB = SpiffeID.parse("spiffe://cluster.local/ns/default/sa/db")
OTHER_NODE = SpiffeID.for_agent(DOMAIN, "node-2")
HOUR = timedelta(hours=1)
TABLE = RegistrationTable(
    (
        Registered(
            1,
            frozenset({"node-1"}),
            Registration(WEB, frozenset({Selector("unix", "uid:1")}), HOUR, ("web.default.svc",)),
        ),
    )
)

LONGEST = timedelta(days=90)


def registry(evictions: Evictions | None = None, *, renewal_needs_registration: bool = False) -> EntitledIdentities:
    shut_out = evictions or Evictions({})
    return EntitledIdentities(
        DOMAIN,
        TABLE,
        lambda: shut_out,
        longest_ttl=LONGEST,
        renewal_needs_registration=renewal_needs_registration,
    )


def granted(rules: EntitledIdentities, caller: SpiffeID, wanted: SpiffeID) -> Grant:
    return rules.grant(Attested(caller, "certificate"), wanted, FakeClock().now())


def test_an_agent_may_have_its_own_identity() -> None:
    assert granted(registry(), NODE, NODE) == Grant(NODE)


def test_an_agent_may_have_what_is_registered_for_it_with_what_comes_with_it() -> None:
    assert granted(registry(), NODE, WEB) == Grant(WEB, HOUR, ("web.default.svc",))


def test_a_workload_may_have_its_own_identity_again() -> None:
    assert granted(registry(), WEB, WEB) == Grant(WEB, HOUR, ("web.default.svc",))
    assert granted(registry(), DB, DB) == Grant(DB)


@pytest.mark.parametrize(
    ("caller", "wanted"),
    [
        (NODE, DB),
        (NODE, OTHER_NODE),
        (OTHER_NODE, WEB),
        (WEB, DB),
        (WEB, NODE),
        (DB, WEB),
        (NODE, SpiffeID.for_ca(DOMAIN)),
        (NODE, DOMAIN.id),
        (NODE, SpiffeID.parse("spiffe://other.test/agent/node-1")),
        (NODE, SpiffeID.parse("spiffe://other.test/ns/default/sa/web")),
        (SpiffeID.parse("spiffe://cluster.local/agent/node-1/x"), WEB),
    ],
    ids=str,
)
def test_nobody_may_have_anything_else(caller: SpiffeID, wanted: SpiffeID) -> None:
    with pytest.raises(NotAuthorized):
        granted(registry(), caller, wanted)


def test_who_asks_for_another_agents_identity_reads_that_its_proof_is_for_one_name() -> None:
    with pytest.raises(NotAuthorized, match="agent node-1 asks to be agent node-2: its proof is good for its own name"):
        granted(registry(), NODE, OTHER_NODE)


def test_an_evicted_agent_may_have_nothing() -> None:
    evicted = registry(Evictions({"node-1": FakeClock().now()}))
    for wanted in (NODE, WEB):
        with pytest.raises(NotAuthorized):
            granted(evicted, NODE, wanted)
    assert granted(evicted, OTHER_NODE, OTHER_NODE) == Grant(OTHER_NODE)


def test_an_evicted_agent_that_was_invited_anew_may_have_its_own_identity_and_no_other() -> None:
    evicted = registry(Evictions({"node-1": FakeClock().now()}))
    invited = Attested(NODE, "join-token", single_use="its hash")
    assert evicted.grant(invited, NODE, FakeClock().now()) == Grant(NODE)
    with pytest.raises(NotAuthorized):
        evicted.grant(invited, WEB, FakeClock().now())


def test_what_an_evicted_agent_held_does_not_renew_itself() -> None:
    now = FakeClock().now()
    evicted = registry(Evictions({"node-2": now}, {WEB: now}))
    with pytest.raises(NotAuthorized):
        granted(evicted, WEB, WEB)
    with pytest.raises(NotAuthorized):
        evicted.grant(Attested(WEB, "certificate"), WEB, now + LONGEST)
    everything_it_held_has_ended = now + LONGEST + timedelta(seconds=1)
    assert evicted.grant(Attested(WEB, "certificate"), WEB, everything_it_held_has_ended).spiffe_id == WEB
    assert granted(evicted, DB, DB) == Grant(DB)
    assert granted(evicted, NODE, WEB).spiffe_id == WEB


def test_an_operator_may_want_renewals_only_of_what_is_registered() -> None:
    strict = registry(renewal_needs_registration=True)
    with pytest.raises(NotAuthorized):
        granted(strict, DB, DB)
    assert granted(strict, WEB, WEB).spiffe_id == WEB
