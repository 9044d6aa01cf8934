"""What a handshake leaves behind for those who ask, and how a refusal looks to libraries."""

from __future__ import annotations

import asyncio
import copy
import ssl
import traceback

import pytest

from istio_auth.authorize import any_id
from istio_auth.errors import Code, Fault, NotAuthenticated, NotAuthorized, NotReady, VerificationError
from istio_auth.peer import (
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


def test_no_key_is_in_what_can_be_printed(source: MemorySource) -> None:
    client, server = meet(stranger(server_side=False), server_context(source, any_id()))
    assert server.error is not None
    shown = "".join(traceback.format_exception(server.error)) + repr(server.tls) + repr(copy.copy(server.error.args))
    assert "PRIVATE KEY" not in shown
    assert not client.error or "PRIVATE KEY" not in repr(client.error)
