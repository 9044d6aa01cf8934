"""Several replicas over one store: one root, one state, whoever was first and whatever got lost."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime, timedelta

import pytest

from ca.authority.authority import Authority, open_authority
from ca.authority.watch import AuthorityWatch
from istio_auth.errors import NotReady
from istio_auth.spiffe_id import TrustDomain
from tests.fakes.authority_store import MemoryAuthorityStore
from tests.fakes.clock import FakeClock

LOCAL = TrustDomain("cluster.local")
REPLICAS = 8


@pytest.fixture
def store() -> MemoryAuthorityStore:
    return MemoryAuthorityStore()


def together(store: MemoryAuthorityStore, clock: FakeClock) -> list[Authority]:
    """Replicas that have all found nothing before the first of them writes."""
    found_nothing = threading.Barrier(REPLICAS)

    def wait_for_all() -> None:
        found_nothing.wait(60)

    store.writing = wait_for_all
    with ThreadPoolExecutor(REPLICAS) as threads:
        return list(threads.map(lambda _: open_authority(store, LOCAL, clock), range(REPLICAS)))


def lost() -> None:
    raise OSError("the connection broke before the answer came")


def once(store: MemoryAuthorityStore) -> None:
    """Lose the answer to the next write."""

    def lose() -> None:
        store.written = lambda: None
        lost()

    store.written = lose


def due(authority: Authority) -> datetime:
    """An instant at which the root is due for renewal."""
    validity = authority.active.validity
    return validity.not_after - (validity.not_after - validity.not_before) / 10


def test_replicas_that_start_together_end_with_one_root(store: MemoryAuthorityStore, clock: FakeClock) -> None:
    replicas = together(store, clock)
    assert store.writes == 1
    assert len({replica.root_pem() for replica in replicas}) == 1
    assert len({replica.active.key.private_numbers() for replica in replicas}) == 1


def test_replicas_that_start_together_and_hear_no_answer_end_with_one_root(
    store: MemoryAuthorityStore, clock: FakeClock
) -> None:
    store.written = lost
    replicas = together(store, clock)
    assert store.writes == 1
    assert len({replica.root_pem() for replica in replicas}) == 1


def test_a_first_write_that_did_not_happen_makes_no_authority(store: MemoryAuthorityStore, clock: FakeClock) -> None:
    store.writing = lost
    with pytest.raises(NotReady):
        open_authority(store, LOCAL, clock)
    assert store.content is None
    store.writing = lambda: None
    open_authority(store, LOCAL, clock)


def test_a_renewal_by_one_replica_is_loaded_by_the_other(store: MemoryAuthorityStore, clock: FakeClock) -> None:
    first, second = open_authority(store, LOCAL, clock), open_authority(store, LOCAL, clock)
    heard: list[int | None] = []
    second.subscribe(lambda: heard.append(second.bundle.sequence))
    assert first.renew_if_due(due(first))
    assert second.reload()
    assert heard == [2]
    assert second.root_pem() == first.root_pem()
    assert second.active.certificate == first.active.certificate
    assert second.active.key.private_numbers() == first.active.key.private_numbers()
    assert not second.reload()


def test_replicas_that_renew_together_end_with_one_renewal(store: MemoryAuthorityStore, clock: FakeClock) -> None:
    replicas = [open_authority(store, LOCAL, clock) for _ in range(REPLICAS)]
    now = due(replicas[0])
    all_decided = threading.Barrier(REPLICAS)

    def wait_for_all() -> None:
        all_decided.wait(60)

    store.writing = wait_for_all
    with ThreadPoolExecutor(REPLICAS) as threads:
        assert all(threads.map(lambda replica: replica.renew_if_due(now), replicas))
    assert store.writes == 2
    assert {replica.bundle.sequence for replica in replicas} == {2}
    assert len({replica.root_pem() for replica in replicas}) == 1
    assert not any(replica.renew_if_due(now) for replica in replicas)


def test_a_renewal_whose_answer_is_lost_is_found_at_the_next_look(
    store: MemoryAuthorityStore, clock: FakeClock
) -> None:
    authority = open_authority(store, LOCAL, clock)
    before, now = authority.active, due(authority)
    once(store)
    with pytest.raises(NotReady):
        authority.renew_if_due(now)
    assert authority.active is before
    assert authority.renew_if_due(now)
    assert authority.active is not before
    assert store.writes == 2
    assert authority.bundle.sequence == 2


async def test_the_watch_over_a_shared_authority_takes_what_another_replica_did(
    store: MemoryAuthorityStore, clock: FakeClock
) -> None:
    first, second = open_authority(store, LOCAL, clock), open_authority(store, LOCAL, clock)
    first.renew_if_due(due(first))
    await AuthorityWatch(second, clock).look()
    assert second.bundle.sequence == 1
    await AuthorityWatch(second, clock, shared=True).look()
    assert second.root_pem() == first.root_pem()


def test_a_lifetime_once_granted_is_remembered_over_starts_that_grant_less(
    store: MemoryAuthorityStore, clock: FakeClock
) -> None:
    for days, remembered in ((1, 1), (90, 90), (1, 90)):
        authority = open_authority(store, LOCAL, clock, longest_ttl=timedelta(days=days))
        assert authority.state.longest_ttl == timedelta(days=remembered)
    assert authority.bundle.sequence == 1
    assert store.writes == 2


def test_a_lifetime_is_remembered_beside_what_another_replica_just_wrote(
    store: MemoryAuthorityStore, clock: FakeClock
) -> None:
    first, second = open_authority(store, LOCAL, clock), open_authority(store, LOCAL, clock)
    first.renew_if_due(due(first))
    second.remember(timedelta(days=90))
    assert second.state.longest_ttl == timedelta(days=90)
    assert second.bundle.sequence == 2


def test_a_state_that_is_deleted_while_replicas_know_it_is_put_back(
    store: MemoryAuthorityStore, clock: FakeClock
) -> None:
    replicas = [open_authority(store, LOCAL, clock) for _ in range(REPLICAS)]
    before, content, writes = replicas[0].root_pem(), store.content, store.writes
    store.content = None
    all_found_nothing = threading.Barrier(REPLICAS)

    def wait_for_all() -> None:
        all_found_nothing.wait(60)

    store.writing = wait_for_all
    with ThreadPoolExecutor(REPLICAS) as threads:
        assert not any(threads.map(lambda replica: replica.reload(), replicas))
    assert (store.content, store.writes) == (content, writes + 1)
    assert open_authority(store, LOCAL, clock).root_pem() == before


def test_a_root_that_was_made_because_the_state_was_deleted_does_not_cut_off_who_trusts_the_one_before(
    store: MemoryAuthorityStore, clock: FakeClock
) -> None:
    first, second = open_authority(store, LOCAL, clock), open_authority(store, LOCAL, clock)
    signs = first.active.certificate
    store.content = None
    newcomer = open_authority(store, LOCAL, clock)
    stranger = newcomer.active.certificate
    assert stranger != signs
    for replica in (first, second, newcomer):
        replica.reload()
    for replica in (first, second, newcomer):
        replica.reload()
        assert replica.active.certificate == signs
        assert set(replica.bundle.x509_authorities) == {signs, stranger}
        assert replica.bundle.sequence == 2


def test_a_state_that_can_not_be_put_back_is_tried_again(store: MemoryAuthorityStore, clock: FakeClock) -> None:
    authority = open_authority(store, LOCAL, clock)
    content, store.content = store.content, None
    store.writing = lost
    with pytest.raises(NotReady):
        authority.reload()
    store.writing = lambda: None
    authority.reload()
    assert store.content == content
