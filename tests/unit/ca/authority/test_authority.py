"""The authority: one root, made once, renewed in time with the same key."""

from __future__ import annotations

from datetime import datetime, timedelta

import pytest
from cryptography import x509

from ca.authority.authority import TEN_YEARS, Authority, open_authority
from ca.authority.state import AuthorityState, IssuerState, KeyReference
from istio_auth.bundle import TrustBundle
from istio_auth.errors import ConfigurationError, NotReady, VerificationError
from istio_auth.spiffe_id import TrustDomain
from istio_auth.verify import verify_chain
from tests.fakes.authority import FakeAuthority
from tests.fakes.authority_store import MemoryAuthorityStore
from tests.fakes.clock import FakeClock

LOCAL, FOREIGN = TrustDomain("cluster.local"), TrustDomain("foreign.test")
DAY = timedelta(days=1)


@pytest.fixture
def store() -> MemoryAuthorityStore:
    return MemoryAuthorityStore()


@pytest.fixture
def authority_(store: MemoryAuthorityStore, clock: FakeClock) -> Authority:
    return open_authority(store, LOCAL, clock)


def late(authority: Authority, share: float) -> datetime:
    """The instant at which so much of the root's life is left."""
    validity = authority.active.validity
    return validity.not_after - (validity.not_after - validity.not_before) * share


def identifier(certificate: x509.Certificate) -> bytes:
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest


def test_the_first_start_makes_a_root_of_ten_years_and_keeps_it(
    store: MemoryAuthorityStore, clock: FakeClock, authority_: Authority
) -> None:
    assert authority_.not_after == clock.now() + TEN_YEARS
    assert authority_.bundle.sequence == 1
    assert authority_.bundle.x509_authorities == (authority_.active.certificate,)
    assert authority_.chain == ()
    assert store.writes == 1


def test_every_later_start_finds_the_same_root(
    store: MemoryAuthorityStore, clock: FakeClock, authority_: Authority
) -> None:
    again = open_authority(store, LOCAL, clock)
    assert again.root_pem() == authority_.root_pem()
    assert again.active.key.private_numbers() == authority_.active.key.private_numbers()
    assert store.writes == 1


def test_an_unreadable_store_stops_the_start_and_makes_no_root(store: MemoryAuthorityStore, clock: FakeClock) -> None:
    def away() -> None:
        raise OSError("the disk is away")

    store.reading = away
    with pytest.raises(NotReady):
        open_authority(store, LOCAL, clock)
    assert store.writes == 0
    store.reading = lambda: None
    open_authority(store, LOCAL, clock)


@pytest.mark.parametrize("content", [b"", b"garbage", b"{}"])
def test_a_damaged_store_stops_the_start_and_is_left_as_it_is(
    store: MemoryAuthorityStore, clock: FakeClock, content: bytes
) -> None:
    store.content = content
    with pytest.raises(ConfigurationError):
        open_authority(store, LOCAL, clock)
    assert store.content == content


@pytest.mark.usefixtures("authority_")
def test_the_store_of_another_trust_domain_stops_the_start(store: MemoryAuthorityStore, clock: FakeClock) -> None:
    before = store.content
    with pytest.raises(ConfigurationError):
        open_authority(store, FOREIGN, clock)
    assert store.content == before
    open_authority(store, LOCAL, clock)


def test_a_store_of_a_plugged_in_ca_does_not_get_a_root_of_ours(clock: FakeClock) -> None:
    plugged = FakeAuthority()
    issuer = IssuerState(plugged.certificate, plugged.certificate, key=KeyReference("a plugged-in CA in /etc/cacerts"))
    store = MemoryAuthorityStore(AuthorityState(LOCAL, issuer))
    with pytest.raises(ConfigurationError, match="/etc/cacerts"):
        open_authority(store, LOCAL, clock)
    assert store.writes == 0


def test_who_loses_the_race_to_make_the_root_takes_the_winners(store: MemoryAuthorityStore, clock: FakeClock) -> None:
    winner = MemoryAuthorityStore()
    open_authority(winner, LOCAL, clock)

    def lose() -> None:
        store.content = winner.content

    store.writing = lose
    loser = open_authority(store, LOCAL, clock)
    assert loser.root_pem() == open_authority(winner, LOCAL, clock).root_pem()


@pytest.mark.parametrize("share", [1.0, 0.5, 0.21])
def test_a_root_is_not_renewed_before_the_last_fifth_of_its_life(
    store: MemoryAuthorityStore, authority_: Authority, share: float
) -> None:
    assert not authority_.renew_if_due(late(authority_, share))
    assert store.writes == 1


@pytest.mark.parametrize("share", [0.19, 0.001, -0.1])
def test_in_the_last_fifth_a_root_is_renewed_with_its_key_and_name(
    store: MemoryAuthorityStore, clock: FakeClock, authority_: Authority, share: float
) -> None:
    old, now = authority_.active, late(authority_, share)
    assert authority_.renew_if_due(now)
    new = authority_.active
    assert new.certificate != old.certificate
    assert new.certificate.subject == old.certificate.subject
    assert identifier(new.certificate) == identifier(old.certificate)
    assert new.certificate.public_key() == old.certificate.public_key()
    assert authority_.not_after == now.replace(microsecond=0) + TEN_YEARS
    assert authority_.bundle.sequence == 2
    assert not authority_.renew_if_due(now)
    assert open_authority(store, LOCAL, clock).root_pem() == authority_.root_pem()


def test_a_root_that_was_made_otherwise_keeps_its_name_and_key_identifier_too(clock: FakeClock) -> None:
    old = FakeAuthority(now=clock.now())
    state = AuthorityState(LOCAL, IssuerState(old.certificate, old.certificate, key=old.key))
    authority = open_authority(MemoryAuthorityStore(state), LOCAL, clock)
    assert authority.renew_if_due(late(authority, 0.1))
    assert authority.active.certificate.subject == old.name
    assert identifier(authority.active.certificate) == identifier(old.certificate)


def test_the_old_root_stays_in_the_bundle_until_its_end(authority_: Authority) -> None:
    old = authority_.active.certificate
    authority_.renew_if_due(late(authority_, 0.19))
    new = authority_.active.certificate
    assert list(authority_.bundle.x509_authorities) == [old, new]
    end = old.not_valid_after_utc
    assert not authority_.renew_if_due(end - DAY)
    assert authority_.renew_if_due(end)
    assert list(authority_.bundle.x509_authorities) == [new]
    assert authority_.bundle.sequence == 3
    assert len(authority_.state.retired) == 0


def test_leaves_verify_under_both_roots_of_one_key(authority_: Authority) -> None:
    before = authority_.bundle
    now = late(authority_, 0.19)
    issuing = FakeAuthority(now=now, key=authority_.active.key)
    issuing.name = authority_.active.certificate.subject
    issuing.key_identifier = lambda: x509.AuthorityKeyIdentifier(  # type: ignore[method-assign]  # as the issuer has it
        identifier(authority_.active.certificate), None, None
    )
    chain = issuing.chain()
    verify_chain(chain, before, now)
    authority_.renew_if_due(now)
    verify_chain(chain, authority_.bundle, now)
    (_, new) = authority_.bundle.x509_authorities
    verify_chain(chain, TrustBundle(LOCAL, (new,)), now)
    with pytest.raises(VerificationError):
        verify_chain(chain, TrustBundle(LOCAL, (FakeAuthority(now=now).certificate,)), now)


def test_a_root_that_ended_is_renewed_and_leaves_no_dead_root_behind(authority_: Authority) -> None:
    assert authority_.renew_if_due(authority_.not_after + DAY)
    assert len(authority_.bundle.x509_authorities) == 1


def test_a_renewal_that_can_not_be_kept_does_not_happen(store: MemoryAuthorityStore, authority_: Authority) -> None:
    def full() -> None:
        raise OSError("the disk is full")

    now, before = late(authority_, 0.1), authority_.root_pem()
    store.writing = full
    with pytest.raises(NotReady):
        authority_.renew_if_due(now)
    assert authority_.root_pem() == before
    store.writing = lambda: None
    assert authority_.renew_if_due(now)


def test_a_renewal_that_another_replica_made_first_is_taken_over(
    store: MemoryAuthorityStore, clock: FakeClock, authority_: Authority
) -> None:
    replica = open_authority(store, LOCAL, clock)
    now = late(authority_, 0.1)
    replica.renew_if_due(now)
    assert authority_.renew_if_due(now)
    assert authority_.root_pem() == replica.root_pem()
    assert authority_.bundle.sequence == 2


def test_reloading_takes_what_the_store_holds_and_keeps_the_old_if_it_can_not(
    store: MemoryAuthorityStore, clock: FakeClock, authority_: Authority
) -> None:
    def away() -> None:
        raise OSError("the disk is away")

    assert not authority_.reload()
    open_authority(store, LOCAL, clock).renew_if_due(late(authority_, 0.1))
    before = authority_.root_pem()
    store.reading = away
    with pytest.raises(NotReady):
        authority_.reload()
    assert authority_.root_pem() == before
    store.reading = lambda: None
    assert authority_.reload()
    assert authority_.root_pem() != before


def test_subscribers_hear_of_each_change_until_they_leave(authority_: Authority) -> None:
    heard: list[int | None] = []
    end = authority_.subscribe(lambda: heard.append(authority_.bundle.sequence))
    authority_.renew_if_due(late(authority_, 0.5))
    assert heard == []
    authority_.renew_if_due(late(authority_, 0.1))
    assert heard == [2]
    end()
    authority_.renew_if_due(late(authority_, 0.1))
    assert heard == [2]


def test_what_is_read_stays_the_same_object_as_long_as_nothing_changes(authority_: Authority) -> None:
    active, pem = authority_.active, authority_.root_pem()
    authority_.renew_if_due(late(authority_, 0.5))
    assert authority_.active is active
    assert authority_.root_pem() is pem
    authority_.renew_if_due(late(authority_, 0.1))
    assert authority_.active is not active


@pytest.mark.parametrize(
    ("left", "warned"),
    [(400 * DAY, False), (31 * DAY, False), (29 * DAY, True), (timedelta(seconds=1), True), (-DAY, True)],
)
def test_an_authority_warns_from_thirty_days_before_its_end(
    authority_: Authority, left: timedelta, *, warned: bool
) -> None:
    now = authority_.not_after - left
    assert authority_.remaining(now) == left
    assert bool(authority_.warnings(now)) is warned


def test_an_authority_warns_when_two_of_the_longest_leaves_no_longer_fit(authority_: Authority) -> None:
    longest = 90 * DAY
    assert authority_.warnings(authority_.not_after - 181 * DAY, longest_ttl=longest) == ()
    assert authority_.warnings(authority_.not_after - 179 * DAY, longest_ttl=longest) != ()


def test_no_key_is_printed(authority_: Authority) -> None:
    assert "PRIVATE" not in repr(authority_.active)
    assert "ECPrivateKey" not in repr(authority_.active)
