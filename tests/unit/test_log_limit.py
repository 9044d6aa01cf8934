"""Lines of a log that others cause come once a minute for each cause, and for a bounded number of causes."""

from __future__ import annotations

from datetime import timedelta

import pytest

from istio_auth.log_limit import LogLimit, without_port


def test_a_cause_has_one_line_a_minute_whatever_the_others_do() -> None:
    now = 0.0
    limit = LogLimit(now=lambda: now)
    assert [limit.allows(cause) for cause in ("a", "a", "b", "a", "b")] == [True, False, True, False, False]
    now = 59.9
    assert not limit.allows("a")
    now = 60.0
    assert limit.allows("a")
    assert not limit.allows("a")


def test_not_even_a_crowd_of_causes_makes_a_log_grow_without_end() -> None:
    now = 0.0
    limit = LogLimit(every=timedelta(seconds=10), causes=3, now=lambda: now)
    assert sum(limit.allows(str(number)) for number in range(1000)) == 3
    now = 10.0
    assert limit.allows("999")


@pytest.mark.parametrize(
    ("caller", "is_one_with"),
    [
        ("192.0.2.1:4711", "192.0.2.1"),
        ("[2001:db8::1]:4711", "[2001:db8::1]"),
        ("spiffe://x.test/ns/shop/sa/web at 192.0.2.1:4711", "spiffe://x.test/ns/shop/sa/web at 192.0.2.1"),
        ("process 7 (uid 1, gid 1) at socket main", "process 7 (uid 1, gid 1) at socket main"),
        ("spiffe://x.test", "spiffe://x.test"),
        ("", ""),
    ],
)
def test_a_caller_is_the_same_whatever_port_it_comes_from(caller: str, is_one_with: str) -> None:
    assert without_port(caller) == is_one_with
