"""Ready or not, and why not."""

from __future__ import annotations

from istio_auth.daemon.readiness import Readiness


def test_before_the_start_and_after_the_stop_nothing_is_ready() -> None:
    readiness = Readiness()
    readiness.add("part", lambda: None)
    assert set(readiness.problems()) == {"daemon"}
    readiness.started()
    assert readiness.problems() == {}
    readiness.stopping()
    assert set(readiness.problems()) == {"daemon"}
    readiness.started()
    assert set(readiness.problems()) == {"daemon"}


def test_each_part_says_for_itself_what_is_wrong_now() -> None:
    reasons: dict[str, str | None] = {"log": "disk full", "authority": None}
    readiness = Readiness()
    readiness.add("log", lambda: reasons["log"])
    readiness.add("authority", lambda: reasons["authority"])
    readiness.started()
    assert readiness.problems() == {"log": "disk full"}
    reasons["log"] = None
    assert readiness.problems() == {}


def test_a_check_that_fails_means_not_ready_and_tells_no_details() -> None:
    def check() -> str | None:
        raise OSError("/secret/path")

    readiness = Readiness()
    readiness.add("part", check)
    readiness.started()
    assert set(readiness.problems()) == {"part"}
    assert "/secret/path" not in readiness.problems()["part"]


def test_a_remark_makes_nobody_unready() -> None:
    remarks: dict[str, str | None] = {"secrets": "two are left alone"}
    readiness = Readiness()
    readiness.mention("secrets", lambda: remarks["secrets"])
    readiness.started()
    assert readiness.problems() == {}
    assert readiness.remarks() == {"secrets": "two are left alone"}
    remarks["secrets"] = None
    assert readiness.remarks() == {}
