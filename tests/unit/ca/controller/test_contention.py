"""Who gives way when two write the same object."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from ca.controller.contention import Contention

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)


def test_the_third_change_within_a_minute_leaves_an_object_alone_for_ten() -> None:
    contention: Contention[str] = Contention()
    assert contention.note("web", NOW) is None
    assert contention.note("web", NOW + 20 * SECOND) is None
    end = NOW + 40 * SECOND + 10 * MINUTE
    assert contention.note("web", NOW + 40 * SECOND) == end
    assert contention.until("web", NOW + 41 * SECOND) == end
    assert contention.until("web", end - SECOND) == end
    assert contention.until("web", end) is None


def test_changes_further_apart_are_no_fight() -> None:
    contention: Contention[str] = Contention()
    for turn in range(20):
        assert contention.note("web", NOW + turn * 30 * SECOND) is None


def test_objects_are_counted_each_for_itself() -> None:
    contention: Contention[str] = Contention()
    for _ in range(2):
        assert contention.note("web", NOW) is None
        assert contention.note("api", NOW) is None
    assert contention.note("web", NOW) is not None
    assert contention.left_alone(NOW) == {"web": NOW + 10 * MINUTE}
    assert contention.until("api", NOW) is None


def test_a_change_while_an_object_is_left_alone_does_not_prolong_it_and_afterwards_the_record_is_clean() -> None:
    contention: Contention[str] = Contention(limit=2)
    contention.note("web", NOW)
    end = contention.note("web", NOW)
    assert end is not None
    assert contention.note("web", end - SECOND) == end
    assert contention.note("web", end) is None
    assert contention.note("web", end + SECOND) == end + SECOND + 10 * MINUTE


def test_what_is_over_is_not_remembered_for_ever() -> None:
    contention: Contention[str] = Contention(limit=2)
    for _ in range(2):
        contention.note("web", NOW)
    contention.note("api", NOW)
    assert contention.left_alone(NOW + 10 * MINUTE) == {}
    assert contention == Contention(limit=2)


def test_an_object_that_is_gone_is_forgotten() -> None:
    contention: Contention[str] = Contention(limit=2)
    for _ in range(2):
        contention.note("web", NOW)
    contention.forget("web")
    assert contention.until("web", NOW) is None
    assert contention.note("web", NOW) is None
    contention.forget("never seen")
