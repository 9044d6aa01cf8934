"""Replicas that share a store and watch a plugged-in CA: it takes over without a restart, once everybody can know."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import timedelta

import pytest
from cryptography import x509

from ca.authority.plugged import SETTLING, PluggedAuthority, Rollout, open_shared_authority
from ca.authority.state import KeyReference
from istio_auth.errors import ConfigurationError, NotReady
from istio_auth.keys import same_key
from istio_auth.spiffe_id import TrustDomain
from tests.fakes.authority import FakeAuthority
from tests.fakes.authority_store import MemoryAuthorityStore
from tests.fakes.clock import FakeClock
from tests.fakes.issuer_source import MemoryIssuerSource, cacerts

LOCAL = TrustDomain("cluster.local")
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
LONGEST = 90 * DAY
OLD, NEW = (FakeAuthority(now=FakeClock().now(), lifetime=3650 * DAY) for _ in range(2))


@dataclass
class Cluster:
    """A store, a clock, and what is published; each replica sees the files by a source of its own."""

    store: MemoryAuthorityStore = field(default_factory=MemoryAuthorityStore)
    clock: FakeClock = field(default_factory=FakeClock)
    published: int = 1

    def replica(self, source: MemoryIssuerSource) -> PluggedAuthority:
        rollout = Rollout(lambda sequence: sequence <= self.published)
        return open_shared_authority(source, self.store, LOCAL, self.clock, rollout=rollout, longest_ttl=LONGEST)

    def look(self, *replicas: PluggedAuthority) -> None:
        """What each replica does from time to time (`AuthorityWatch` with `shared`)."""
        for replica in replicas:
            replica.reload()
            replica.follow(self.clock.now())
            replica.renew_if_due(self.clock.now())


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


def signs(authority: PluggedAuthority) -> x509.Certificate:
    """The certificate of the issuer that signs, whose key is its own."""
    active = authority.active
    assert same_key(active.key.public_key(), active.issuer.certificate.public_key())  # type: ignore[arg-type]  # EC
    return active.certificate


def test_without_a_plugged_in_ca_there_is_a_root_of_our_own_that_renews_itself(cluster: Cluster) -> None:
    authority = cluster.replica(MemoryIssuerSource())
    first = signs(authority)
    cluster.look(authority)
    assert authority.waiting is None
    cluster.clock.time = authority.not_after - DAY
    cluster.look(authority)
    assert signs(authority) != first
    assert authority.active.key.public_key() == first.public_key()


def test_a_plugged_in_ca_takes_over_from_our_own_root_without_a_restart(cluster: Cluster) -> None:
    source = MemoryIssuerSource()
    authority = cluster.replica(source)
    own = signs(authority)
    source.show(NEW)
    cluster.look(authority)
    assert set(authority.bundle.x509_authorities) == {own, NEW.certificate}
    assert (signs(authority), authority.bundle.sequence) == (own, 2)
    assert "sequence 2" in " ".join(authority.warnings(cluster.clock.now()))
    cluster.published = 2
    cluster.look(authority)
    cluster.clock.advance(SETTLING - timedelta(seconds=1))
    cluster.look(authority)
    assert signs(authority) == own
    cluster.clock.advance(timedelta(seconds=1))
    cluster.look(authority)
    assert signs(authority) == NEW.certificate
    assert authority.waiting is None
    assert set(authority.bundle.x509_authorities) == {own, NEW.certificate}
    assert b"PRIVATE" not in (cluster.store.content or b"")
    cluster.clock.advance(LONGEST + HOUR)
    cluster.look(authority)
    assert authority.bundle.x509_authorities == (NEW.certificate,)
    assert authority.bundle.sequence == 3


def test_what_it_waits_for_is_in_the_log_once(cluster: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "ca.authority.plugged")
    source = MemoryIssuerSource()
    authority = cluster.replica(source)
    source.show(NEW)
    cluster.look(authority, authority)
    assert [message for message in caplog.messages if "published" in message] == [
        "the plugged-in CA in memory: it signs when the bundle with sequence 2, which holds its root, is published"
    ]
    cluster.published = 2
    cluster.look(authority, authority)
    cluster.clock.advance(timedelta(minutes=1))
    cluster.look(authority, authority)
    assert len([message for message in caplog.messages if "it signs from" in message]) == 1


def test_replicas_take_the_same_steps_and_each_step_once(cluster: Cluster) -> None:
    source = MemoryIssuerSource(OLD)
    replicas = [cluster.replica(source) for _ in range(3)]
    source.show(NEW)
    writes = cluster.store.writes
    cluster.look(*replicas, *replicas)
    cluster.published = 2
    cluster.look(*replicas, *replicas)
    cluster.clock.advance(SETTLING)
    cluster.look(*replicas, *replicas)
    assert [signs(replica) for replica in replicas] == [NEW.certificate] * 3
    assert [replica.bundle.sequence for replica in replicas] == [2, 2, 2]
    assert cluster.store.writes - writes == 3


def test_a_replica_that_decides_on_what_is_no_longer_stored_finds_what_another_did(cluster: Cluster) -> None:
    source = MemoryIssuerSource(OLD)
    first, second = cluster.replica(source), cluster.replica(source)
    source.show(NEW)
    now = cluster.clock.now()
    assert first.follow(now)
    assert second.follow(now)  # without having reloaded: its write meets a conflict
    assert second.state == first.state
    assert second.bundle.sequence == 2


def test_a_replica_that_does_not_see_the_new_key_yet_is_not_ready_and_never_signs_with_another(
    cluster: Cluster,
) -> None:
    early, late = MemoryIssuerSource(OLD), MemoryIssuerSource(OLD)
    first, second = cluster.replica(early), cluster.replica(late)
    cluster.published = 2
    early.show(NEW)
    cluster.look(first)
    cluster.clock.advance(SETTLING)
    cluster.look(first)
    assert signs(first) == NEW.certificate
    second.reload()
    with pytest.raises(NotReady, match="memory"):
        _ = second.active
    assert second.bundle == first.bundle
    assert second.not_after == first.not_after
    heard: list[x509.Certificate] = []
    second.subscribe(lambda: heard.append(signs(second)))
    late.show(NEW)
    cluster.look(second)
    assert heard == [NEW.certificate]


def test_the_key_of_a_retired_issuer_is_forgotten(cluster: Cluster) -> None:
    source = MemoryIssuerSource(OLD)
    authority = cluster.replica(source)
    before, cluster.published = authority.state, 2
    source.show(NEW)
    cluster.look(authority)
    cluster.clock.advance(SETTLING)
    cluster.look(authority, authority)
    assert signs(authority) == NEW.certificate
    cluster.store.content = replace(before, sequence=3).to_json()
    authority.reload()
    with pytest.raises(NotReady):
        _ = authority.active


def test_a_start_between_the_steps_goes_on_where_they_were(cluster: Cluster) -> None:
    source = MemoryIssuerSource(OLD)
    cluster.replica(source)
    source.show(NEW)
    cluster.replica(source)
    cluster.published = 2
    restarted = cluster.replica(source)
    with pytest.raises(NotReady):  # nobody has the old key any more, and nobody may have the new root yet
        _ = restarted.active
    cluster.clock.advance(SETTLING)
    assert signs(cluster.replica(source)) == NEW.certificate


@pytest.mark.parametrize("lost_at", [0, 1, 2])
def test_a_step_whose_answer_is_lost_was_taken_once(cluster: Cluster, lost_at: int) -> None:
    source = MemoryIssuerSource(OLD)
    authority = cluster.replica(source)
    writes, begin = cluster.store.writes, authority.bundle.sequence

    def lose() -> None:
        if cluster.store.writes == writes + 1 + lost_at:
            raise OSError("the connection broke before the answer came")

    cluster.store.written = lose
    source.show(NEW)
    cluster.published = 9
    failures = 0
    for _ in range(6):
        try:
            authority.follow(cluster.clock.now())
        except NotReady:
            failures += 1
        cluster.clock.advance(SETTLING / 2)
    assert failures == 1
    assert signs(authority) == NEW.certificate
    assert authority.bundle.sequence == (begin or 0) + 1
    assert cluster.store.writes == writes + 3


def test_bad_files_leave_the_issuer_that_signs_and_stop_no_restart(cluster: Cluster) -> None:
    source = MemoryIssuerSource()
    authority = cluster.replica(source)
    own = signs(authority)
    source.content = cacerts(NEW) | {"ca-key.pem": b"garbage"}
    with pytest.raises(ConfigurationError, match=r"ca-key\.pem"):
        cluster.look(authority)
    assert signs(authority) == own
    assert signs(cluster.replica(source)) == own


@pytest.mark.parametrize("fault", ["bad", "away"])
def test_no_root_of_our_own_is_made_while_it_is_unclear_whether_a_ca_is_plugged_in(
    cluster: Cluster, fault: str
) -> None:
    source = MemoryIssuerSource(NEW)

    def away() -> None:
        raise NotReady("the watch is not live")

    if fault == "bad":
        source.content = {"ca-cert.pem": b""}
    else:
        source.reading = away
    with pytest.raises((ConfigurationError, NotReady)):
        cluster.replica(source)
    assert cluster.store.content is None
    source.reading = lambda: None
    source.show(NEW)
    authority = cluster.replica(source)
    assert signs(authority) == NEW.certificate
    assert isinstance(authority.state.active.key, KeyReference)


def test_files_that_are_gone_are_told_while_the_key_is_still_known(cluster: Cluster) -> None:
    source = MemoryIssuerSource(OLD)
    authority = cluster.replica(source)
    source.show(None)
    cluster.look(authority)
    assert signs(authority) == OLD.certificate
    assert any("gone" in words for words in authority.warnings(cluster.clock.now()))
    with pytest.raises(NotReady):
        _ = cluster.replica(source).active


def test_what_did_not_change_stays_the_same_object_over_the_steps(cluster: Cluster) -> None:
    source = MemoryIssuerSource()
    authority = cluster.replica(source)
    active = authority.active
    source.show(NEW)
    cluster.look(authority)
    assert authority.active is active
    bundle, pem = authority.bundle, authority.root_pem()
    cluster.published = 2
    cluster.look(authority)
    cluster.clock.advance(SETTLING)
    cluster.look(authority)
    assert authority.active is not active
    assert authority.bundle is bundle
    assert authority.root_pem() is pem
