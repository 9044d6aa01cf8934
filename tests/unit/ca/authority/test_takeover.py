"""Each step by which a plugged-in issuer takes over, and what it waits for."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509

from ca.authority.state import AuthorityState, IssuerState, KeyReference
from ca.authority.takeover import SIGNS, Pace, Wait, next_step, pruned, reconciled
from istio_auth.spiffe_id import TrustDomain
from tests.fakes.authority import FakeAuthority

LOCAL = TrustDomain("cluster.local")
NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
DAY, HOUR = timedelta(days=1), timedelta(hours=1)
PACE = Pace(timedelta(minutes=5), 90 * DAY)
OLD, NEW, OTHER = (FakeAuthority(now=NOW, lifetime=3650 * DAY) for _ in range(3))
REFERENCE = KeyReference("a plugged-in CA in memory")


def issuer(authority: FakeAuthority, *others: FakeAuthority, where: KeyReference = REFERENCE) -> IssuerState:
    intermediates = authority.intermediates[1:]
    return IssuerState(
        authority.certificate, authority.root, intermediates, tuple(other.certificate for other in others), where
    )


OWN = AuthorityState(LOCAL, IssuerState(OLD.certificate, OLD.certificate, key=OLD.key), longest_ttl=PACE.longest_ttl)
PLUGGED = replace(OWN, active=issuer(OLD))


def step(
    state: AuthorityState,
    offered: FakeAuthority | IssuerState | None,
    *,
    now: datetime = NOW,
    published: bool = True,
    pace: Pace = PACE,
) -> AuthorityState:
    """The next step, which there must be."""
    found = look(state, offered, now=now, published=published, pace=pace)
    assert isinstance(found, AuthorityState), found
    return found


def look(
    state: AuthorityState,
    offered: FakeAuthority | IssuerState | None,
    *,
    now: datetime = NOW,
    published: bool = True,
    pace: Pace = PACE,
) -> AuthorityState | Wait | None:
    wanted = issuer(offered) if isinstance(offered, FakeAuthority) else offered
    return next_step(state, wanted, now, published=published, pace=pace)


def roots(state: AuthorityState) -> set[x509.Certificate]:
    return set(state.bundle().x509_authorities)


PREPARED = step(PLUGGED, NEW)
DATED = step(PREPARED, NEW)
SIGNING_FROM = NOW + PACE.settling
TAKEN_OVER = step(DATED, NEW, now=SIGNING_FROM)


def test_there_is_nothing_to_do_for_an_issuer_that_signs_already() -> None:
    assert look(PLUGGED, OLD) is None
    assert look(OWN, None) is None


def test_an_issuer_below_another_root_is_prepared_and_its_root_joins_the_bundle() -> None:
    assert PREPARED.active == PLUGGED.active
    assert PREPARED.prepared == issuer(NEW)
    assert roots(PREPARED) == {OLD.certificate, NEW.certificate}
    assert PREPARED.sequence == PLUGGED.sequence + 1


@pytest.mark.parametrize("state", [PREPARED, DATED, replace(DATED, sequence=9)])
@pytest.mark.parametrize("later", [timedelta(), PACE.settling, 100 * DAY])
def test_a_prepared_issuer_waits_as_long_as_the_bundle_is_not_published(
    state: AuthorityState, later: timedelta
) -> None:
    waiting = look(state, NEW, now=NOW + later, published=False)
    assert isinstance(waiting, Wait)
    assert f"sequence {state.sequence}" in waiting.reason


def test_a_published_bundle_sets_the_instant_from_which_the_prepared_issuer_signs() -> None:
    assert DATED.deadlines[SIGNS] == SIGNING_FROM
    assert replace(DATED, deadlines=PREPARED.deadlines) == PREPARED
    waiting = look(DATED, NEW, now=SIGNING_FROM - timedelta(seconds=1))
    assert isinstance(waiting, Wait)
    assert "2030-01-01 12:05:00" in waiting.reason


def test_a_look_later_or_by_another_replica_does_not_move_that_instant() -> None:
    assert isinstance(look(DATED, NEW, now=NOW + PACE.settling / 2), Wait)
    assert step(DATED, NEW, now=SIGNING_FROM).active == issuer(NEW)


def test_then_the_prepared_issuer_signs_and_the_old_one_is_retired_without_key() -> None:
    assert TAKEN_OVER.active == issuer(NEW)
    assert TAKEN_OVER.prepared is None
    assert [(old.certificate, old.key) for old in TAKEN_OVER.retired] == [(OLD.certificate, None)]
    assert SIGNS not in TAKEN_OVER.deadlines
    assert (TAKEN_OVER.bundle(), TAKEN_OVER.sequence) == (DATED.bundle(), DATED.sequence)
    assert look(TAKEN_OVER, NEW, now=SIGNING_FROM) is None


def test_our_own_root_is_taken_over_in_the_same_way_and_its_key_is_gone() -> None:
    state = step(step(step(OWN, NEW), NEW), NEW, now=SIGNING_FROM)
    assert [(old.certificate, old.key) for old in state.retired] == [(OLD.certificate, None)]
    assert b"PRIVATE" not in state.to_json()


def test_the_old_root_leaves_the_bundle_when_the_last_leaf_below_it_has_ended() -> None:
    last_leaf = SIGNING_FROM + PACE.longest_ttl
    assert pruned(TAKEN_OVER, last_leaf) is TAKEN_OVER
    after = pruned(TAKEN_OVER, last_leaf + HOUR)
    assert roots(after) == {NEW.certificate}
    assert after.sequence == TAKEN_OVER.sequence + 1
    assert not [name for name in after.deadlines if name.startswith("drop")]


def test_the_old_root_leaves_the_bundle_at_its_own_end_at_the_latest() -> None:
    short = FakeAuthority(now=NOW, lifetime=10 * DAY)
    state = step(step(step(replace(OWN, active=issuer(short)), NEW), NEW), NEW, now=SIGNING_FROM)
    end = short.certificate.not_valid_after_utc
    assert pruned(state, end - timedelta(seconds=1)) is state
    assert roots(pruned(state, end)) == {NEW.certificate}


def test_the_longest_lifetime_that_was_ever_granted_below_the_old_root_counts() -> None:
    less = Pace(PACE.settling, DAY)
    state = step(step(step(PLUGGED, NEW, pace=less), NEW, pace=less), NEW, now=SIGNING_FROM, pace=less)
    assert pruned(state, SIGNING_FROM + 89 * DAY) is state
    assert state.longest_ttl == DAY  # below the new root nothing longer was granted


def test_a_longer_lifetime_is_remembered_before_anything_else() -> None:
    more = Pace(PACE.settling, 100 * DAY)
    state = step(PLUGGED, NEW, pace=more)
    assert state == replace(PLUGGED, longest_ttl=100 * DAY)
    assert step(state, NEW, pace=more).prepared == issuer(NEW)


def test_roots_that_retired_before_leave_with_the_old_one_at_the_latest() -> None:
    earlier = IssuerState(OTHER.certificate, OTHER.certificate, key=OTHER.key)
    state = step(step(step(replace(OWN, retired=(earlier,)), NEW), NEW), NEW, now=SIGNING_FROM)
    assert roots(state) == {OLD.certificate, OTHER.certificate, NEW.certificate}
    assert b"PRIVATE" not in state.to_json()
    assert roots(pruned(state, SIGNING_FROM + PACE.longest_ttl + HOUR)) == {NEW.certificate}


def test_an_issuer_below_the_same_root_signs_at_once() -> None:
    intermediate = FakeAuthority(parent=OLD, now=NOW)
    state = step(PLUGGED, intermediate, published=False)
    assert state.active == issuer(intermediate)
    assert (state.retired, state.sequence) == ((), PLUGGED.sequence)


def test_another_list_of_roots_is_another_bundle_at_once() -> None:
    wider = step(PLUGGED, issuer(OLD, OTHER))
    assert roots(wider) == {OLD.certificate, OTHER.certificate}
    assert wider.sequence == PLUGGED.sequence + 1
    later = NOW + PACE.settling
    narrower = step(wider, OLD, now=later)
    assert roots(narrower) == {OLD.certificate}
    assert narrower.sequence == PLUGGED.sequence + 2


def test_a_root_that_is_listed_already_has_to_be_published_all_the_same() -> None:
    listed = replace(PLUGGED, active=issuer(OLD, NEW))
    state = step(listed, issuer(NEW, OLD))
    assert (state.bundle(), state.prepared) == (listed.bundle(), issuer(NEW, OLD))
    assert isinstance(look(state, issuer(NEW, OLD), published=False), Wait)


def test_the_root_of_ours_plugged_in_again_signs_on_and_its_key_leaves_the_store() -> None:
    state = step(OWN, OLD)
    assert state.active.key == REFERENCE
    assert (state.retired, state.sequence) == ((), OWN.sequence)


@pytest.mark.parametrize("offered", [None, OLD], ids=["nothing", "the old one"])
def test_a_prepared_issuer_that_is_offered_no_more_is_dropped(offered: FakeAuthority | None) -> None:
    later = NOW + PACE.settling
    state = step(DATED, offered, now=later)
    assert (state.active, state.prepared, state.retired) == (PLUGGED.active, None, ())
    assert roots(state) == {OLD.certificate}
    assert state.sequence == DATED.sequence + 1
    again = step(state, NEW, now=later + PACE.settling)
    assert SIGNS not in again.deadlines


def test_another_issuer_in_the_place_of_a_prepared_one_waits_from_the_beginning() -> None:
    later = NOW + PACE.settling
    state = step(DATED, OTHER, now=later)
    assert (state.prepared, roots(state)) == (issuer(OTHER), {OLD.certificate, OTHER.certificate})
    assert SIGNS not in state.deadlines


@pytest.mark.parametrize("offered", [None, OLD, OTHER, FakeAuthority(parent=OLD, now=NOW)])
def test_a_replica_that_sees_a_change_late_does_not_undo_it(offered: FakeAuthority | None) -> None:
    assert isinstance(look(PREPARED, offered), Wait)
    assert isinstance(look(PREPARED, offered, now=NOW + PACE.settling - timedelta(seconds=1)), Wait)
    assert isinstance(look(PREPARED, offered, now=NOW + PACE.settling), AuthorityState)


def test_a_replica_that_sees_a_new_intermediate_late_does_not_undo_it() -> None:
    state = step(PLUGGED, FakeAuthority(parent=OLD, now=NOW))
    assert isinstance(look(state, OLD), Wait)
    assert step(state, OLD, now=NOW + PACE.settling).active == issuer(OLD)


def test_the_way_back_to_a_retired_root_is_as_careful_and_keeps_both() -> None:
    later = SIGNING_FROM + DAY
    prepared = step(TAKEN_OVER, OLD, now=later)
    assert (prepared.bundle(), prepared.sequence) == (TAKEN_OVER.bundle(), TAKEN_OVER.sequence)
    signs = later + PACE.settling
    back = step(step(prepared, OLD, now=later), OLD, now=signs)
    assert back.active == issuer(OLD)
    assert [old.certificate for old in back.retired] == [NEW.certificate]
    assert len([name for name in back.deadlines if name.startswith("drop")]) == 1
    assert roots(pruned(back, signs + PACE.longest_ttl)) == {OLD.certificate, NEW.certificate}
    assert roots(pruned(back, signs + PACE.longest_ttl + HOUR)) == {OLD.certificate}


def test_a_root_that_retired_once_before_and_came_back_is_kept_as_long_as_any_other() -> None:
    stale = {name: NOW for name in TAKEN_OVER.deadlines if name.startswith("drop")}
    state = step(step(step(replace(PLUGGED, deadlines=stale), NEW), NEW), NEW, now=SIGNING_FROM)
    assert pruned(state, SIGNING_FROM + PACE.longest_ttl) is state


def test_files_that_vanish_from_under_a_plugged_in_issuer_are_told() -> None:
    gone = look(PLUGGED, None)
    assert isinstance(gone, Wait)
    assert "gone" in gone.reason


def test_without_a_time_to_settle_every_step_can_be_taken_at_once() -> None:
    pace = Pace(timedelta(), PACE.longest_ttl)
    state = step(step(step(PLUGGED, NEW, pace=pace), NEW, pace=pace), NEW, pace=pace)
    assert state.active == issuer(NEW)
    assert step(step(step(state, OTHER, pace=pace), OTHER, pace=pace), OTHER, pace=pace).active == issuer(OTHER)


STRANGER = AuthorityState(LOCAL, IssuerState(NEW.certificate, NEW.certificate, key=NEW.key))


@pytest.mark.parametrize(
    "found",
    [
        replace(OWN, sequence=2),
        replace(STRANGER, sequence=2),
        replace(OWN, deadlines={"soon": NOW}),
        replace(OWN, active=issuer(OLD, OTHER)),
    ],
    ids=["the next", "another issuer, the next", "other deadlines", "the same key, as Istio's CA renews"],
)
def test_what_can_have_followed_is_taken_as_it_is(found: AuthorityState) -> None:
    assert reconciled(found, OWN) is found


@pytest.mark.parametrize("known", [OWN, replace(OWN, sequence=7)], ids=["as young", "younger"])
def test_another_authority_in_the_place_of_ours_neither_signs_nor_cuts_anybody_off(known: AuthorityState) -> None:
    state = reconciled(STRANGER, known)
    assert state.active == OWN.active
    assert state.sequence == known.sequence + 1
    assert set(state.bundle().x509_authorities) == {OLD.certificate, NEW.certificate}
    assert [each.key for each in state.retired] == [None]


def test_an_older_copy_in_the_place_of_ours_brings_no_sequence_back() -> None:
    known = replace(OWN, active=issuer(NEW), retired=(issuer(OLD),), sequence=3)
    state = reconciled(OWN, known)
    assert state == replace(known, sequence=4)
