"""Our own service: batches answered one by one, and the way back for a lapsed agent."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from structlog.testing import LogCapture

from ca.agents.folder import AgentFolder
from istio_auth.door import TLSCaller
from istio_auth.errors import Code, IstioAuthError, NotReady
from istio_auth.keys import PrivateKey, fingerprint, public_key_der, sign
from istio_auth.pem import read_der_certificate
from istio_auth.proto import node_pb2
from istio_auth.recovery import recovery_message
from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import spiffe_id_of
from tests.fakes.standalone import DOMAIN, NOBODY, NODE, WEB, StandaloneCA, call, caller_of, csr, der, new_key

HOUR = timedelta(hours=1)
DAY = timedelta(days=1)


def chain_of(issued: node_pb2.Issued) -> TLSCaller:
    return caller_of([read_der_certificate(each) for each in issued.chain])


def entry(wanted: str = "", **fields: object) -> node_pb2.SignEntry:
    return node_pb2.SignEntry(**({"spiffe_id": wanted, "csr": der(csr(new_key()))} | fields))  # type: ignore[arg-type]  # the message's fields, by name


async def sign_all(ca: StandaloneCA, caller: TLSCaller, *entries: node_pb2.SignEntry) -> list[node_pb2.SignResult]:
    response = await ca.node.sign(node_pb2.SignRequest(entries=entries), call(caller))
    return list(response.results)


async def test_each_entry_is_answered_for_itself_and_in_its_place(ca: StandaloneCA, audit: LogCapture) -> None:
    agent = await ca.enrolled()
    audit.entries.clear()
    results = await sign_all(
        ca,
        agent,
        entry(str(WEB)),
        entry("spiffe://cluster.local/ns/default/sa/other"),
        entry(),
        entry(csr=b"garbage"),
        entry("no SPIFFE ID\n"),
        entry(ttl_seconds=91 * 86400),
        entry(workload_token="x"),
        entry(str(WEB), ttl_seconds=60),
    )
    codes = [result.refusal.code or "issued" for result in results]
    assert codes == [
        "issued",
        "NOT_AUTHORIZED",
        "issued",
        "MALFORMED",
        "MALFORMED",
        "MALFORMED",
        "NOT_AUTHENTICATED",
        "issued",
    ]
    issued = [chain_of(results[place].issued) for place in (0, 2, 7)]
    assert [caller.spiffe_id for caller in issued] == [WEB, NODE, WEB]
    assert issued[2].chain[0].not_valid_after_utc - ca.clock.now() == timedelta(minutes=1)
    assert len(audit.entries) == 8
    assert all(str(line["reason"]).isprintable() for line in audit.entries if "reason" in line)


async def test_a_refusal_tells_its_kind_and_no_more(ca: StandaloneCA) -> None:
    (result,) = await sign_all(ca, await ca.enrolled(), entry("spiffe://cluster.local/ns/default/sa/other"))
    assert (result.refusal.message, result.refusal.retry_after_ms) == ("not authorized", 0)


async def test_an_empty_batch_has_an_empty_answer(ca: StandaloneCA) -> None:
    assert await sign_all(ca, await ca.enrolled()) == []


async def test_a_batch_has_a_bound(ca: StandaloneCA, audit: LogCapture) -> None:
    agent, one = await ca.enrolled(), entry()
    with pytest.raises(IstioAuthError) as caught:
        await sign_all(ca, agent, *[one] * 501)
    assert caught.value.code is Code.MALFORMED
    assert (audit.entries[-1]["caller"], audit.entries[-1]["code"]) == (str(NODE), "malformed")
    assert len(await sign_all(ca, agent, *[one] * 500)) == 500


async def test_whoever_is_not_proven_gets_nothing_at_all(ca: StandaloneCA) -> None:
    for caller, authorization in ((NOBODY, ()), (NOBODY, ("Bearer x",)), (await ca.enrolled(), ("Bearer x",))):
        with pytest.raises(IstioAuthError) as caught:
            await ca.node.sign(node_pb2.SignRequest(entries=[entry()]), call(caller, *authorization))
        assert caught.value.code is Code.NOT_AUTHENTICATED


async def test_an_agent_may_join_by_a_batch_of_one(ca: StandaloneCA) -> None:
    bearer = f"Bearer {ca.token()}"
    for entries in ([entry(), entry()], [entry(str(WEB))], []):
        response = await ca.node.sign(node_pb2.SignRequest(entries=entries), call(NOBODY, bearer))
        assert {result.refusal.code for result in response.results} <= {"NOT_AUTHORIZED"}
        assert len(response.results) == len(entries)
    response = await ca.node.sign(node_pb2.SignRequest(entries=[entry()]), call(NOBODY, bearer))
    assert chain_of(response.results[0].issued).spiffe_id == NODE
    assert ca.platform.agents.find("node-1").svid_end is not None


async def test_when_nothing_can_be_put_on_record_each_entry_says_so(
    ca: StandaloneCA, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await ca.enrolled()

    def full(_records: object) -> None:
        raise NotReady("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(ca.platform.issuer._log, "append_many", full)
        results = await sign_all(ca, agent, entry(), entry(str(WEB)))
    assert [result.refusal.code for result in results] == ["NOT_READY", "NOT_READY"]
    assert [bool(result.issued.chain) for result in await sign_all(ca, agent, entry(), entry(str(WEB)))] == [True, True]


@dataclass(frozen=True)
class Comeback:
    """What an agent sends to come back; `replace` one field to break one thing."""

    ca: StandaloneCA
    node_key: PrivateKey
    spiffe_id: SpiffeID = NODE
    nonce: bytes | None = None
    signed_id: SpiffeID = NODE
    signing_key: PrivateKey | None = None
    csr: bytes = field(default_factory=lambda: der(csr(new_key())))
    sent_csr: bytes | None = None

    async def ask(self, caller: TLSCaller = NOBODY, *authorization: str) -> TLSCaller:
        nonce = self.nonce or await challenge(self.ca, self.spiffe_id)
        request = node_pb2.RecoverRequest(
            spiffe_id=str(self.spiffe_id),
            nonce=nonce,
            node_key=public_key_der(self.node_key.public_key()),
            signature=sign(self.signing_key or self.node_key, recovery_message(self.signed_id, nonce, self.csr)),
            csr=self.sent_csr or self.csr,
        )
        response = await self.ca.node.recover(request, call(caller, *authorization))
        return chain_of(response.issued)

    async def refused(self, code: Code, caller: TLSCaller = NOBODY, *authorization: str) -> None:
        with pytest.raises(IstioAuthError) as caught:
            await self.ask(caller, *authorization)
        assert caught.value.code is code


async def challenge(ca: StandaloneCA, spiffe_id: SpiffeID = NODE) -> bytes:
    return (await ca.node.challenge(node_pb2.ChallengeRequest(spiffe_id=str(spiffe_id)), call())).nonce


@pytest.fixture
async def good(ca: StandaloneCA) -> Comeback:
    key = new_key()
    await ca.enrolled(node_key=key)
    return Comeback(ca, key)


async def test_a_lapsed_agent_comes_back_with_its_node_key(good: Comeback, audit: LogCapture) -> None:
    good.ca.clock.advance(DAY + HOUR)
    back = await good.ask()
    assert back.spiffe_id == NODE
    assert good.ca.platform.agents.find("node-1").svid_end == back.chain[0].not_valid_after_utc
    assert [line["method"] for line in audit.entries if line["event"] == "certificate issued"][-1] == "node-key"
    (result,) = await sign_all(good.ca, back, entry(str(WEB)))
    assert result.issued.chain


async def test_an_agent_that_lost_its_svid_before_its_end_comes_back_too(good: Comeback) -> None:
    assert (await good.ask()).spiffe_id == NODE


async def test_an_agent_comes_back_even_if_its_first_certificate_was_never_signed(ca: StandaloneCA) -> None:
    key = new_key()
    ca.platform.agents.enrol("node-1", fingerprint(key.public_key()), invited_at=ca.clock.now(), now=ca.clock.now())
    ca.clock.advance(29 * DAY)
    assert (await Comeback(ca, key).ask()).spiffe_id == NODE


async def test_the_way_back_is_open_for_a_window_only(good: Comeback) -> None:
    good.ca.clock.advance(31 * DAY)
    assert (await good.ask()).spiffe_id == NODE  # 30 days after the end of its SVID
    good.ca.clock.advance(31 * DAY + timedelta(seconds=1))
    await good.refused(Code.NOT_AUTHENTICATED)
    await good.ca.enrolled(node_key=good.node_key)
    await good.ask()


@pytest.mark.parametrize(
    "broken",
    [
        lambda good: replace(good, node_key=new_key()),
        lambda good: replace(good, signing_key=new_key()),
        lambda good: replace(good, signed_id=SpiffeID.for_agent(DOMAIN, "node-2")),
        lambda good: replace(good, sent_csr=der(csr(new_key()))),
        lambda good: replace(good, nonce=b"\0" * 32),
        lambda good: replace(good, spiffe_id=SpiffeID.for_agent(DOMAIN, "node-2")),
    ],
    ids=["another key", "another signer", "another name", "another CSR", "a nonce of its own", "another agent"],
)
async def test_a_proof_that_is_wrong_in_one_thing_is_refused(
    good: Comeback, broken: Callable[[Comeback], Comeback]
) -> None:
    await broken(good).refused(Code.NOT_AUTHENTICATED)
    await good.ask()


async def test_a_nonce_is_good_once_and_for_a_minute(good: Comeback) -> None:
    once = replace(good, nonce=await challenge(good.ca))
    await once.ask()
    await once.refused(Code.NOT_AUTHENTICATED)
    late = replace(good, nonce=await challenge(good.ca))
    good.ca.clock.advance(timedelta(minutes=1))
    await late.refused(Code.NOT_AUTHENTICATED)
    await good.ask()


async def test_a_failed_proof_leaves_the_nonce_to_its_agent(good: Comeback) -> None:
    nonce = await challenge(good.ca)
    await replace(good, nonce=nonce, signing_key=new_key()).refused(Code.NOT_AUTHENTICATED)
    await replace(good, nonce=nonce).ask()


async def test_the_evicted_do_not_come_back(good: Comeback) -> None:
    await good.ask()
    AgentFolder(good.ca.folder / "agents").evict("node-1", good.ca.clock.now())
    await good.refused(Code.NOT_AUTHORIZED)


async def test_a_stranger_can_not_tell_which_agents_there_are(ca: StandaloneCA, good: Comeback) -> None:
    await ca.enrolled("node-2")
    ca.platform.agents.evict("node-2", ca.clock.now())
    for name in ("node-1", "node-2", "node-3"):
        there = SpiffeID.for_agent(DOMAIN, name)
        await replace(good, node_key=new_key(), spiffe_id=there, signed_id=there).refused(Code.NOT_AUTHENTICATED)


async def test_every_proof_beside_the_node_key_must_be_good_too(good: Comeback) -> None:
    await good.refused(Code.NOT_AUTHENTICATED, NOBODY, "Bearer x")
    await good.refused(Code.NOT_AUTHENTICATED, NOBODY, f"Bearer {good.ca.token()}")
    await good.refused(Code.NOT_AUTHENTICATED, await good.ca.enrolled("node-2"))
    agent = await good.ask()
    assert (await good.ask(agent)).spiffe_id == NODE


@pytest.mark.parametrize(
    "changes",
    [
        {"spiffe_id": ""},
        {"spiffe_id": str(WEB)},
        {"spiffe_id": "spiffe://other.test/agent/node-1"},
        {"spiffe_id": str(NODE) + "\n"},
        {"node_key": b""},
        {"node_key": b"garbage"},
        {"node_key": public_key_der(ec.generate_private_key(ec.SECP384R1()).public_key()) + b"\0"},
        {"signature": b"x" * 3000},
    ],
)
async def test_what_is_malformed_is_told_as_that(good: Comeback, changes: dict[str, str | bytes]) -> None:
    nonce = await challenge(good.ca)
    whole = {
        "spiffe_id": str(NODE),
        "nonce": nonce,
        "node_key": public_key_der(good.node_key.public_key()),
        "signature": b"",
        "csr": good.csr,
    }
    request = node_pb2.RecoverRequest(**(whole | changes))  # type: ignore[arg-type]  # the message's fields, by name
    with pytest.raises(IstioAuthError) as caught:
        await good.ca.node.recover(request, call())
    assert caught.value.code is Code.MALFORMED
    await good.ask()


async def test_a_bad_csr_does_not_come_back(good: Comeback) -> None:
    await replace(good, csr=b"garbage").refused(Code.MALFORMED)
    await good.ask()


@pytest.mark.parametrize("spiffe_id", ["", "x", str(WEB), "spiffe://other.test/agent/node-1", "spiffe://cluster.local"])
async def test_only_agents_are_challenged(ca: StandaloneCA, spiffe_id: str) -> None:
    with pytest.raises(IstioAuthError) as caught:
        await ca.node.challenge(node_pb2.ChallengeRequest(spiffe_id=spiffe_id), call())
    assert caught.value.code is Code.MALFORMED
    await challenge(ca)


async def test_an_rsa_node_key_will_do(ca: StandaloneCA) -> None:
    key = rsa.generate_private_key(65537, 2048)
    agent = await ca.enrolled(node_key=key)
    assert spiffe_id_of(agent.chain[0]) == NODE
    assert (await Comeback(ca, key).ask()).spiffe_id == NODE
