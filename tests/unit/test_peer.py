"""What a handshake leaves behind for those who ask, and how a refusal looks to libraries."""

from __future__ import annotations

import asyncio
import copy
import pickle
import ssl
import traceback
from collections.abc import Callable
from datetime import timedelta
from types import SimpleNamespace

import pytest

from istio_auth.authorize import any_id
from istio_auth.errors import (
    Code,
    Fault,
    IstioAuthError,
    NotAuthenticated,
    NotAuthorized,
    NotReady,
    VerificationError,
)
from istio_auth.peer import (
    ASGI_EXTENSION,
    Connection,
    HandshakeRefused,
    JudgedConnection,
    PeerRefused,
    VerifiedPeer,
    peer_chain,
    peer_id,
    verified_peer,
)
from istio_auth.sources.memory import MemorySource
from istio_auth.tls import client_context, server_context
from tests.fakes.authority import FakeAuthority
from tests.fakes.tls import begin, meet, stranger


class Transport(asyncio.Transport):
    """An asyncio transport over whatever a test puts there."""

    def __init__(self, ssl_object: object) -> None:
        super().__init__({"ssl_object": ssl_object})


@pytest.fixture
def source(authority: FakeAuthority) -> MemorySource:
    return MemorySource.of(authority.svid(), authority.bundle())


def test_a_connection_and_what_asyncio_makes_of_it_tell_the_same(source: MemorySource) -> None:
    client, server = meet(client_context(source, any_id()), server_context(source, any_id()))
    for end in (client, server):
        for form in (end.tls, Transport(end.tls)):
            assert peer_id(form) == source.svid().id
            assert peer_chain(form)[0] == source.svid().leaf
            assert verified_peer(form) == VerifiedPeer(peer_id(form), peer_chain(form))
        assert isinstance(end.tls, JudgedConnection)


def in_scope(found: object) -> dict[str, object]:
    return {"type": "http", "extensions": {ASGI_EXTENSION: found}}


class Framework(dict[str, object]):
    """A request that is a mapping as well, as those of aiohttp and of ASGI frameworks are."""

    def __init__(self, **attributes: object) -> None:
        super().__init__(extensions={ASGI_EXTENSION: "set by the application"})
        self.__dict__ |= attributes


WRAPPINGS: dict[str, Callable[[JudgedConnection], object]] = {
    "a protocol": lambda tls: SimpleNamespace(transport=Transport(tls)),
    "an aiohttp request": lambda tls: Framework(transport=Transport(tls)),
    "a handler of http.server": lambda tls: SimpleNamespace(connection=tls, request=tls),
    "a handler of socketserver": lambda tls: SimpleNamespace(request=tls),
    "a connection of http.client": lambda tls: SimpleNamespace(sock=tls),
    "an ASGI scope": lambda tls: in_scope(tls.verified_peer()),
    "an ASGI request": lambda tls: Framework(scope=in_scope(tls.verified_peer())),
}


@pytest.mark.parametrize("wrap", WRAPPINGS.values(), ids=list(WRAPPINGS))
def test_what_came_over_a_connection_tells_its_peer(source: MemorySource, wrap: Callable[..., Connection]) -> None:
    client, server = meet(client_context(source, any_id()), server_context(source, any_id()))
    for end in (client, server):
        assert peer_id(wrap(end.tls)) == source.svid().id
        assert peer_chain(wrap(end.tls))[0] == source.svid().leaf


NOTHING: dict[str, Connection] = {
    "a request whose connection is closed": SimpleNamespace(transport=None),
    "a client that has not connected": SimpleNamespace(sock=None),
    "a scope of a server that tells nothing": {"type": "http", "headers": []},
    "a scope without our extension": {"type": "http", "extensions": {"tls": {"client_cert_name": "CN=admin"}}},
    "a scope with something else in our place": in_scope("spiffe://cluster.local/admin"),
    "an extension that is none": {"type": "http", "extensions": "istio_auth.peer"},
}


@pytest.mark.parametrize("nothing", NOTHING.values(), ids=list(NOTHING))
def test_what_came_over_no_connection_of_ours_tells_nobody(nothing: Connection) -> None:
    for ask in (verified_peer, peer_id, peer_chain):
        with pytest.raises(NotAuthenticated, match="no TLS that verifies SPIFFE peers"):
            ask(nothing)


def test_what_leads_round_in_a_circle_tells_nobody() -> None:
    circle = SimpleNamespace()
    circle.connection = circle
    with pytest.raises(NotAuthenticated, match="no TLS that verifies SPIFFE peers"):
        peer_id(circle)


def test_before_the_handshake_is_over_there_is_no_peer(source: MemorySource) -> None:
    client, server = begin(client_context(source, any_id()), server_context(source, any_id()))
    client.step()
    server.step()
    for end in (client, server):
        for ask in (verified_peer, peer_id, peer_chain):
            with pytest.raises(NotAuthenticated, match="not over"):
                ask(end.tls)


def test_a_refused_peer_is_no_peer(source: MemorySource) -> None:
    _, server = meet(stranger(server_side=False), server_context(source, any_id()))
    with pytest.raises(NotAuthenticated, match="presented no certificate"):
        peer_id(server.tls)


def test_a_peer_without_certificate_has_a_chain_of_nothing_and_no_id(source: MemorySource) -> None:
    server = server_context(source, any_id(), require_client_certificate=False)
    _, end = meet(stranger(server_side=False), server)
    assert peer_chain(end.tls) == ()
    with pytest.raises(NotAuthenticated, match="presented no certificate"):
        peer_id(end.tls)


def test_connections_of_others_prove_nothing(source: MemorySource) -> None:
    """Python's own TLS, and none at all: even if a certificate was verified there, no rule of ours was."""
    client, _ = meet(stranger(server_side=False), server_context(source, any_id(), require_client_certificate=False))
    assert client.done
    for connection in (client.tls, Transport(client.tls), Transport(None)):
        for ask in (verified_peer, peer_id, peer_chain):
            with pytest.raises(NotAuthenticated, match="no TLS that verifies"):
                ask(connection)


def test_a_refused_peer_is_a_failed_verification_to_every_library() -> None:
    error = PeerRefused(VerificationError(Fault.EXPIRED, "ended yesterday"))
    assert isinstance(error, HandshakeRefused)
    assert isinstance(error, ssl.SSLCertVerificationError)
    assert (error.errno, error.library, error.reason) == (ssl.SSL_ERROR_SSL, "ISTIO_AUTH", "NOT_AUTHENTICATED")
    assert error.verify_code == 1
    assert error.verify_message == "expired: ended yesterday"
    assert "expired: ended yesterday" in str(error)
    assert isinstance(error.reason_error, VerificationError)


def test_a_handshake_refused_for_a_reason_of_ours_blames_no_peer() -> None:
    error = HandshakeRefused(NotReady("no SVID has arrived yet"))
    assert isinstance(error, ssl.SSLError)
    assert not isinstance(error, ssl.SSLCertVerificationError)
    assert error.reason == "NOT_READY"
    assert "no SVID has arrived yet" in str(error)


def test_the_reason_keeps_its_meaning() -> None:
    assert PeerRefused(NotAuthorized("not welcome")).reason_error.code is Code.NOT_AUTHORIZED


def through_pickle(error: HandshakeRefused) -> HandshakeRefused:
    again = pickle.loads(pickle.dumps(error))  # noqa: S301  # our own bytes
    assert isinstance(again, HandshakeRefused)
    return again


@pytest.mark.parametrize("kind", [PeerRefused, HandshakeRefused])
@pytest.mark.parametrize("through", [copy.copy, copy.deepcopy, through_pickle])
@pytest.mark.parametrize(
    "reason",
    [
        VerificationError(Fault.EXPIRED, "ended yesterday"),
        NotAuthorized("not welcome", public="go away"),
        NotReady("later", retry_after=timedelta(seconds=3)),
    ],
)
def test_a_refusal_can_be_copied_and_sent_to_another_process(
    kind: type[HandshakeRefused], through: Callable[[HandshakeRefused], HandshakeRefused], reason: IstioAuthError
) -> None:
    error = kind(reason)
    again = through(error)
    assert type(again) is kind
    assert (str(again), again.errno, again.library, again.reason) == (str(error), 1, "ISTIO_AUTH", reason.code.name)
    assert type(again.reason_error) is type(reason)
    assert str(again.reason_error) == str(reason)
    assert (again.reason_error.public, again.reason_error.retry_after) == (reason.public, reason.retry_after)
    if isinstance(again, PeerRefused):
        assert again.verify_message == str(reason)
        assert again.verify_code == 1
    if isinstance(again.reason_error, VerificationError):
        assert again.reason_error.fault is Fault.EXPIRED


def test_no_key_is_in_what_can_be_printed(source: MemorySource) -> None:
    client, server = meet(stranger(server_side=False), server_context(source, any_id()))
    assert server.error is not None
    shown = "".join(traceback.format_exception(server.error)) + repr(server.tls) + repr(copy.copy(server.error.args))
    assert "PRIVATE KEY" not in shown
    assert not client.error or "PRIVATE KEY" not in repr(client.error)
