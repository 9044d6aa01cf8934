"""Every proof that is presented must be valid, and all of them must name the same identity."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from ca.agents.agent import AgentRecord
from ca.agents.enrolment import JoinTokenProof
from ca.attest import AllProofs, Attested, Evidence
from ca.peer_certificate import PeerCertificate
from istio_auth.door import TLSCaller
from istio_auth.errors import NotAuthenticated, NotAuthorized
from istio_auth.keys import fingerprint
from istio_auth.spiffe_id import SpiffeID
from tests.fakes.authority import FakeAuthority
from tests.fakes.clock import FakeClock
from tests.fakes.standalone import DOMAIN, NOBODY, NODE, WEB, StandaloneCA, caller_of, new_key

HOUR = timedelta(hours=1)


@pytest.fixture
async def ca(tmp_path: Path, clock: FakeClock) -> AsyncIterator[StandaloneCA]:
    ca = StandaloneCA(tmp_path, clock)
    yield ca
    await ca.platform.close()


@pytest.fixture
def attestor(ca: StandaloneCA) -> AllProofs:
    agents = ca.platform.agents
    return AllProofs(PeerCertificate(DOMAIN, agents, ca.clock), [JoinTokenProof(DOMAIN, ca.tokens, agents, ca.clock)])


def enrolled(ca: StandaloneCA, name: str = "node-1") -> AgentRecord:
    return ca.platform.agents.enrol(name, "key", invited_at=ca.clock.now(), now=ca.clock.now())


def certified(path: str, clock: FakeClock) -> TLSCaller:
    """A caller whose chain the door has verified."""
    return caller_of(FakeAuthority(now=clock.now()).svid(path).chain)


async def test_nothing_proves_nothing(attestor: AllProofs) -> None:
    with pytest.raises(NotAuthenticated):
        await attestor.attest(Evidence(NOBODY))


async def test_a_certificate_proves_its_identity(attestor: AllProofs, clock: FakeClock) -> None:
    caller = certified(WEB.path, clock)
    attested = await attestor.attest(Evidence(caller))
    assert (attested.spiffe_id, attested.method, attested.single_use) == (WEB, "certificate", "")
    assert attested.details["serial"] == f"{caller.chain[0].serial_number:x}"


async def test_a_certificate_of_another_trust_domain_proves_nothing_here(attestor: AllProofs, clock: FakeClock) -> None:
    caller = certified(WEB.path, clock)
    foreign = replace(caller, spiffe_id=SpiffeID.parse("spiffe://foreign.test/ns/default/sa/web"))
    with pytest.raises(NotAuthenticated):
        await attestor.attest(Evidence(foreign))
    await attestor.attest(Evidence(caller))


async def test_a_connection_does_not_outlive_its_certificate(attestor: AllProofs, clock: FakeClock) -> None:
    caller = certified(WEB.path, clock)
    clock.advance(HOUR)
    await attestor.attest(Evidence(caller))
    clock.advance(timedelta(seconds=1))
    with pytest.raises(NotAuthenticated):
        await attestor.attest(Evidence(caller))
    await attestor.attest(Evidence(certified(WEB.path, clock)))


async def test_a_root_that_a_caller_sends_along_may_end(attestor: AllProofs, clock: FakeClock) -> None:
    root = FakeAuthority(now=clock.now())
    ended = FakeAuthority(now=clock.now() - 1000 * HOUR, key=root.key, name=root.name)
    caller = caller_of((*root.svid(WEB.path).chain, ended.certificate))
    await attestor.attest(Evidence(caller))
    ended_intermediate = FakeAuthority(parent=root, now=clock.now() - 1000 * HOUR)
    with pytest.raises(NotAuthenticated):
        await attestor.attest(Evidence(replace(caller, chain=(caller.chain[0], ended_intermediate.certificate))))


async def test_an_agents_certificate_counts_while_it_is_enrolled_and_not_evicted(
    ca: StandaloneCA, attestor: AllProofs, clock: FakeClock
) -> None:
    caller = certified(NODE.path, clock)
    with pytest.raises(NotAuthorized):
        await attestor.attest(Evidence(caller))
    enrolled(ca)
    assert (await attestor.attest(Evidence(caller))).spiffe_id == NODE
    ca.platform.agents.evict("node-1", clock.now())
    with pytest.raises(NotAuthorized):
        await attestor.attest(Evidence(caller))


async def test_an_identity_in_the_agents_room_that_is_no_agents_is_nobodys(
    ca: StandaloneCA, attestor: AllProofs, clock: FakeClock
) -> None:
    enrolled(ca)
    with pytest.raises(NotAuthorized):
        await attestor.attest(Evidence(certified("/agent/node-1/x", clock)))


async def test_a_join_token_proves_the_agent_it_names_and_is_not_used_up_by_that(
    ca: StandaloneCA, attestor: AllProofs
) -> None:
    evidence = Evidence(NOBODY, ca.token())
    for _ in range(2):
        attested = await attestor.attest(evidence)
        assert (attested.spiffe_id, attested.method) == (NODE, "join-token")
    assert evidence.bearer is not None
    assert evidence.bearer not in repr(evidence) + repr(attested)


async def test_settling_uses_the_token_up_and_keeps_the_node_key(ca: StandaloneCA, attestor: AllProofs) -> None:
    evidence, key = Evidence(NOBODY, ca.token()), new_key()
    attested = await attestor.attest(evidence)
    await attestor.settle(attested, key.public_key())
    assert ca.platform.agents.find("node-1").node_key == fingerprint(key.public_key())
    with pytest.raises(NotAuthenticated):
        await attestor.settle(attested, new_key().public_key())
    with pytest.raises(NotAuthenticated):
        await attestor.attest(evidence)
    assert ca.platform.agents.find("node-1").node_key == fingerprint(key.public_key())


async def test_who_has_no_single_use_proof_has_nothing_to_settle(attestor: AllProofs) -> None:
    await attestor.settle(Attested(WEB, "certificate"), new_key().public_key())


async def test_two_proofs_must_agree(ca: StandaloneCA, attestor: AllProofs, clock: FakeClock) -> None:
    enrolled(ca)
    enrolled(ca, "node-2")
    token = ca.token("node-1")
    with pytest.raises(NotAuthenticated):
        await attestor.attest(Evidence(certified("/agent/node-2", clock), token))
    with pytest.raises(NotAuthenticated):
        await attestor.attest(Evidence(certified(WEB.path, clock), token))
    attested = await attestor.attest(Evidence(certified("/agent/node-1", clock), token))
    assert (attested.spiffe_id, attested.method) == (NODE, "certificate+join-token")
    assert attested.single_use
    assert {"serial", "token", "address"} <= set(attested.details)


@pytest.mark.parametrize("bearer", ["", "x", "join-" + "A" * 43, "eyJhbGciOiJub25lIn0.e30."])
async def test_a_bad_token_spoils_a_good_certificate(attestor: AllProofs, clock: FakeClock, bearer: str) -> None:
    caller = certified(WEB.path, clock)
    with pytest.raises(NotAuthenticated):
        await attestor.attest(Evidence(caller, bearer))
    await attestor.attest(Evidence(caller))


async def test_a_bad_certificate_spoils_a_good_token(ca: StandaloneCA, attestor: AllProofs, clock: FakeClock) -> None:
    token = ca.token()
    with pytest.raises(NotAuthorized):
        await attestor.attest(Evidence(certified(NODE.path, clock), token))  # no such agent has enrolled yet
    await attestor.attest(Evidence(NOBODY, token))


async def test_a_token_nobody_here_knows_the_kind_of_proves_nothing(ca: StandaloneCA, clock: FakeClock) -> None:
    attestor = AllProofs(PeerCertificate(DOMAIN, ca.platform.agents, clock))
    with pytest.raises(NotAuthenticated):
        await attestor.attest(Evidence(certified(WEB.path, clock), ca.token()))


async def test_a_token_does_not_bring_an_evicted_agent_back(ca: StandaloneCA, attestor: AllProofs) -> None:
    enrolled(ca)
    token = ca.token()
    ca.clock.advance(timedelta(minutes=1))
    ca.platform.agents.evict("node-1", ca.clock.now())
    with pytest.raises(NotAuthorized):
        await attestor.attest(Evidence(NOBODY, token))
    ca.clock.advance(timedelta(minutes=1))
    await attestor.attest(Evidence(NOBODY, ca.token()))


async def test_a_token_that_ended_proves_nothing(ca: StandaloneCA, attestor: AllProofs) -> None:
    token = ca.token()
    ca.clock.advance(timedelta(minutes=10))
    with pytest.raises(NotAuthenticated):
        await attestor.attest(Evidence(NOBODY, token))
    await attestor.attest(Evidence(NOBODY, ca.token()))
