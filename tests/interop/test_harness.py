"""The harness, as conformance suites drive it: a process, a Workload API, and foreign TLS at both of its ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Self

import grpc
import pytest
from cryptography import x509

from istio_auth.bundle import TrustBundle
from istio_auth.keys import PrivateKey
from istio_auth.proto import workload_api_pb2 as messages
from istio_auth.strict_json import JSON
from istio_auth.svid import X509SVID
from tests.fakes.authority import FakeAuthority
from tests.fakes.tcp import closed_port
from tests.fakes.tls import stranger
from tests.fakes.token_issuer import TokenIssuer
from tests.fakes.waiting import until
from tests.fakes.workload_api import Context, FakeWorkloadAPI, entry, jwt_bundles
from tests.fakes.workload_api import x509 as said
from tests.interop.harness import PATIENCE
from tests.unit.tls.test_verdict import PRESENTABLE, key_of
from tests.vectors.x509_svid import FEDERATED, KEY, LOCAL, STRANGER, Vector

ROOT = Path(__file__).parents[2]
WEB, DB = "spiffe://cluster.local/ns/default/sa/web", "spiffe://cluster.local/ns/default/sa/db"
ISSUER, THEIRS = TokenIssuer(), TokenIssuer(place=1)
PEER = LOCAL.svid()
Answer = tuple[int, dict[str, Any]]


class Harness:
    """The program, from entering to leaving."""

    def __init__(self, address: str | None) -> None:
        environment = {name: value for name, value in os.environ.items() if name != "SPIFFE_ENDPOINT_SOCKET"}
        self._environment = environment | ({"SPIFFE_ENDPOINT_SOCKET": address} if address is not None else {})

    def __enter__(self) -> Self:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.interop.harness"],
            cwd=ROOT,
            env=self._environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        self._stdout = self.process.stdout
        return self

    def __exit__(self, *_exc: object) -> None:
        self.process.kill()
        self.process.communicate()

    def line(self) -> str:
        return self._stdout.readline().rstrip("\n")

    def listens(self) -> None:
        """Read the three lines that tell where it listens."""
        version, x509_port, control_port = (self.line() for _ in range(3))
        assert version == "SPIFFE_HARNESS_VERSION=1"
        self.x509_port = int(x509_port.removeprefix("SPIFFE_X509_PORT="))
        self.control_port = int(control_port.removeprefix("SPIFFE_CONTROL_PORT="))

    def end(self) -> tuple[int, str]:
        """Have it end by SIGTERM: its exit code, and what else it has printed."""
        self.process.send_signal(signal.SIGTERM)
        rest, _ = self.process.communicate(timeout=60)
        return self.process.returncode, rest

    def ask(self, path: str, body: JSON | bytes = None, *, method: str | None = None) -> Answer:
        """What the control port answers; a body makes it a POST."""
        data = body if isinstance(body, bytes) else None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(f"http://127.0.0.1:{self.control_port}{path}", data=data, method=method)
        try:
            with urllib.request.urlopen(request, timeout=60) as response:  # noqa: S310  # loopback
                return response.status, json.load(response)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    def dial(self, port: int) -> Answer:
        return self.ask("/v1/x509/dial", {"address": f"127.0.0.1:{port}"})

    def greeting(
        self, chain: Sequence[x509.Certificate], key: PrivateKey = KEY, *, version: ssl.TLSVersion | None = None
    ) -> bytes:
        """What a peer with this chain reads until the end; empty if it was refused."""
        return greeted(self.x509_port, chain, key, version=version)[0]

    def presents(self) -> bytes:
        """The leaf that the X.509 port presents; empty if there is none to be had."""
        return greeted(self.x509_port, PEER.chain, PEER.private_key)[1]


def greeted(
    port: int, chain: Sequence[x509.Certificate], key: PrivateKey, *, version: ssl.TLSVersion | None = None
) -> tuple[bytes, bytes]:
    """What Python's own TLS reads from a server, and the leaf that it saw."""
    context = stranger(server_side=False, chain=chain, key=key)
    if version is not None:
        context.minimum_version = context.maximum_version = version
    read, leaf = b"", b""
    with socket.create_connection(("127.0.0.1", port), timeout=60) as plain:
        try:
            with context.wrap_socket(plain) as tls:
                leaf = tls.getpeercert(binary_form=True) or b""
                while received := tls.recv():
                    read += received
        except (ssl.SSLError, ConnectionError):
            pass
    return read, leaf


@contextmanager
def serving(chain: Sequence[x509.Certificate], key: PrivateKey = KEY) -> Iterator[int]:
    """Python's own TLS server that presents this chain and takes everybody; its port."""
    context = stranger(server_side=True, chain=chain, key=key)
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def serve() -> None:
            while True:
                try:
                    plain, _ = listening.accept()
                except OSError:
                    return
                with plain:
                    plain.settimeout(60)
                    try:
                        with context.wrap_socket(plain, server_side=True) as tls:
                            tls.recv()
                    except OSError:
                        pass

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            listening.shutdown(socket.SHUT_RDWR)
            thread.join()


def say(agent: FakeWorkloadAPI, svid: X509SVID, *authorities: FakeAuthority) -> None:
    """Have the Workload API give this SVID, with the bundles of these authorities."""
    own = [authority for authority in authorities if authority.trust_domain == svid.id.trust_domain]
    bundle = TrustBundle(svid.id.trust_domain, tuple(authority.root for authority in own))
    agent.x509.say(said(entry(svid, bundle), federated=[one.bundle() for one in authorities if one not in own]))


def token(issuer: TokenIssuer = ISSUER, *, header: dict[str, JSON] | None = None, **changes: JSON) -> str:
    now = int(datetime.now(UTC).timestamp())
    payload: dict[str, JSON] = {"sub": WEB, "aud": [DB], "exp": now + 300, "iat": now}
    said_of_it = {name: value for name, value in (payload | changes).items() if value is not None}
    return issuer.sign(said_of_it, header=header)


def jwt_svids(request: messages.JWTSVIDRequest, context: Context) -> messages.JWTSVIDResponse:
    if request.spiffe_id not in {"", DB}:
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "no identity issued")
    svid = token(sub=DB, aud=[*request.audience])
    return messages.JWTSVIDResponse(svids=[messages.JWTSVID(spiffe_id=DB, svid=svid)])


def new_agent(folder: Path) -> FakeWorkloadAPI:
    agent = FakeWorkloadAPI(folder / "agent.sock")
    say(agent, LOCAL.svid("/ns/default/sa/db"), LOCAL, FEDERATED)
    agent.jwt_bundles.say(jwt_bundles({"cluster.local": ISSUER, "partner.test": THEIRS}))
    agent.jwt_svids = jwt_svids
    return agent


@pytest.fixture(scope="module")
def harness(tmp_path_factory: pytest.TempPathFactory) -> Generator[Harness]:
    """A harness over an agent that changes nothing."""
    with new_agent(tmp_path_factory.mktemp("agent")) as agent, Harness(agent.address) as harness:
        harness.listens()
        assert harness.line() == "READY"
        yield harness


@pytest.fixture
def agent(tmp_path: Path) -> Generator[FakeWorkloadAPI]:
    with new_agent(tmp_path) as agent:
        yield agent


@pytest.fixture
def own_harness(agent: FakeWorkloadAPI) -> Generator[Harness]:
    """A harness of one test alone, with its own agent."""
    with Harness(agent.address) as harness:
        harness.listens()
        assert harness.line() == "READY"
        yield harness


class TestItsLife:
    def test_begins_before_the_socket_is_there_and_is_ready_with_the_first_svid(self, tmp_path: Path) -> None:
        agent = new_agent(tmp_path)
        with Harness(agent.address) as harness:
            harness.listens()
            assert harness.ask("/v1/info")[0] == 200
            assert harness.greeting(PEER.chain, PEER.private_key) == b""
            with agent:
                assert harness.line() == "READY"
                assert harness.greeting(PEER.chain, PEER.private_key) == f"{WEB}\n".encode()
                assert harness.end() == (0, "")

    def test_ends_by_sigterm_while_it_waits_and_while_peers_are_silent(self, tmp_path: Path) -> None:
        with Harness(f"unix://{tmp_path}/nobody.sock") as harness:
            harness.listens()
            assert harness.end() == (0, "")
        with new_agent(tmp_path) as agent, Harness(agent.address) as harness, ExitStack() as held:
            harness.listens()
            assert harness.line() == "READY"
            for port in (harness.x509_port, harness.control_port):
                held.enter_context(socket.create_connection(("127.0.0.1", port)))
            silent = held.enter_context(socket.create_server(("127.0.0.1", 0)))
            with ThreadPoolExecutor() as threads:
                dialling = threads.submit(harness.dial, silent.getsockname()[1])
                held.enter_context(silent.accept()[0])
                began = time.monotonic()
                assert harness.end() == (0, "")
                assert time.monotonic() - began < PATIENCE.total_seconds() - 5
                dialling.exception(60)

    @pytest.mark.parametrize("address", [None, "unix://host/agent.sock"])
    def test_does_not_begin_without_an_address(self, address: str | None) -> None:
        with Harness(address) as harness:
            out, err = harness.process.communicate(timeout=60)
            assert (harness.process.returncode, out) == (1, "")
            assert err.startswith("harness: ")


class TestTheX509Port:
    @pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda one: one.name)
    def test_tells_each_peer_who_it_is(self, harness: Harness, version: ssl.TLSVersion) -> None:
        for authority, name in ((LOCAL, WEB), (FEDERATED, "spiffe://partner.test/ns/default/sa/web")):
            peer = authority.svid()
            assert harness.greeting(peer.chain, peer.private_key, version=version) == f"{name}\n".encode()

    @pytest.mark.parametrize("vector", PRESENTABLE.values(), ids=list(PRESENTABLE))
    def test_says_nothing_to_a_peer_with_a_fault(self, harness: Harness, vector: Vector) -> None:
        wrong = vector.wrong
        if vector.name == "not-yet-valid":  # its time has come since
            wrong = LOCAL.chain(LOCAL.leaf(not_before=datetime.now(UTC) + timedelta(minutes=1)), key=KEY)
        assert harness.greeting(wrong, key_of(wrong)) == b""
        assert re.fullmatch(rb"spiffe://[a-z./]+\n", harness.greeting(vector.mended))

    def test_tells_a_peer_that_will_say_nothing_itself(self, harness: Harness) -> None:
        context = stranger(server_side=False, chain=PEER.chain, key=PEER.private_key)
        context.minimum_version = ssl.TLSVersion.TLSv1_3  # before, both directions end together
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls, closing = context.wrap_bio(incoming, outgoing), False
        with socket.create_connection(("127.0.0.1", harness.x509_port), timeout=60) as plain:
            while not closing:
                try:
                    tls.do_handshake()
                    closing = True
                    tls.unwrap()  # its last word goes with the last of the handshake
                except ssl.SSLWantReadError:
                    pass
                plain.sendall(outgoing.read())
                incoming.write(plain.recv(1 << 16))
            while True:
                with suppress(ssl.SSLWantReadError):
                    assert tls.read() == f"{WEB}\n".encode()
                    break
                incoming.write(plain.recv(1 << 16))

    def test_says_nothing_over_old_tls(self, harness: Harness) -> None:
        context = stranger(server_side=False, chain=PEER.chain, key=PEER.private_key)
        with pytest.warns(DeprecationWarning, match="TLSv1"):
            context.minimum_version, context.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
        refused = pytest.raises((ssl.SSLError, ConnectionError))
        with socket.create_connection(("127.0.0.1", harness.x509_port)) as plain, refused:
            context.wrap_socket(plain)

    def test_serves_others_while_some_are_half_open_or_stall(self, harness: Harness) -> None:
        hello = client_hello()
        with ExitStack() as held:
            for place in range(200):
                peer = held.enter_context(socket.create_connection(("127.0.0.1", harness.x509_port)))
                peer.sendall(hello[: place % 4 * 50])  # nothing, or a part of a handshake
            began = time.monotonic()
            assert harness.greeting(PEER.chain, PEER.private_key) == f"{WEB}\n".encode()
            assert time.monotonic() - began < 30  # half of what a stalled handshake has

    def test_serves_many_at_once(self, harness: Harness) -> None:
        def greet(_place: int) -> bytes:
            return harness.greeting(PEER.chain, PEER.private_key)

        with ThreadPoolExecutor(30) as threads:
            assert set(threads.map(greet, range(60))) == {f"{WEB}\n".encode()}

    @pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
    def test_serves_openssl(self, harness: Harness, tmp_path: Path, version: str) -> None:
        files = openssl_files(tmp_path, PEER)
        told = s_client(harness.x509_port, version, *files, "-CAfile", tmp_path / "root.pem", "-verify_return_error")
        assert told.stdout == f"{WEB}\n"
        assert s_client(harness.x509_port, version).stdout == ""
        strange = STRANGER.svid()
        assert s_client(harness.x509_port, version, *openssl_files(tmp_path, strange)).stdout == ""


class TestDialling:
    @pytest.mark.parametrize("vector", PRESENTABLE.values(), ids=list(PRESENTABLE))
    def test_refuses_a_server_with_a_fault(self, harness: Harness, vector: Vector) -> None:
        wrong = vector.wrong
        if vector.name == "not-yet-valid":  # its time has come since
            wrong = LOCAL.chain(LOCAL.leaf(not_before=datetime.now(UTC) + timedelta(minutes=1)), key=KEY)
        with serving(wrong, key_of(wrong)) as port:
            status, answer = harness.dial(port)
        assert (status, list(answer)) == (422, ["error"])
        assert answer["error"]
        with serving(vector.mended) as port:
            status, answer = harness.dial(port)
        assert (status, list(answer)) == (200, ["spiffe_id"])

    def test_tells_who_openssl_is(self, harness: Harness, tmp_path: Path) -> None:
        server = LOCAL.svid("/ns/default/sa/openssl")
        command = ["openssl", "s_server", "-accept", "127.0.0.1:0", *openssl_files(tmp_path, server)]
        with subprocess.Popen(
            [*map(str, command)], stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True
        ) as process:
            assert process.stdout is not None
            line = next(line for line in process.stdout if line.startswith("ACCEPT"))
            try:
                answer = harness.dial(int(line.rpartition(":")[2]))
            finally:
                process.kill()
        assert answer == (200, {"spiffe_id": "spiffe://cluster.local/ns/default/sa/openssl"})

    def test_tells_itself(self, harness: Harness) -> None:
        assert harness.dial(harness.x509_port) == (200, {"spiffe_id": DB})

    def test_of_nobody_and_of_no_tls_is_refused(self, harness: Harness) -> None:
        for nobody in (closed_port(), harness.control_port):
            status, answer = harness.dial(nobody)
            assert (status, list(answer)) == (422, ["error"])

    def test_does_not_wait_for_another_that_stalls(self, harness: Harness) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent, ThreadPoolExecutor(1) as threads:
            stalled = threads.submit(harness.dial, silent.getsockname()[1])
            connection, _ = silent.accept()
            assert harness.dial(harness.x509_port)[0] == 200
            assert not stalled.done()
            connection.close()
            assert stalled.result(60)[0] == 422


class TestTokens:
    def validate(self, harness: Harness, text: str, audience: str = DB) -> Answer:
        return harness.ask("/v1/jwt/validate", {"token": text, "audience": audience})

    def test_that_are_good_tell_their_subject_and_claims(self, harness: Harness) -> None:
        status, answer = self.validate(harness, token(nested={"a": [1, None]}))
        assert (status, answer["spiffe_id"], sorted(answer)) == (200, WEB, ["claims", "spiffe_id"])
        assert (answer["claims"]["nested"], answer["claims"]["aud"]) == ({"a": [1, None]}, [DB])
        theirs = token(THEIRS, sub="spiffe://partner.test/x", header={"kid": None}, aud=DB)
        assert self.validate(harness, theirs)[1]["spiffe_id"] == "spiffe://partner.test/x"

    def test_with_a_fault_are_refused(self, harness: Harness) -> None:
        good, past = token(), int(time.time()) - 300
        wrong = {
            "no token": "x",
            "nothing": "",
            "1 MB": good + "A" * (1 << 20),
            "header": token(header={"jku": "https://evil.test"}),
            "type": token(header={"typ": "at+jwt"}),
            "algorithm": token(header={"alg": "HS256"}),
            "expired": token(exp=past),
            "not yet": token(nbf=past + 600),
            "no end": token(exp=None),
            "audience": token(aud="other"),
            "subject": token(sub="https://x"),
            "federated key": token(THEIRS),
            "local key": token(sub="spiffe://partner.test/x"),
            "foreign": token(sub="spiffe://elsewhere.test/x"),
            "cut": good[:-10],
        }
        for name, text in wrong.items():
            status, answer = self.validate(harness, text)
            assert (status, list(answer)) == (422, ["error"]), name
        assert self.validate(harness, good, "other")[0] == 422
        assert self.validate(harness, good, "")[0] == 422
        assert self.validate(harness, good)[0] == 200

    def test_are_fetched(self, harness: Harness) -> None:
        for asked in ({"audience": ["vault"]}, {"audience": ["vault"], "spiffe_id": DB}):
            status, answer = harness.ask("/v1/jwt/fetch", asked)  # type: ignore[arg-type]  # a dictionary is JSON
            assert (status, answer["spiffe_id"], answer["claims"]["aud"]) == (200, DB, ["vault"])
            assert self.validate(harness, answer["token"], "vault")[0] == 200

    @pytest.mark.parametrize(
        "asked",
        [
            {"audience": []},
            {"audience": [""]},
            {"audience": ["vault"], "spiffe_id": WEB},
            {"audience": ["vault"], "spiffe_id": "https://x"},
        ],
        ids=str,
    )
    def test_that_the_library_does_not_fetch_are_refused(self, harness: Harness, asked: dict[str, JSON]) -> None:
        status, answer = harness.ask("/v1/jwt/fetch", asked)
        assert (status, list(answer)) == (422, ["error"])


class TestTheControlPort:
    def test_says_what_it_is(self, harness: Harness) -> None:
        status, answer = harness.ask("/v1/info")
        assert (status, answer["name"], answer["harness_version"]) == (200, "istio-auth", 1)

    @pytest.mark.parametrize("path", ["/v1/x509/dial", "/v1/jwt/validate", "/v1/jwt/fetch"])
    @pytest.mark.parametrize("body", [b"", b"{", b"[]", b"null", b"{}", b"\xff", b'{"a":1,"a":2}', b"<html>"], ids=repr)
    def test_takes_no_other_form(self, harness: Harness, path: str, body: bytes) -> None:
        status, answer = harness.ask(path, body)
        assert (status, list(answer)) == (400, ["error"])

    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/v1/x509/dial", {"address": 7}),
            ("/v1/x509/dial", {"address": "127.0.0.1"}),
            ("/v1/x509/dial", {"address": ":443"}),
            ("/v1/x509/dial", {"address": "127.0.0.1:0"}),
            ("/v1/x509/dial", {"address": "127.0.0.1:99999"}),
            ("/v1/jwt/validate", {"token": "x"}),
            ("/v1/jwt/validate", {"audience": "x"}),
            ("/v1/jwt/validate", {"token": "x", "audience": ["x"]}),
            ("/v1/jwt/fetch", {"spiffe_id": WEB}),
            ("/v1/jwt/fetch", {"audience": "x"}),
            ("/v1/jwt/fetch", {"audience": [7]}),
            ("/v1/jwt/fetch", {"audience": ["x"], "spiffe_id": 7}),
        ],
        ids=str,
    )
    def test_takes_no_other_fields(self, harness: Harness, path: str, body: dict[str, JSON]) -> None:
        status, answer = harness.ask(path, body)
        assert (status, list(answer)) == (400, ["error"])

    def test_has_these_paths_and_methods_and_no_others(self, harness: Harness) -> None:
        for path in ("/", "/v1", "/v1/info/", "/v2/info", "/v1/x509"):
            assert harness.ask(path)[0] == 404
            assert harness.ask(path, b"{}")[0] == 404
        assert harness.ask("/v1/info", b"{}")[0] == 405
        for path in ("/v1/x509/dial", "/v1/jwt/validate", "/v1/jwt/fetch"):
            for method in ("GET", "PUT", "DELETE"):
                assert harness.ask(path, method=method)[0] == 405


class TestWhatTheAgentChanges:
    def test_holds_from_the_next_handshake(self, own_harness: Harness, agent: FakeWorkloadAPI) -> None:
        harness, peer = own_harness, STRANGER.svid()
        with serving(STRANGER.chain(key=KEY)) as port:
            before = harness.presents()
            assert harness.greeting(peer.chain, peer.private_key) == b""
            assert harness.dial(port)[0] == 422
            say(agent, STRANGER.svid("/new"), LOCAL, STRANGER)  # a new root, beside the old one, and a new SVID
            wait_for(lambda: harness.presents() not in {before, b""})
            assert harness.greeting(peer.chain, peer.private_key) == f"{WEB}\n".encode()
            assert harness.dial(port) == (200, {"spiffe_id": WEB})
            assert harness.dial(harness.x509_port)[1] == {"spiffe_id": "spiffe://cluster.local/new"}
            say(agent, STRANGER.svid("/newer"), STRANGER)  # without the old root
            wait_for(lambda: harness.dial(harness.x509_port)[1] == {"spiffe_id": "spiffe://cluster.local/newer"})
            assert harness.greeting(PEER.chain, PEER.private_key) == b""
            assert harness.greeting(peer.chain, peer.private_key) == f"{WEB}\n".encode()

    def test_takes_a_federated_bundle_away(self, own_harness: Harness, agent: FakeWorkloadAPI) -> None:
        peer = FEDERATED.svid()
        assert own_harness.greeting(peer.chain, peer.private_key)
        say(agent, LOCAL.svid("/alone"), LOCAL)
        wait_for(lambda: own_harness.greeting(peer.chain, peer.private_key) == b"")
        assert own_harness.greeting(PEER.chain, PEER.private_key)

    def test_takes_everything_away_and_gives_it_back(self, own_harness: Harness, agent: FakeWorkloadAPI) -> None:
        harness = own_harness
        asked: JSON = {"token": token(), "audience": DB}
        assert harness.ask("/v1/jwt/validate", asked)[0] == 200
        agent.x509.refuse(grpc.StatusCode.PERMISSION_DENIED)
        agent.jwt_bundles.refuse(grpc.StatusCode.PERMISSION_DENIED)
        wait_for(lambda: harness.presents() == b"")
        with serving(LOCAL.chain(key=KEY)) as port:
            status, answer = harness.dial(port)
            assert status == 422
            assert "no identity" in answer["error"]
        say(agent, LOCAL.svid("/again"), LOCAL)
        wait_for(lambda: harness.greeting(PEER.chain, PEER.private_key))
        agent.jwt_bundles.say(jwt_bundles({"cluster.local": ISSUER}))
        wait_for(lambda: harness.ask("/v1/jwt/validate", asked)[0] == 200)
        assert harness.end() == (0, "")

    def test_and_its_absence_change_nothing_at_once(self, own_harness: Harness, agent: FakeWorkloadAPI) -> None:
        asked: JSON = {"audience": ["vault"]}
        first = own_harness.ask("/v1/jwt/fetch", asked)
        agent.stop()
        assert own_harness.greeting(PEER.chain, PEER.private_key) == f"{WEB}\n".encode()
        assert own_harness.ask("/v1/jwt/fetch", asked) == first
        assert own_harness.ask("/v1/jwt/fetch", {"audience": ["other"]})[0] == 422
        assert own_harness.ask("/v1/jwt/validate", {"token": token(), "audience": DB})[0] == 200


def wait_for(condition: Callable[[], object]) -> None:
    asyncio.run(until(condition, within=60))


def client_hello() -> bytes:
    """The first bytes of a handshake."""
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    tls = stranger(server_side=False).wrap_bio(incoming, outgoing)
    with pytest.raises(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def openssl_files(folder: Path, svid: X509SVID) -> tuple[object, ...]:
    """An SVID in the files that openssl takes, as its options."""
    names = [folder / name for name in ("chain.pem", "key.pem", "root.pem")]
    for path, content in zip(names, (svid.chain_pem(), svid.key_pem(), LOCAL.bundle().to_pem()), strict=True):
        path.touch(0o600)
        path.write_bytes(content)
    return "-cert", names[0], "-key", names[1], "-cert_chain", names[0]


def s_client(port: int, *options: object) -> subprocess.CompletedProcess[str]:
    """What openssl's client makes of a server that speaks first."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-quiet", *map(str, options)]
    return subprocess.run(command, input="", capture_output=True, text=True, check=False, timeout=60)
