"""Sessions: a server of ours gives none away, and whoever resumes one all the same is judged again."""

from __future__ import annotations

import ssl

import pytest

from istio_auth.authorize import any_id, one_of
from istio_auth.bundle import BundleSet
from istio_auth.errors import Fault, NotAuthorized, VerificationError
from istio_auth.sources.memory import MemorySource
from istio_auth.spiffe_id import SpiffeID
from istio_auth.tls import client_context, peer_chain, server_context
from istio_auth.x509_source import X509Context
from tests.fakes.authority import HOUR
from tests.fakes.clock import FakeClock
from tests.fakes.tls import End, begin, go_on, meet, stranger, talk
from tests.vectors.x509_svid import KEY, LOCAL, NOW, STRANGER, sound_intermediate

OURS = LOCAL.svid("/ours", not_after=NOW + 50 * HOUR)


class Door:
    """A server of ours, whose rules a test changes while clients hold sessions."""

    def __init__(self, *, version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_2) -> None:
        self.source = MemorySource.of(OURS, LOCAL.bundle())
        self.clock = FakeClock(NOW)
        self.welcome = any_id()
        self.server = server_context(self.source, lambda peer: self.welcome(peer), clock=self.clock)  # noqa: PLW0108  # it changes
        self.client = stranger(server_side=False, chain=sound_intermediate().chain(key=KEY), key=KEY)
        self.client.maximum_version = version
        self.first = meet(self.client, self.server)
        talk(*self.first)

    @property
    def session(self) -> ssl.SSLSession:
        session = self.first[0].tls.session
        assert session is not None
        return session

    def again(self) -> tuple[End, End]:
        return meet(self.client, self.server, session=self.session)


def test_tls_1_2_resumes_by_session_id_and_the_peer_is_judged_again() -> None:
    door = Door()
    client, server = door.again()
    talk(client, server)
    assert client.tls.session_reused
    assert peer_chain(server.tls) == peer_chain(door.first[1].tls)
    assert len(peer_chain(server.tls)) == 2


def test_a_resumed_session_is_refused_after_the_authorizer_changed_its_mind() -> None:
    door = Door()
    door.welcome = one_of(SpiffeID.parse("spiffe://cluster.local/somebody-else"))
    client, server = door.again()
    assert isinstance(server.refusal, NotAuthorized)
    assert client.tls.session_reused
    door.welcome = any_id()
    talk(*door.again())


def test_a_resumed_session_is_refused_after_its_chain_has_ended() -> None:
    door = Door()
    door.clock.advance(2 * HOUR)
    client, server = door.again()
    assert isinstance(server.refusal, VerificationError)
    assert server.refusal.fault is Fault.EXPIRED
    assert client.tls.session_reused
    door.clock.advance(-2 * HOUR)
    talk(*door.again())


def test_a_session_does_not_outlive_the_root_that_vouched_for_it() -> None:
    door = Door()
    door.source.replace(X509Context((OURS,), BundleSet((STRANGER.bundle(),))))
    client, server = door.again()
    assert isinstance(server.refusal, VerificationError)
    assert server.refusal.fault is Fault.UNTRUSTED
    assert not client.tls.session_reused
    door.source.replace(X509Context((OURS,), BundleSet((LOCAL.bundle(),))))
    talk(*door.again())


def test_a_root_removed_while_a_session_is_being_resumed_counts_already() -> None:
    door = Door()
    client, server = begin(door.client, door.server, session=door.session)
    client.step()
    server.step()
    door.source.replace(X509Context((OURS,), BundleSet((STRANGER.bundle(),))))
    go_on(client, server)
    assert isinstance(server.refusal, VerificationError)
    assert client.tls.session_reused


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda version: version.name)
def test_a_server_of_ours_gives_no_ticket_away(version: ssl.TLSVersion) -> None:
    door = Door(version=version)
    assert not door.session.has_ticket
    if version is ssl.TLSVersion.TLSv1_3:
        client, server = door.again()
        talk(client, server)
        assert not client.tls.session_reused


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda version: version.name)
def test_a_client_of_ours_never_resumes_by_itself(version: ssl.TLSVersion) -> None:
    """Not even a session that it is given by a library which keeps them."""
    server = stranger(server_side=True, chain=LOCAL.chain(key=KEY), key=KEY)
    client = client_context(MemorySource.of(OURS, LOCAL.bundle()), any_id())
    client.maximum_version = version
    first = meet(client, server)
    talk(*first)
    client_end, server_end = meet(client, server, session=first[0].tls.session)
    talk(client_end, server_end)
    assert not client_end.tls.session_reused


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3], ids=lambda version: version.name)
def test_a_client_that_is_made_to_resume_judges_the_server_again(version: ssl.TLSVersion) -> None:
    source, clock = MemorySource.of(OURS, LOCAL.bundle()), FakeClock(NOW)
    # Without intermediates: a session that Python hands out holds the leaf alone.
    server = stranger(server_side=True, chain=LOCAL.chain(key=KEY), key=KEY)
    client = client_context(source, any_id(), clock=clock)
    client.maximum_version = version
    first = meet(client, server)
    talk(*first)
    open_ends: list[tuple[End, End]] = []  # OpenSSL forgets the session of a connection that ends without a goodbye

    def again() -> End:
        ends = begin(client, server)
        open_ends.append(ends)
        ends[0].tls.session = first[0].tls.session  # what the context does not take, the connection takes
        go_on(*ends)
        assert ends[0].tls.session_reused
        return ends[0]

    assert again().done
    clock.advance(2 * HOUR)
    assert "expired" in str(again().refusal)
    clock.advance(-2 * HOUR)
    source.replace(X509Context((OURS,), BundleSet((STRANGER.bundle(),))))
    with pytest.raises(ValueError, match="different SSLContext"):
        again()
