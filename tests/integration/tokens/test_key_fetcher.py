"""Keys over real HTTPS from servers that misbehave: each fault is refused for its own reason, and mended it passes."""

from __future__ import annotations

import asyncio
import json
import re
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from istio_auth.authorize import is_id
from istio_auth.errors import IstioAuthError, MalformedError, NotReady
from istio_auth.sources.memory import MemorySource
from istio_auth.spiffe_id import SpiffeID
from istio_auth.strict_json import JSON
from istio_auth.tls import client_context, server_context
from istio_auth.tokens.fetch import MAX_BYTES, FetchedKeys, KeyFetcher
from istio_auth.tokens.key_sources import DISCOVERY, DiscoveredKeys, RemoteKeys, TLSFiles
from tests.fakes.key_server import (
    KEYS,
    Answer,
    KeyServer,
    client_files,
    compressed,
    cut_off,
    dripping,
    endless,
    says,
    silent,
)
from tests.fakes.tcp import closed_port
from tests.fakes.token_issuer import TokenIssuer
from tests.fakes.waiting import until
from tests.vectors.x509_svid import BUNDLES, LOCAL

HTML = "<!DOCTYPE html>\n<html><title>Sign in</title></html>"
METADATA = "169.254.169.254"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[KeyServer]:
    async with KeyServer(tmp_path) as running:
        yield running


@contextmanager
def fetching(source: RemoteKeys | DiscoveredKeys, issuer: str = "https://issuer.test") -> Iterator[KeyFetcher]:
    fetcher = KeyFetcher(issuer, source)
    try:
        yield fetcher
    finally:
        fetcher.close()


async def fetch(source: RemoteKeys | DiscoveredKeys, issuer: str = "https://issuer.test") -> FetchedKeys:
    with fetching(source, issuer) as fetcher:
        async with asyncio.timeout(60):
            return await fetcher.fetch()


async def given_up(fetcher: KeyFetcher, asked: Callable[[], object]) -> None:
    """Give a fetch up that does not end, once the server has been asked."""
    fetch = asyncio.create_task(fetcher.fetch())
    await until(asked)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await fetch


async def refusal(source: RemoteKeys | DiscoveredKeys, issuer: str = "https://issuer.test") -> IstioAuthError:
    with pytest.raises((NotReady, MalformedError)) as caught:
        await fetch(source, issuer)
    return caught.value


async def test_keys_are_fetched_from_a_url(server: KeyServer) -> None:
    assert await fetch(server.remote()) == FetchedKeys(server.tokens.keys(), None)
    (request,) = server.requests
    assert request["Accept-Encoding"] == "identity"
    assert "Authorization" not in request
    assert "Cookie" not in request


async def test_keys_are_fetched_from_where_the_issuer_says(server: KeyServer) -> None:
    assert (await fetch(server.discovered(), server.tokens.issuer)).keys == server.tokens.keys()
    assert server.asked == [DISCOVERY, KEYS]


@pytest.mark.parametrize(
    ("said", "good_for"),
    [
        ("max-age=60", timedelta(minutes=1)),
        ("public, Max-Age=3600, must-revalidate", timedelta(hours=1)),
        ('max-age="60"', timedelta(minutes=1)),
        ("max-age=60, no-cache", timedelta()),
        ("no-store", timedelta()),
        ("s-maxage=60", None),
        ("max-age=soon", None),
        ("max-age=-1", None),
        ("public", None),
    ],
)
async def test_the_server_says_for_how_long_keys_are_good(
    server: KeyServer, said: str, good_for: timedelta | None
) -> None:
    server.headers["Cache-Control"] = said
    assert (await fetch(server.remote())).good_for == good_for


def many_keys(number: int) -> str:
    issuer = TokenIssuer()
    return json.dumps({"keys": [issuer.jwk(kid=str(place)) for place in range(number)]})


NO_KEY_SETS: dict[str, tuple[Answer, str]] = {
    "HTML": (says(HTML, content_type="text/html"), "HTML, not JSON"),
    "HTML that does not say so": (says(f"\n {HTML}"), "HTML, not JSON"),
    "nothing of HTML": (says("", content_type="text/html"), "HTML, not JSON"),
    "nothing": (says(""), "no JSON"),
    "half": (says("{"), "no JSON"),
    "no UTF-8": (says(b"\xff\xfe"), "no JSON"),
    "a list": (says("[]"), "array 'keys'"),
    "no keys": (says("{}"), "array 'keys'"),
    "keys that are no list": (says('{"keys": {}}'), "array 'keys'"),
    "a name twice": (says('{"keys": [], "keys": []}'), "a name occurs twice"),
    "no number": (says('{"keys": NaN}'), "NaN"),
    "deep nesting": (says(f'{{"keys": {"[" * 100_000}{"]" * 100_000}}}'), "no JSON"),
    "a long number": (says(f'{{"keys": [], "x": {"9" * 100_000}}}'), "no JSON"),
    "101 keys": (says(many_keys(101)), "at most 100 entries"),
    "10,000 keys": (says(many_keys(10_000)), f"more than {MAX_BYTES} bytes"),
    "10,000 empty entries": (says(json.dumps({"keys": [{}] * 10_000})), "at most 100 entries, this one 10000"),
    "a private key": (says(json.dumps({"keys": [{"kty": "EC", "d": "AQAB"}]})), "private half"),
    "404": (says("no", status=404), "status 404"),
    "500": (says("no", status=500), "status 500"),
    "203": (says('{"keys": []}', status=203), "status 203"),
    "302": (says("", status=302, Location="https://elsewhere.test/keys"), "redirects to 'https://elsewhere.test/keys'"),
    "301": (says("", status=301, Location="/other"), "redirects are not followed"),
    "307 to metadata": (says("", status=307, Location=f"http://{METADATA}/"), f"redirects to 'http://{METADATA}/'"),
    "308 to nowhere": (says("", status=308), "redirects are not followed"),
    "304": (says("", status=304), "redirects are not followed"),
    "gzip": (compressed(b"x" * 100_000_000), "answers in 'gzip'"),
    "no end": (endless(b"x" * 100_000), f"more than {MAX_BYTES} bytes"),
    "spaces without end": (endless(b" " * 10_000), f"more than {MAX_BYTES} bytes"),
    "cut off": (cut_off(b'{"keys": []}', promised=1_000), "Not enough data"),
    "long header": (says('{"keys": []}', X_Long="x" * 20_000), "20000|8190|long"),
}


@pytest.mark.parametrize(("answer", "reason"), NO_KEY_SETS.values(), ids=NO_KEY_SETS.keys())
async def test_an_answer_that_is_no_key_set_is_refused(server: KeyServer, answer: Answer, reason: str) -> None:
    server.misbehave(answer)
    error = await refusal(server.remote())
    assert server.url in str(error)
    assert re.search(reason, str(error)), str(error)
    server.behave()
    assert (await fetch(server.remote())).keys == server.tokens.keys()
    assert server.asked == [KEYS, KEYS], "and nothing else was asked for"


@pytest.mark.parametrize("answer", [silent, dripping(b'{"keys": ['), dripping(b"")], ids=["silent", "dripping", "late"])
async def test_an_answer_that_does_not_end_is_given_up_by_who_waits(server: KeyServer, answer: Answer) -> None:
    server.misbehave(answer)
    with fetching(server.remote()) as fetcher:
        await given_up(fetcher, lambda: server.asked)
        await until(lambda: server.gone)
        server.behave()
        assert (await fetcher.fetch()).keys == server.tokens.keys()


async def test_unknown_kinds_and_duplicate_names_spoil_nothing(server: KeyServer) -> None:
    good = server.tokens.jwk()
    entries: list[JSON] = [
        {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AA"},
        {"kty": "oct", "k": "AA", "kid": server.tokens.key_id},
        7,
        TokenIssuer(place=5).jwk(kid=server.tokens.key_id),
        good,
        good,
    ]
    server.keys = json.dumps({"keys": entries, "other": "member"})
    keys = (await fetch(server.remote())).keys
    assert len(keys.named(server.tokens.key_id)) == 2
    assert len(keys.left_out) == 3


class TestADiscoveryDocument:
    @pytest.mark.parametrize(
        ("changes", "reason"),
        [
            ({"issuer": "https://elsewhere.test"}, "it is about the issuer 'https://elsewhere.test'"),
            ({"issuer": None}, "it is about the issuer 'None'"),
            ({"issuer": ["https://issuer.test"]}, "it is about the issuer"),
            ({"jwks_uri": None}, "no 'jwks_uri'"),
            ({"jwks_uri": 7}, "no 'jwks_uri'"),
            ({"jwks_uri": "http://localhost/keys"}, "no https URL"),
            ({"jwks_uri": "file:///etc/passwd"}, "no https URL"),
            ({"jwks_uri": "/keys"}, "no https URL"),
            ({"jwks_uri": "https://user:word@localhost/keys"}, "no user name"),
            ({"jwks_uri": f"https://{METADATA}/keys"}, "link-local"),
            ({"jwks_uri": f"https://[::ffff:{METADATA}]/keys"}, "link-local"),
            ({"jwks_uri": "https://[fe80::1]/keys"}, "link-local"),
            ({"jwks_uri": "https://[fd00:ec2::254]/keys"}, "metadata"),
            ({"jwks_uri": "https://2852039166/keys"}, "canonical|2852039166"),
            ({"jwks_uri": "https://0xa9fea9fe/keys"}, "link-local|0xa9fea9fe"),
        ],
    )
    async def test_is_about_its_issuer_and_names_a_place_for_keys(
        self, server: KeyServer, changes: dict[str, JSON], reason: str
    ) -> None:
        issuer, good = server.tokens.issuer, dict(server.document)
        server.document = {name: value for name, value in (good | changes).items() if value is not None}
        error = await refusal(server.discovered(), issuer)
        assert re.search(reason, str(error)), str(error)
        server.document = good
        assert (await fetch(server.discovered(), issuer)).keys.keys

    async def test_may_have_its_issuers_slash(self, server: KeyServer) -> None:
        issuer = f"{server.tokens.issuer}/"
        assert "not about" in str(await refusal(server.discovered(), issuer))
        server.document["issuer"] = issuer
        assert (await fetch(server.discovered(), issuer)).keys.keys

    @pytest.mark.parametrize(
        "answer",
        [says(HTML, content_type="text/html"), says("[]"), says("", status=302)],
        ids=["HTML", "list", "redirect"],
    )
    async def test_is_as_bounded_as_the_keys(self, server: KeyServer, answer: Answer) -> None:
        server.misbehave(answer, DISCOVERY)
        await refusal(server.discovered(), server.tokens.issuer)
        assert server.asked == [DISCOVERY]

    async def test_that_does_not_end_is_given_up_like_keys(self, server: KeyServer) -> None:
        server.misbehave(silent, DISCOVERY)
        with fetching(server.discovered(), server.tokens.issuer) as fetcher:
            await given_up(fetcher, lambda: server.asked)
        assert server.asked == [DISCOVERY]


class TestTheServerIsKnown:
    async def test_by_its_own_ca_alone(self, server: KeyServer, tmp_path: Path) -> None:
        async with KeyServer(tmp_path) as other:
            for tls in (TLSFiles(), other.files):
                assert "certificate verify failed" in str(await refusal(replace(server.remote(), tls=tls)))
        assert (await fetch(server.remote())).keys.keys
        assert server.asked == [KEYS]

    async def test_by_its_name(self, server: KeyServer) -> None:
        source = RemoteKeys(f"https://127.0.0.1:{server.port}{KEYS}", server.files, allow_loopback=True)
        assert "certificate verify failed" in str(await refusal(source))

    async def test_by_a_file_that_may_be_replaced(self, server: KeyServer) -> None:
        right = server.ca.read_bytes()
        server.ca.write_bytes(b"no certificate")
        with fetching(server.remote()) as fetcher:
            with pytest.raises(NotReady):
                await fetcher.fetch()
            server.ca.unlink()
            with pytest.raises(NotReady, match="No such file"):
                await fetcher.fetch()
            server.ca.write_bytes(right)
            assert (await fetcher.fetch()).keys.keys

    async def test_and_knows_us_by_a_certificate(self, tmp_path: Path) -> None:
        async with KeyServer(tmp_path, client_ca=LOCAL) as server:
            assert isinstance(await refusal(server.remote()), NotReady)
            assert server.asked == []
            files = client_files(tmp_path, LOCAL, server.ca)
            assert (await fetch(replace(server.remote(), tls=files))).keys == server.tokens.keys()

    async def test_and_nobody_is_asked_for_the_password_of_our_key(self, tmp_path: Path) -> None:
        async with KeyServer(tmp_path, client_ca=LOCAL) as server:
            files = client_files(tmp_path, LOCAL, server.ca, password=b"word")
            assert isinstance(await refusal(replace(server.remote(), tls=files)), NotReady)

    async def test_by_its_spiffe_id_behind_mutual_tls_of_ours(self, tmp_path: Path) -> None:
        keys_id, other_id = (SpiffeID.parse(f"spiffe://cluster.local/{name}") for name in ("keys", "other"))
        theirs, ours = (MemorySource.of(LOCAL.svid(path), *BUNDLES) for path in ("/keys", "/web"))
        tls = server_context(theirs, is_id(SpiffeID.parse("spiffe://cluster.local/web")))
        async with KeyServer(tmp_path, tls=tls) as server:
            for expected in (other_id, keys_id):
                source = replace(server.remote(), tls=client_context(ours, is_id(expected)))
                if expected == keys_id:
                    assert (await fetch(source)).keys == server.tokens.keys()
                else:
                    assert isinstance(await refusal(source), NotReady)


class TestAddresses:
    async def test_this_machine_is_asked_for_who_allows_it(self, server: KeyServer) -> None:
        for host in ("localhost", "127.0.0.1"):
            source = RemoteKeys(f"https://{host}:{server.port}{KEYS}", server.files)
            assert "allow_loopback" in str(await refusal(source))
        assert server.asked == []
        assert (await fetch(server.remote())).keys.keys

    @pytest.mark.parametrize("address", [METADATA, "::ffff:169.254.169.254", "fe80::1", "100.100.100.200", "0.0.0.0"])
    async def test_a_name_that_leads_to_metadata_is_not_followed(
        self, monkeypatch: pytest.MonkeyPatch, address: str
    ) -> None:
        dialled = record_sockets(monkeypatch)
        resolve_to(monkeypatch, [address])
        error = await refusal(RemoteKeys("https://harmless.test/keys", allow_loopback=True))
        assert "where no keys are fetched" in str(error)
        assert not dialled

    async def test_a_name_that_also_leads_to_metadata_is_followed_to_the_other_address(
        self, server: KeyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        resolve_to(monkeypatch, [METADATA, "127.0.0.1"])
        assert (await fetch(server.remote())).keys == server.tokens.keys()

    async def test_what_was_judged_is_what_is_dialled(self, server: KeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
        """A name that means another address at each look is looked up once, and that address is judged and dialled."""
        answers = [["127.0.0.1"], [METADATA]]
        asked = resolve_to(monkeypatch, *answers)
        assert (await fetch(server.remote())).keys == server.tokens.keys()
        assert asked == ["localhost"]
        assert "link-local" in str(await refusal(server.remote()))

    async def test_a_name_that_leads_nowhere_is_a_trouble(self) -> None:
        assert isinstance(await refusal(RemoteKeys("https://nothing.invalid/keys")), NotReady)

    async def test_nobody_there_is_a_trouble(self, server: KeyServer) -> None:
        source = RemoteKeys(f"https://localhost:{closed_port()}/keys", server.files, allow_loopback=True)
        assert isinstance(await refusal(source), NotReady)

    async def test_no_proxy_of_the_environment_gets_to_see_anything(
        self, server: KeyServer, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("https_proxy", "HTTPS_PROXY", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{closed_port()}")
        assert (await fetch(server.remote())).keys == server.tokens.keys()


async def test_a_key_set_of_a_server_that_speaks_no_tls_is_refused() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n" + b'{"keys": []}')
        writer.close()

    async with await asyncio.start_server(plain, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        error = await refusal(RemoteKeys(f"https://localhost:{port}/keys", allow_loopback=True))
        assert isinstance(error, NotReady)


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 200 OK\r\nfirst\x1b[31m: line\r\n\r\n",
        b"HTTP/1.1 2\x1b[31m00 OK\r\n\r\n",
        b"no HTTP at all\r\n\r\nnext line",
        b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nx\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n{}",
        b"",
    ],
)
async def test_a_server_that_speaks_another_language_writes_nothing_into_logs(server: KeyServer, answer: bytes) -> None:
    async def answers(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(answers, "127.0.0.1", 0, ssl=server.tls) as listening:
        port = listening.sockets[0].getsockname()[1]
        error = await refusal(RemoteKeys(f"https://localhost:{port}/keys", server.files, allow_loopback=True))
        assert isinstance(error, NotReady)
        assert str(error).isprintable()


async def test_a_server_that_takes_the_call_and_says_nothing_is_given_up_by_who_waits() -> None:
    called, ended = asyncio.Event(), asyncio.Event()

    async def mute(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        called.set()
        while await reader.read(1_000):
            pass
        writer.close()
        ended.set()

    async with await asyncio.start_server(mute, "127.0.0.1", 0) as listening:
        port = listening.sockets[0].getsockname()[1]
        source = RemoteKeys(f"https://localhost:{port}/keys", allow_loopback=True)
        with fetching(source) as fetcher:
            await given_up(fetcher, called.is_set)
        async with asyncio.timeout(60):
            await ended.wait()


def resolve_to(monkeypatch: pytest.MonkeyPatch, *answers: list[str]) -> list[str]:
    """Have every name lead to these addresses, at each look-up to the next ones; the names that were asked for."""
    asked: list[str] = []

    def getaddrinfo(host: str, port: int, *_rest: object) -> list[tuple[object, ...]]:
        addresses = answers[min(len(asked), len(answers) - 1)]
        asked.append(host)
        return [
            (socket.AF_INET6, socket.SOCK_STREAM, 6, "", (address, port, 0, 0))
            if ":" in address
            else (socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, port))
            for address in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


def record_sockets(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """The addresses to which a connection is tried from now on."""
    dialled: list[object] = []
    loop = asyncio.get_running_loop()

    async def sock_connect(_socket: socket.socket, address: object) -> None:
        dialled.append(address)
        raise OSError("not in a test")

    monkeypatch.setattr(loop, "sock_connect", sock_connect)
    return dialled
