"""A source that is lost for an hour: its last good SVID serves until it ends, and then nobody is shown it."""

from __future__ import annotations

import logging
import socket
from datetime import timedelta

import pytest

from istio_auth.authorize import any_id
from istio_auth.errors import NotReady
from istio_auth.peer import HandshakeRefused, PeerRefused
from istio_auth.sources.memory import MemorySource
from istio_auth.tls import client_context, server_context
from tests.fakes.authority import HOUR, FakeAuthority
from tests.fakes.clock import FakeClock
from tests.fakes.tcp import pair
from tests.fakes.tls import End, meet, talk
from tests.unit.tls.test_following import OLD, Mesh, trusting


def long_lived() -> Mesh:
    """Peers whose own SVIDs do not end in the meantime."""
    mesh = Mesh()
    for name, source in mesh.sources():
        source.replace(trusting(OLD.svid(name, not_after=OLD.now + 50 * HOUR), OLD))
    return mesh


@pytest.mark.parametrize("side", ["client", "server"])
def test_it_serves_until_its_end_and_then_the_reason_is_told_on_our_side(
    side: str, caplog: pytest.LogCaptureFixture
) -> None:
    clock, mesh = FakeClock(OLD.now), long_lived()
    ours = MemorySource(trusting(OLD.svid(f"/{side}", not_after=OLD.now + HOUR), OLD))
    make = client_context if side == "client" else server_context
    context = make(ours, any_id(), clock=clock)

    def met() -> tuple[End, End]:
        """Ours first."""
        if side == "client":
            return meet(context, mesh.server)
        return meet(mesh.client, context)[::-1]

    for minutes in (0, 30, 30):  # the last instant belongs to it
        clock.advance(timedelta(minutes=minutes))
        ends = met()
        talk(*(ends if side == "client" else ends[::-1]))
    assert not caplog.records
    clock.advance(timedelta(seconds=1))
    refusing, other = met()
    assert isinstance(refusing.refusal, NotReady)
    assert not isinstance(refusing.error, PeerRefused)  # it is not the peer's fault
    for said in (f"spiffe://cluster.local/{side}", f"ended {OLD.now + HOUR:%F %T} UTC", "brought no other"):
        assert said in str(refusing.refusal)
    assert not other.done
    assert not isinstance(other.error, HandshakeRefused)  # it was shown nothing that it could have refused
    for attempt in (refusing.tls.read, lambda: refusing.tls.write(b"word")):
        with pytest.raises(HandshakeRefused):
            attempt()
    met()
    told = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(told) == 1  # a thousand connections fill no log
    assert "brought no other" in told[0].getMessage()
    ours.replace(trusting(OLD.svid(f"/{side}", not_after=OLD.now + 2 * HOUR), OLD))
    ends = met()
    talk(*(ends if side == "client" else ends[::-1]))


def test_the_intermediate_that_ends_first_ends_it() -> None:
    clock, mesh = FakeClock(OLD.now), long_lived()
    between = FakeAuthority(parent=OLD, now=OLD.now, lifetime=HOUR)
    server = server_context(
        MemorySource(trusting(between.svid("/server", not_after=OLD.now + 2 * HOUR), OLD)), any_id(), clock=clock
    )
    clock.advance(HOUR)
    talk(*meet(mesh.client, server))
    clock.advance(timedelta(seconds=1))
    assert "brought no other" in str(meet(mesh.client, server)[1].refusal)


def test_blocking_sockets_and_those_that_were_wrapped_before_are_told_the_same() -> None:
    clock, mesh = FakeClock(OLD.now), Mesh()
    early = client_context(mesh.client_source, any_id(), clock=clock).wrap_socket(socket.socket())
    clock.advance(2 * HOUR)
    with (
        socket.create_server(("127.0.0.1", 0)) as listener,
        early,
        pytest.raises(HandshakeRefused, match="brought no other"),
    ):
        early.connect(listener.getsockname())
    with pair() as (_, accepted), pytest.raises(HandshakeRefused, match="brought no other"):
        server_context(mesh.server_source, any_id(), clock=clock).wrap_socket(accepted, server_side=True)
