"""A real `istio-ca` holds Istio's contract to the byte, for a client that knows the contract alone."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import grpc
import pytest
import pytest_asyncio
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa

from istio_auth.pem import write_certificates
from tests.fakes.authority import FakeAuthority
from tests.fakes.bad_csrs import bad_csrs
from tests.fakes.processes import Machine
from tests.fakes.waiting import until
from tests.integration.daemons.foreign import END, SERVED_AS, ForeignClient, Identity, certificates, elements

pytestmark = pytest.mark.asyncio(loop_scope="module")
AGENT = "spiffe://cluster.local/agent/node-1"
DAY = 86400


@dataclass
class Running:
    """A CA, and an agent that has joined it."""

    machine: Machine
    roots: bytes
    joined: Identity

    def client(self, identity: Identity | None = None, *, served_as: str | None = SERVED_AS) -> ForeignClient:
        return ForeignClient(self.machine.ca_port, self.roots, identity, served_as=served_as)

    @property
    def agent(self) -> ForeignClient:
        return self.client(self.joined)

    async def join(self, name: str) -> Identity:
        """Another agent."""
        fresh = Identity()
        return fresh.with_chain(await self.client().create(fresh.csr, token=await self.machine.invite(name)))


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def ca(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Running]:
    machine = Machine(tmp_path_factory.mktemp("contract"), ttl="1h", ca_flags=["--max-ttl", "2h"])
    async with machine.ca:
        await machine.ca.says("ready")
        running = Running(machine, await machine.roots(), Identity())
        running.joined = await running.join("node-1")
        yield running


def named(certificate: x509.Certificate) -> list[str]:
    found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    assert found.critical
    return found.value.get_values_for_type(x509.UniformResourceIdentifier)


def lifetime(reply: list[str]) -> float:
    """How long the leaf lives from now on, in seconds."""
    (leaf,) = certificates(reply[0])
    whole = leaf.not_valid_after_utc - leaf.not_valid_before_utc
    return (whole - min(timedelta(minutes=2), whole / 11)).total_seconds()  # backdated by at most a tenth of its life


async def refused(client: ForeignClient, csr: str, **more: object) -> tuple[grpc.StatusCode, str]:
    """With which status and words a request is refused."""
    with pytest.raises(grpc.aio.AioRpcError) as failed:
        await client.create(csr, **more)  # type: ignore[arg-type]  # by name
    return failed.value.code(), failed.value.details() or ""


async def audit(ca: Running, event: str, already: int) -> dict[str, object]:
    """The line of audit that came after so many lines."""
    return await ca.machine.ca.says(event, after=already)


class TestTheReply:
    async def test_is_the_leaf_and_then_the_roots_that_the_operator_pins(self, ca: Running) -> None:
        fresh = Identity()
        reply = await ca.agent.create(fresh.csr)
        assert len(reply) == 2
        assert all(element.endswith(END) for element in reply)
        (leaf,) = certificates(reply[0])
        assert named(leaf) == [AGENT]
        assert leaf.public_key() == fresh.key.public_key()
        assert reply[-1].encode() == ca.roots

    async def test_ends_with_the_same_bytes_each_time(self, ca: Running) -> None:
        replies = [await ca.agent.create(Identity().csr) for _ in range(5)]
        assert len({reply[-1] for reply in replies}) == 1
        assert len({certificates(reply[0])[0].serial_number for reply in replies}) == 5

    async def test_is_good_for_the_next_call(self, ca: Running) -> None:
        fresh = Identity()
        renewed = fresh.with_chain(await ca.agent.create(fresh.csr))
        assert named(certificates((await ca.client(renewed).create(Identity().csr))[0])[0]) == [AGENT]

    async def test_to_a_request_written_by_hand(self, ca: Running) -> None:
        csr = Identity().csr.encode()
        head = b"\x0a" + _varint(len(csr))
        minute = b"\x18\x3c"  # field 3, varint, 60
        subject_id = b"\x12\x03foo"  # field 2, dead since 1.4, which an old client may still send
        reply = elements(await ca.agent.send(head + csr + subject_id + minute))
        assert lifetime(reply) == pytest.approx(60, abs=2)

    async def test_to_an_rsa_key_and_a_pem_without_its_last_newline(self, ca: Running) -> None:
        fresh = Identity(rsa.generate_private_key(65537, 2048))
        reply = await ca.agent.create(fresh.csr.rstrip("\n"))
        assert certificates(reply[0])[0].public_key() == fresh.key.public_key()


def _varint(number: int) -> bytes:
    low, high = number & 0x7F, number >> 7
    return bytes([low | 0x80]) + _varint(high) if high else bytes([low])


class TestTheLifetime:
    @pytest.mark.parametrize(("asked", "given"), [(0, 3600), (-1, 3600), (-(1 << 63), 3600), (600, 600), (7200, 7200)])
    async def test_is_what_was_asked_for_or_else_the_default(self, ca: Running, asked: int, given: int) -> None:
        assert lifetime(await ca.agent.create(Identity().csr, seconds=asked)) == pytest.approx(given, rel=0.03)

    @pytest.mark.parametrize("asked", [7201, (1 << 63) - 1])
    async def test_above_the_maximum_is_an_invalid_argument(self, ca: Running, asked: int) -> None:
        code, words = await refused(ca.agent, Identity().csr, seconds=asked)
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert words.startswith("CSR signing error (")

    async def test_above_the_maximum_is_the_maximum_if_the_operator_wants_that(self, tmp_path: Path) -> None:
        machine = Machine(tmp_path, ttl="1h", ca_flags=["--max-ttl", "2h", "--signing-clamp-excess-ttl"])
        async with machine.ca:
            await machine.ca.says("ready")
            client = ForeignClient(machine.ca_port, await machine.roots())
            reply = await client.create(Identity().csr, seconds=90 * DAY, token=await machine.invite())
        assert lifetime(reply) == pytest.approx(7200, rel=0.03)


class TestMetadata:
    @pytest.mark.parametrize(
        "metadata",
        [
            None,
            {},
            {"CertSigner": ""},
            {"CertSigner": "clusterissuers.istio/ca"},
            {"Unheard": {"of": [1, None, True]}, "ImpersonatedIdentity": ""},
        ],
    )
    async def test_that_says_nothing_to_us_is_ignored(self, ca: Running, metadata: dict[str, object] | None) -> None:
        reply = await ca.agent.create(Identity().csr, metadata=metadata)
        assert named(certificates(reply[0])[0]) == [AGENT]

    @pytest.mark.parametrize(
        "wanted",
        [
            "spiffe://cluster.local/db",
            "spiffe://cluster.local/agent/node-2",
            "spiffe://cluster.local/ca",
            "spiffe://other.test/web",
            "spiffe:///ns/a/sa/b",
            "spiffe://cluster.local/web\n",
        ],
    )
    async def test_that_names_an_identity_gives_it_if_it_is_registered_for_the_agent(
        self, ca: Running, wanted: str
    ) -> None:
        already = len(ca.machine.ca.lines())
        code, words = await refused(ca.agent, Identity().csr, metadata={"ImpersonatedIdentity": wanted})
        assert (code, words) == (
            grpc.StatusCode.UNAUTHENTICATED,
            "request impersonation authentication failure",
        )
        line = await audit(ca, "certificate refused", already)
        assert (line["caller"], line["method"]) == (AGENT, "certificate")
        granted = {"ImpersonatedIdentity": "spiffe://cluster.local/web"}
        reply = await ca.agent.create(Identity().csr, metadata=granted)
        assert named(certificates(reply[0])[0]) == ["spiffe://cluster.local/web"]

    async def test_that_names_an_identity_is_not_for_other_agents(self, ca: Running) -> None:
        other = ca.client(await ca.join("node-3"))
        wanted = {"ImpersonatedIdentity": "spiffe://cluster.local/web"}
        assert (await refused(other, Identity().csr, metadata=wanted))[0] is grpc.StatusCode.UNAUTHENTICATED


class TestTheRequest:
    @pytest.mark.parametrize("fault", sorted(set(bad_csrs()) - {"oversized"}))
    async def test_with_a_bad_csr_is_an_invalid_argument(self, ca: Running, fault: str) -> None:
        already = len(ca.machine.ca.lines())
        code, words = await refused(ca.agent, bad_csrs()[fault])
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert words.startswith("CSR signing error (")
        line = await audit(ca, "certificate refused", already)
        assert (line["code"], line["caller"]) == ("malformed", AGENT)

    @pytest.mark.parametrize("size", [70 << 10, 5 << 20])
    async def test_that_is_too_large_is_refused(self, ca: Running, size: int) -> None:
        code, _ = await refused(ca.agent, "x" * size)
        assert code in {grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert len(await ca.agent.create(Identity().csr)) == 2

    async def test_that_does_not_parse_is_refused(self, ca: Running) -> None:
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await ca.agent.send(b"\x0a\xff\xff\xff\xff\x0f")
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        with pytest.raises(grpc.aio.AioRpcError) as failed:
            await ca.agent.send(b"\x0a\x02\xc3\x28")  # a string that is not UTF-8
        assert failed.value.code() is grpc.StatusCode.INVALID_ARGUMENT


class TestTheCaller:
    async def test_without_any_proof_hears_no_reason(self, ca: Running) -> None:
        already = len(ca.machine.ca.lines())
        heard = await refused(ca.client(), Identity().csr)
        assert heard == (grpc.StatusCode.UNAUTHENTICATED, "request authenticate failure")
        line = await audit(ca, "certificate refused", already)
        assert (line["method"], line["code"]) == ("none", "not_authenticated")
        assert "neither a certificate nor a token" in str(line["reason"])

    async def test_of_another_ca_is_refused_at_the_handshake(self, ca: Running) -> None:
        impostor = FakeAuthority()  # of the same trust domain, and valid in every other respect
        svid = impostor.svid("/agent/node-1")
        already = len(ca.machine.ca.lines())
        foreign = ca.client(Identity(svid.private_key, write_certificates(svid.chain)))
        code, _ = await refused(foreign, Identity().csr)
        assert code is grpc.StatusCode.UNAVAILABLE

        def told() -> bool:
            lines = ca.machine.ca.lines()[already:]
            return any(line.get("fault") == "does not chain to the bundle" for line in lines)

        await until(told)

    async def test_is_who_both_its_proofs_say_and_they_must_agree(self, ca: Running) -> None:
        both = await ca.join("node-4")
        already = len(ca.machine.ca.lines())
        theirs = await ca.machine.invite("node-5")
        heard = await refused(ca.client(both), Identity().csr, token=theirs)
        assert heard == (grpc.StatusCode.UNAUTHENTICATED, "request authenticate failure")
        assert "disagree" in str((await audit(ca, "certificate refused", already))["reason"])
        own = await ca.machine.invite("node-4")
        fresh = Identity()
        reply = await ca.client(both).create(fresh.csr, token=own)
        assert named(certificates(reply[0])[0]) == ["spiffe://cluster.local/agent/node-4"]
        reply = await ca.client().create(fresh.csr, token=theirs)  # it was not used up
        assert named(certificates(reply[0])[0]) == ["spiffe://cluster.local/agent/node-5"]

    async def test_is_on_record_with_how_it_was_proven(self, ca: Running) -> None:
        already = len(ca.machine.ca.lines())
        (leaf,) = certificates((await ca.agent.create(Identity().csr))[0])
        line = await audit(ca, "certificate issued", already)
        assert int(str(line["serial"]), 16) == leaf.serial_number
        assert (line["identity"], line["caller"], line["method"]) == (AGENT, AGENT, "certificate")
        assert line["not_after"] == leaf.not_valid_after_utc.isoformat()
        assert line["request_id"]


class TestJoinTokens:
    async def test_are_good_once(self, ca: Running) -> None:
        token = await ca.machine.invite("node-6")
        assert len(await ca.client().create(Identity().csr, token=token)) == 2
        already = len(ca.machine.ca.lines())
        heard = await refused(ca.client(), Identity().csr, token=token)
        assert heard == (grpc.StatusCode.UNAUTHENTICATED, "request authenticate failure")
        assert token not in str(await audit(ca, "certificate refused", already))

    async def test_that_nobody_made_are_refused(self, ca: Running) -> None:
        heard = await refused(ca.client(), Identity().csr, token="join-" + "A" * 43)
        assert heard == (grpc.StatusCode.UNAUTHENTICATED, "request authenticate failure")

    async def test_end(self, ca: Running) -> None:
        token = await ca.machine.invite("node-7", ttl="1s")

        async def over() -> bool:
            return (await ca.machine.operator("token", "list", "-o", "json")).count('"ended": true') > 0

        async with asyncio.timeout(60):
            while not await over():
                pass
        already = len(ca.machine.ca.lines())
        assert (await refused(ca.client(), Identity().csr, token=token))[0] is grpc.StatusCode.UNAUTHENTICATED
        assert "node-7" not in str((await audit(ca, "certificate refused", already))["identity"])
        assert len(await ca.client().create(Identity().csr, token=await ca.machine.invite("node-7"))) == 2

    async def test_that_several_use_at_once_serve_one_of_them(self, ca: Running) -> None:
        token = await ca.machine.invite("node-8")
        rivals = [Identity() for _ in range(8)]
        outcomes = await asyncio.gather(
            *(ca.client().create(rival.csr, token=token) for rival in rivals), return_exceptions=True
        )
        won = [outcome for outcome in outcomes if isinstance(outcome, list)]
        lost = [outcome for outcome in outcomes if isinstance(outcome, grpc.aio.AioRpcError)]
        assert (len(won), len(lost)) == (1, 7)
        assert {each.code() for each in lost} == {grpc.StatusCode.UNAUTHENTICATED}


class TestAnEvictedAgent:
    async def test_gets_nothing_from_then_on(self, ca: Running) -> None:
        agent = await ca.join("node-9")
        assert len(await ca.client(agent).create(Identity().csr)) == 2
        await ca.machine.operator("agent", "evict", "node-9")
        already = len(ca.machine.ca.lines())
        heard = await refused(ca.client(agent), Identity().csr)
        assert heard == (grpc.StatusCode.UNAUTHENTICATED, "request authenticate failure")
        assert "evicted" in str((await audit(ca, "certificate refused", already))["reason"])


class TestTheServer:
    @pytest.mark.parametrize("name", [SERVED_AS, "localhost", "istio-ca.istio-system.svc", None])
    async def test_has_the_names_it_is_known_by(self, ca: Running, name: str | None) -> None:
        client = ca.client(ca.joined, served_as=name)
        assert len(await client.create(Identity().csr)) == 2

    async def test_has_no_other(self, ca: Running) -> None:
        code, words = await refused(ca.client(ca.joined, served_as="istiod.other.svc"), Identity().csr)
        assert code is grpc.StatusCode.UNAVAILABLE
        assert "hostname verification" in words.lower()

    @pytest.mark.parametrize(("flag", "spoken"), [("-tls1_1", False), ("-tls1_2", True), ("-tls1_3", True)])
    async def test_speaks_tls_1_2_and_1_3_and_http_2_over_them(self, ca: Running, flag: str, spoken: bool) -> None:
        already = len(ca.machine.ca.lines())
        (ca.machine.folder / "roots.pem").write_bytes(ca.roots)
        words = ("openssl", "s_client", "-connect", f"127.0.0.1:{ca.machine.ca_port}", flag, "-alpn", "h2")
        strictly = (
            "-CAfile",
            str(ca.machine.folder / "roots.pem"),
            "-verify_return_error",
            "-verify_hostname",
            SERVED_AS,
        )
        asked = await asyncio.create_subprocess_exec(
            *words, *strictly, "-cipher", "ALL:@SECLEVEL=0",
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        async with asyncio.timeout(60):
            out, _ = await asked.communicate()
        assert (b"ALPN protocol: h2" in out) is spoken
        assert (asked.returncode == 0) is spoken, out
        if not spoken:
            line = await ca.machine.ca.says_like("unsupported protocol", after=already)
            assert "refused a caller" in str(line["event"])


class TestAPluggedInAuthority:
    @pytest.mark.parametrize("layout", ["istio", "kubernetes"])
    async def test_signs_with_its_intermediate_and_each_is_an_element(self, tmp_path: Path, layout: str) -> None:
        root = FakeAuthority(path_length=2)
        upper = FakeAuthority(parent=root, path_length=1)
        signing = FakeAuthority(parent=upper, path_length=0)
        plugged = tmp_path / "plugged"
        plugged.mkdir(0o700)
        key = Identity(signing.key).pem
        above = write_certificates([upper.certificate])
        files = {
            "istio": {
                "ca-cert.pem": write_certificates([signing.certificate]),
                "ca-key.pem": key,
                "cert-chain.pem": write_certificates([signing.certificate, upper.certificate]),
                "root-cert.pem": write_certificates([root.certificate]),
            },
            "kubernetes": {
                "tls.crt": write_certificates([signing.certificate]) + above,
                "tls.key": key,
                "ca.crt": write_certificates([root.certificate]),
            },
        }[layout]
        for name, content in files.items():
            (plugged / name).touch(0o600)
            (plugged / name).write_bytes(content)
        machine = Machine(tmp_path, ttl="1h", ca_flags=["--ca-folder", plugged])
        async with machine.ca:
            await machine.ca.says("ready")
            roots = write_certificates([root.certificate])
            assert await machine.roots() == roots
            client = ForeignClient(machine.ca_port, roots)
            fresh = Identity()
            reply = await client.create(fresh.csr, token=await machine.invite())
            again = await ForeignClient(machine.ca_port, roots, fresh.with_chain(reply)).create(Identity().csr)
        assert [certificates(element) for element in reply[1:]] == [
            [signing.certificate],
            [upper.certificate],
            [root.certificate],
        ]
        assert all(element.endswith(END) for element in reply)
        assert again[1:] == reply[1:]
