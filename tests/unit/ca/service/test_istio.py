"""Istio's contract: who gets what, in which order, and which words and codes a refusal has."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography import x509
from structlog.testing import LogCapture

from ca.agents.folder import AgentFolder
from ca.metrics import CA_NOT_READY, CSR_ERROR, TTL_ERROR
from istio_auth.door import TLSCaller
from istio_auth.errors import Code, IstioAuthError, NotReady
from istio_auth.keys import fingerprint
from istio_auth.pem import read_certificates, write_certificates, write_private_key
from istio_auth.proto.istio_ca_pb2 import IstioCertificateRequest
from istio_auth.svid import spiffe_id_of
from istio_auth.verify import verify_chain
from tests.fakes.authority import FakeAuthority
from tests.fakes.bad_csrs import bad_csrs
from tests.fakes.clock import FakeClock
from tests.fakes.standalone import (
    NOBODY,
    NODE,
    WEB,
    Metadatum,
    StandaloneCA,
    call,
    csr,
    istio_request,
    new_key,
    pem,
)

HOUR = timedelta(hours=1)
NOT_PROVEN = "request authenticate failure"
NOT_IMPERSONATED = "request impersonation authentication failure"


async def leaf_of(ca: StandaloneCA, request: IstioCertificateRequest, caller: TLSCaller) -> x509.Certificate:
    response = await ca.istio.create_certificate(request, call(caller))
    return read_certificates(response.cert_chain[0].encode())[0]


async def refused(
    ca: StandaloneCA, request: IstioCertificateRequest, caller: TLSCaller, *authorization: str
) -> IstioAuthError:
    with pytest.raises(IstioAuthError) as caught:
        await ca.istio.create_certificate(request, call(caller, *authorization))
    return caught.value


def events(audit: LogCapture, event: str) -> list[dict[str, object]]:
    return [dict(entry) for entry in audit.entries if entry["event"] == event]


async def test_the_reply_is_the_leaf_and_then_all_roots_as_one_element(ca: StandaloneCA) -> None:
    key = new_key()
    response = await ca.istio.create_certificate(istio_request(pem(csr(key))), call(await ca.enrolled()))
    leaf, roots = response.cert_chain
    assert all(element.endswith("-----END CERTIFICATE-----\n") for element in response.cert_chain)
    assert roots.encode() == ca.platform.authority.root_pem()
    chain = read_certificates(leaf.encode())
    assert verify_chain(chain, ca.platform.authority.bundle, ca.clock.now()) == NODE
    assert chain[0].public_key() == key.public_key()


async def test_the_first_certificate_of_an_agent_is_earned_by_a_join_token(ca: StandaloneCA) -> None:
    key = new_key()
    agent = await ca.enrolled(node_key=key)
    assert agent.spiffe_id == NODE
    record = ca.platform.agents.find("node-1")
    assert record.node_key == fingerprint(key.public_key())
    assert record.svid_end == agent.chain[0].not_valid_after_utc


async def test_names_in_a_csr_are_ignored(ca: StandaloneCA) -> None:
    agent = await ca.enrolled()
    for wish in ([str(WEB)], ["spiffe://cluster.local/ca"], ["https://example.test"], [str(WEB), str(NODE)], []):
        assert spiffe_id_of(await leaf_of(ca, istio_request(pem(csr(new_key(), *wish))), agent)) == NODE


async def test_an_agent_gets_for_a_workload_what_is_registered(ca: StandaloneCA) -> None:
    agent = await ca.enrolled()
    leaf = await leaf_of(ca, istio_request(pem(csr(new_key())), on_behalf_of=str(WEB)), agent)
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert spiffe_id_of(leaf) == WEB
    assert names.get_values_for_type(x509.DNSName) == ["web.default.svc"]
    assert leaf.not_valid_after_utc - ca.clock.now() == HOUR
    assert ca.platform.agents.find("node-1").identities == {WEB}


async def test_a_workload_renews_by_its_certificate(ca: StandaloneCA) -> None:
    workload = await ca.workload(await ca.enrolled())
    assert spiffe_id_of(await leaf_of(ca, istio_request(pem(csr(new_key()))), workload)) == WEB


@pytest.mark.parametrize(
    "metadata",
    [
        {},
        {"CertSigner": ""},
        {"CertSigner": "some-signer"},
        {"ImpersonatedIdentity": ""},
        {"ImpersonatedIdentity": 5},
        {"ImpersonatedIdentity": None},
        {"ImpersonatedIdentity": True},
        {"ImpersonatedIdentity": [str(WEB)]},
        {"ImpersonatedIdentity": {"a": "b"}},
        {"impersonatedidentity": str(WEB)},
        {"Unknown": "x" * 1000},
    ],
    ids=str,
)
async def test_other_metadata_is_ignored(ca: StandaloneCA, metadata: dict[str, Metadatum]) -> None:
    agent = await ca.enrolled()
    assert spiffe_id_of(await leaf_of(ca, istio_request(pem(csr(new_key())), metadata=metadata), agent)) == NODE


@pytest.mark.parametrize(
    ("seconds", "lifetime"),
    [(0, 24 * HOUR), (-1, 24 * HOUR), (-(2**63), 24 * HOUR), (60, HOUR / 60), (90 * 86400, 90 * 24 * HOUR)],
)
async def test_the_lifetime_is_the_one_asked_for_or_the_default(
    ca: StandaloneCA, seconds: int, lifetime: timedelta
) -> None:
    leaf = await leaf_of(ca, istio_request(pem(csr(new_key())), seconds=seconds), await ca.enrolled())
    assert leaf.not_valid_after_utc - ca.clock.now() == lifetime


@pytest.mark.parametrize("seconds", [90 * 86400 + 1, 2**63 - 1])
async def test_a_lifetime_above_the_maximum_is_an_invalid_argument(ca: StandaloneCA, seconds: int) -> None:
    agent = await ca.enrolled()
    error = await refused(ca, istio_request(pem(csr(new_key())), seconds=seconds), agent)
    assert error.code is Code.MALFORMED
    assert error.public.startswith("CSR signing error (")
    assert ca.platform.counts.sign_errors == {TTL_ERROR: 1}
    await leaf_of(ca, istio_request(pem(csr(new_key())), seconds=90 * 86400), agent)


BAD_CSRS = bad_csrs()


@pytest.mark.parametrize("fault", BAD_CSRS)
async def test_a_bad_csr_is_an_invalid_argument(ca: StandaloneCA, audit: LogCapture, fault: str) -> None:
    agent = await ca.enrolled()
    error = await refused(ca, istio_request(BAD_CSRS[fault]), agent)
    assert error.code is Code.MALFORMED
    assert error.public.startswith("CSR signing error (")
    assert ca.platform.counts.sign_errors == {CSR_ERROR: 1}
    (line,) = events(audit, "certificate refused")
    assert (line["caller"], line["method"], line["code"]) == (str(NODE), "certificate", "malformed")
    await leaf_of(ca, istio_request(pem(csr(new_key()))), agent)


@pytest.mark.parametrize("fault", BAD_CSRS)
async def test_a_bad_csr_does_not_burn_a_join_token(ca: StandaloneCA, fault: str) -> None:
    bearer = f"Bearer {ca.token()}"
    assert (await refused(ca, istio_request(BAD_CSRS[fault]), NOBODY, bearer)).code is Code.MALFORMED
    await ca.istio.create_certificate(istio_request(pem(csr(new_key()))), call(NOBODY, bearer))


async def test_a_lifetime_above_the_maximum_does_not_burn_a_join_token(ca: StandaloneCA) -> None:
    bearer, request = f"Bearer {ca.token()}", pem(csr(new_key()))
    assert (await refused(ca, istio_request(request, seconds=90 * 86400 + 1), NOBODY, bearer)).code is Code.MALFORMED
    await ca.istio.create_certificate(istio_request(request), call(NOBODY, bearer))


async def test_nobody_knows_me_is_unauthenticated(ca: StandaloneCA, audit: LogCapture) -> None:
    request = istio_request(pem(csr(new_key())))
    error = await refused(ca, request, NOBODY)
    assert (error.code, error.public) == (Code.NOT_AUTHENTICATED, NOT_PROVEN)
    assert ca.platform.counts.authentication_failures == 1
    (line,) = events(audit, "certificate refused")
    assert (line["method"], line["request_id"]) == ("none", "r1")
    await ca.istio.create_certificate(request, call(NOBODY, f"Bearer {ca.token()}"))


async def test_a_stranger_learns_nothing_of_its_csr(ca: StandaloneCA) -> None:
    assert (await refused(ca, istio_request("garbage"), NOBODY)).public == NOT_PROVEN


@pytest.mark.parametrize(
    "authorization",
    [
        ["Bearer "],
        ["Bearer x"],
        ["Bearer join-" + "A" * 43],
        ["Bearer " + "x" * 8000],
        ["Bearer a", "Bearer TOKEN"],
        ["bearer TOKEN"],
        ["BEARER TOKEN"],
        ["TOKEN"],
        ["Basic TOKEN"],
        ["Bearer  TOKEN"],
        ["Bearer TOKEN "],
    ],
    ids=str,
)
async def test_what_is_no_bearer_token_proves_nothing(ca: StandaloneCA, authorization: list[str]) -> None:
    token = ca.token()
    request = istio_request(pem(csr(new_key())))
    values = [value.replace("TOKEN", token) for value in authorization]
    assert (await refused(ca, request, NOBODY, *values)).public == NOT_PROVEN
    await ca.istio.create_certificate(request, call(NOBODY, f"Bearer {token}"))


async def test_of_several_values_the_first_bearer_counts(ca: StandaloneCA) -> None:
    values = ("Basic x", f"Bearer {ca.token()}", "Bearer y")
    response = await ca.istio.create_certificate(istio_request(pem(csr(new_key()))), call(NOBODY, *values))
    assert len(response.cert_chain) == 2


async def test_a_bad_token_spoils_a_good_certificate(ca: StandaloneCA) -> None:
    agent = await ca.enrolled()
    request = istio_request(pem(csr(new_key())))
    assert (await refused(ca, request, agent, "Bearer x")).public == NOT_PROVEN
    assert (await refused(ca, request, agent, f"Bearer {ca.token('node-2')}")).public == NOT_PROVEN
    await ca.istio.create_certificate(request, call(agent, f"Bearer {ca.token('node-1')}"))
    await leaf_of(ca, request, agent)


async def test_a_join_token_is_good_once(ca: StandaloneCA) -> None:
    bearer = f"Bearer {ca.token()}"
    request = istio_request(pem(csr(new_key())))
    await ca.istio.create_certificate(request, call(NOBODY, bearer))
    assert (await refused(ca, request, NOBODY, bearer)).public == NOT_PROVEN


async def test_of_two_who_use_a_token_at_once_one_gets_a_certificate_and_its_key_is_kept(ca: StandaloneCA) -> None:
    bearer, keys = f"Bearer {ca.token()}", [new_key(), new_key()]
    results = await asyncio.gather(
        *(ca.istio.create_certificate(istio_request(pem(csr(key))), call(NOBODY, bearer)) for key in keys),
        return_exceptions=True,
    )
    won = [key for key, result in zip(keys, results, strict=True) if not isinstance(result, BaseException)]
    (lost,) = [result for result in results if isinstance(result, BaseException)]
    assert isinstance(lost, IstioAuthError)
    assert lost.public == NOT_PROVEN
    assert [ca.platform.agents.find("node-1").node_key] == [fingerprint(key.public_key()) for key in won]


async def test_an_agent_whose_first_certificate_could_not_be_signed_is_enrolled_all_the_same(
    ca: StandaloneCA, monkeypatch: pytest.MonkeyPatch
) -> None:
    bearer, key = f"Bearer {ca.token()}", new_key()

    async def fails(*_orders: object) -> None:
        raise NotReady("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(ca.platform.issuer, "issue_many", fails)
        error = await refused(ca, istio_request(pem(csr(key))), NOBODY, bearer)
    assert error.code is Code.NOT_READY
    assert ca.platform.counts.sign_errors == {CA_NOT_READY: 1}
    assert ca.platform.agents.find("node-1").node_key == fingerprint(key.public_key())


async def test_a_token_does_not_enrol_for_somebody_else(ca: StandaloneCA) -> None:
    bearer = f"Bearer {ca.token()}"
    request = istio_request(pem(csr(new_key())), on_behalf_of=str(WEB))
    error = await refused(ca, request, NOBODY, bearer)
    assert (error.code, error.public) == (Code.NOT_AUTHENTICATED, NOT_IMPERSONATED)
    await ca.istio.create_certificate(istio_request(pem(csr(new_key()))), call(NOBODY, bearer))


HOSTILE = [
    "spiffe://cluster.local/ns/default/sa/other",
    "spiffe://cluster.local/agent/node-2",
    "spiffe://cluster.local/ca",
    "spiffe://cluster.local",
    "spiffe://other.test/ns/default/sa/web",
    str(WEB) + "\n",
    str(WEB) + "\0",
    str(WEB) + "%20",
    str(WEB) + "é",
    str(WEB) + "/",
    str(WEB) + "/..",
    "spiffe://cluster.local/ns/./sa/web",
    "SPIFFE://cluster.local/ns/default/sa/web",
    "spiffe://cluster.local/" + "a" * 3000,
    "web",
    " ",
]


@pytest.mark.parametrize("wanted", HOSTILE, ids=ascii)
async def test_what_is_not_registered_is_refused_without_a_word_why(
    ca: StandaloneCA, audit: LogCapture, wanted: str
) -> None:
    agent = await ca.enrolled()
    error = await refused(ca, istio_request(pem(csr(new_key())), on_behalf_of=wanted), agent)
    assert (error.code, error.public) == (Code.NOT_AUTHENTICATED, NOT_IMPERSONATED)
    (line,) = events(audit, "certificate refused")
    assert str(line["identity"]).isprintable()
    assert str(line["identity"]).isascii()
    assert len(str(line["identity"])) <= 2000
    assert str(line["reason"]).isprintable()
    await leaf_of(ca, istio_request(pem(csr(new_key())), on_behalf_of=str(WEB)), agent)


async def test_a_workload_can_not_ask_for_another(ca: StandaloneCA) -> None:
    agent = await ca.enrolled()
    workload = await ca.workload(agent)
    for wanted in (NODE, WEB.for_agent(WEB.trust_domain, "node-2")):
        request = istio_request(pem(csr(new_key())), on_behalf_of=str(wanted))
        assert (await refused(ca, request, workload)).public == NOT_IMPERSONATED
    await leaf_of(ca, istio_request(pem(csr(new_key())), on_behalf_of=str(WEB)), workload)


async def test_an_evicted_agent_gets_nothing_and_neither_does_what_it_held(ca: StandaloneCA) -> None:
    agent = await ca.enrolled()
    workload = await ca.workload(agent)
    AgentFolder(ca.folder / "agents").evict("node-1", ca.clock.now())  # as another process would
    request = istio_request(pem(csr(new_key())))
    assert (await refused(ca, request, agent)).public == NOT_PROVEN
    assert (await refused(ca, request, workload)).public == NOT_PROVEN
    await leaf_of(ca, request, await ca.enrolled("node-2"))


async def test_an_evicted_agent_comes_back_by_a_new_invitation_when_all_it_held_has_ended(ca: StandaloneCA) -> None:
    await ca.enrolled()
    old = ca.token()
    ca.clock.advance(timedelta(seconds=1))
    AgentFolder(ca.folder / "agents").evict("node-1", ca.clock.now())
    ca.clock.advance(timedelta(seconds=1))
    for token in (old, ca.token()):  # made before, and too early
        assert (await refused(ca, istio_request(pem(csr(new_key()))), NOBODY, f"Bearer {token}")).public == NOT_PROVEN
    ca.clock.advance(timedelta(hours=25))
    agent = await ca.enrolled()
    assert str(agent.spiffe_id) == str(NODE)
    await leaf_of(ca, istio_request(pem(csr(new_key()))), agent)


async def test_every_certificate_leaves_one_line(ca: StandaloneCA, audit: LogCapture) -> None:
    agent = await ca.enrolled()
    leaf = await leaf_of(ca, istio_request(pem(csr(new_key())), on_behalf_of=str(WEB)), agent)
    joined, issued = events(audit, "certificate issued")
    assert (joined["identity"], joined["caller"], joined["method"]) == (str(NODE), str(NODE), "join-token")
    assert issued == {
        "event": "certificate issued",
        "log_level": "info",
        "serial": f"{leaf.serial_number:x}",
        "identity": str(WEB),
        "caller": str(NODE),
        "method": "certificate",
        "proof": {"address": agent.address, "serial": f"{agent.chain[0].serial_number:x}"},
        "not_after": leaf.not_valid_after_utc.isoformat(),
        "request_id": "r1",
    }
    assert ca.platform.counts.issued == {"join-token": 1, "certificate": 1}
    assert (ca.platform.counts.csr, ca.platform.counts.successes, ca.platform.counts.in_flight) == (2, 2, 0)


async def test_no_line_tells_a_token(ca: StandaloneCA, audit: LogCapture) -> None:
    token = ca.token()
    await refused(ca, istio_request("garbage"), NOBODY, f"Bearer {token}")
    await ca.istio.create_certificate(istio_request(pem(csr(new_key()))), call(NOBODY, f"Bearer {token}"))
    await refused(ca, istio_request(pem(csr(new_key()))), NOBODY, f"Bearer {token}")
    assert len(audit.entries) == 3
    assert token not in repr(audit.entries)


async def test_a_caller_that_hangs_up_leaves_a_line_and_nothing_in_flight(
    ca: StandaloneCA, audit: LogCapture, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await ca.enrolled()
    reached = asyncio.Event()

    async def hangs(*_orders: object) -> None:
        reached.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(ca.platform.issuer, "issue_many", hangs)
    asking = asyncio.create_task(leaf_of(ca, istio_request(pem(csr(new_key()))), agent))
    await reached.wait()
    assert ca.platform.counts.in_flight == 1
    asking.cancel()
    await asyncio.wait([asking])
    assert asking.cancelled()
    assert ca.platform.counts.in_flight == 0
    assert [line["code"] for line in events(audit, "certificate refused")] == ["not_ready"]


async def test_an_agents_own_certificate_does_not_leave_before_its_end_is_kept(
    ca: StandaloneCA, monkeypatch: pytest.MonkeyPatch
) -> None:
    agent = await ca.enrolled()
    ca.clock.advance(HOUR)

    def fails(*_args: object) -> None:
        raise NotReady("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(AgentFolder, "note_svid", fails)
        assert (await refused(ca, istio_request(pem(csr(new_key()))), agent)).code is Code.NOT_READY
    leaf = await leaf_of(ca, istio_request(pem(csr(new_key()))), agent)
    assert ca.platform.agents.find("node-1").svid_end == leaf.not_valid_after_utc


async def test_intermediates_are_elements_of_their_own(tmp_path: Path, clock: FakeClock) -> None:
    ca = StandaloneCA(tmp_path, clock, plugged_in=plugged(tmp_path / "plugged", clock))
    response = await ca.istio.create_certificate(istio_request(pem(csr(new_key()))), call(await ca.enrolled()))
    leaf, *between, roots = [read_certificates(element.encode()) for element in response.cert_chain]
    assert [len(element) for element in (leaf, *between)] == [1, 1, 1]
    assert len(roots) == 2
    assert verify_chain([leaf[0], *(part[0] for part in between)], ca.platform.authority.bundle, clock.now()) == NODE
    assert all(element.endswith("\n") for element in response.cert_chain)
    await ca.platform.close()


def plugged(folder: Path, clock: FakeClock) -> Path:
    """A plugged-in CA with two intermediates and a second root."""
    root = FakeAuthority(now=clock.now())
    signing = FakeAuthority(parent=FakeAuthority(parent=root, now=clock.now()), now=clock.now())
    folder.mkdir()
    (folder / "ca-cert.pem").write_bytes(write_certificates(signing.intermediates[:1]))
    (folder / "cert-chain.pem").write_bytes(write_certificates(signing.intermediates))
    (folder / "root-cert.pem").write_bytes(
        write_certificates([root.certificate, FakeAuthority(now=clock.now()).certificate])
    )
    (folder / "ca-key.pem").touch(mode=0o600)
    (folder / "ca-key.pem").write_bytes(write_private_key(signing.key))
    return folder
