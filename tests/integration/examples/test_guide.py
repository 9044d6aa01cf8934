"""Each piece of Python in the guide of the library runs, and does what the guide says."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import re
import ssl
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

import istio_auth
from istio_auth.authorize import is_id
from istio_auth.errors import Fault, NotAuthorized
from istio_auth.middleware.asgi import Application, Message, Scope
from istio_auth.peer import ASGI_EXTENSION, VerifiedPeer
from istio_auth.proto.workload_api_pb2 import JWTSVID, JWTSVIDRequest, JWTSVIDResponse
from istio_auth.spiffe_id import SpiffeID
from istio_auth.strict_json import JSON
from tests.fakes.svid_folder import SVIDFolder
from tests.fakes.token_issuer import TokenIssuer
from tests.fakes.workload_api import Context, FakeWorkloadAPI, entry, jwt_bundles, x509
from tests.integration.examples import servers
from tests.integration.examples.world import CLIENT, SERVER, World

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "library.md"
PIECES = re.findall(r"^```python\n(.*?)^```", GUIDE.read_text(), re.DOTALL | re.MULTILINE)


class Reader:
    """Somebody who copies a piece, with a folder and a port of his own."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder = folder
        SVIDFolder(folder).write(world.client.x509_context())

    def run(self, word: str, *, port: int = 8443) -> tuple[dict[str, object], str]:
        """Run the one piece with this word in it; what it defines, and what it prints."""
        (piece,) = [piece for piece in PIECES if word in piece]
        code = piece.replace("/etc/certs", str(self.folder)).replace("8443", str(port))
        names: dict[str, object] = {"__name__": "copied"}
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, str(GUIDE), "exec"), names)  # noqa: S102  # it is our own guide
        return names, printed.getvalue()


@pytest.fixture
def reader(tmp_path: Path, world: World) -> Reader:
    return Reader(tmp_path, world)


@pytest.fixture
def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeWorkloadAPI]:
    with FakeWorkloadAPI(tmp_path / "agent.sock") as running:
        monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", running.address)
        yield running


@pytest.fixture(autouse=True)
def levels_as_they_were() -> Iterator[None]:
    logger = logging.getLogger("istio_auth.tls")
    before = logger.level
    yield
    logger.setLevel(before)


def test_one_line_makes_a_context(reader: Reader) -> None:
    names, _ = reader.run("context = server_context")
    assert isinstance(names["context"], ssl.SSLContext)


async def test_a_client_tells_whom_it_is_connected_with(reader: Reader, world: World) -> None:
    async with servers.on_asyncio(world.server) as port:
        _, printed = await asyncio.to_thread(reader.run, "connected with", port=port)
    assert printed == f"connected with {SERVER}\n"


def test_who_waits_for_a_source_learns_its_name(reader: Reader, world: World, api: FakeWorkloadAPI) -> None:
    api.x509.say(x509(entry(world.client.svid(), world.authority.bundle())))
    assert reader.run("no identity")[1] == f"I am {CLIENT}\n"


def test_a_token_is_fetched_and_validated(reader: Reader, api: FakeWorkloadAPI) -> None:
    issuer = TokenIssuer()
    api.jwt_bundles.say(jwt_bundles({"cluster.local": issuer}))

    def answer(request: JWTSVIDRequest, _context: Context) -> JWTSVIDResponse:
        audiences: list[JSON] = list(request.audience)
        token = issuer.token(datetime.now(UTC), sub=str(CLIENT), aud=audiences)
        return JWTSVIDResponse(svids=[JWTSVID(spiffe_id=str(CLIENT), svid=token)])

    api.jwt_svids = answer
    assert reader.run("JWTSource")[1] == f"called by {CLIENT}\n"


def test_the_log_tells_refusals(reader: Reader) -> None:
    reader.run("setLevel")
    assert logging.getLogger("istio_auth.tls.judged").isEnabledFor(logging.DEBUG)


def test_metrics_are_shown(reader: Reader) -> None:
    assert f'istio_auth_source_ready{{source="shop",spiffe_id="{CLIENT}"}} 1.0' in reader.run("SourceMetrics")[1]


async def test_an_application_learns_whom_the_gateway_serves(reader: Reader) -> None:
    app = cast("Application", reader.run("IdentityMiddleware")[0]["app"])
    gateway = SpiffeID.parse("spiffe://cluster.local/ns/edge/sa/gateway")
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request"}

    async def send(message: Message) -> None:
        sent.append(message)

    scope: Scope = {
        "type": "http",
        "query_string": b"",
        "headers": [(b"x-forwarded-client-cert", f"By={gateway};URI={CLIENT}".encode())],
        "extensions": {ASGI_EXTENSION: VerifiedPeer(gateway, ())},
    }
    await app(scope, receive, send)
    assert sent[-1]["body"] == f"{CLIENT} on behalf of itself\n".encode()


def test_every_piece_is_run_here() -> None:
    words = ["context = server_context", "connected with", "no identity", "JWTSource", "setLevel"]
    assert all(any(word in piece for word in (*words, "SourceMetrics", "IdentityMiddleware")) for piece in PIECES)


def test_the_guide_quotes_refusals_as_they_are() -> None:
    quoted = set(re.findall(r"^\| \.\.\. `([^`]+)`", GUIDE.read_text(), re.MULTILINE))
    assert quoted - {fault.value for fault in Fault} == {"is refused: welcome is ..."}
    with pytest.raises(NotAuthorized, match="is refused: welcome is "):
        is_id(SERVER)(CLIENT)


def test_the_errors_that_the_guide_names_are_public() -> None:
    _, errors = GUIDE.read_text().split("## Errors")
    quoted = set(re.findall(r"`([A-Z][A-Za-z]+)`", errors.split("\n## ", maxsplit=1)[0]))
    assert quoted >= {"PeerRefused", "NotAuthorized", "NotAuthenticated", "ConfigurationError"}
    assert quoted <= {*dir(istio_auth)}
