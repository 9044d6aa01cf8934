"""The door's book: how many of whom are let in."""

from __future__ import annotations

from pathlib import Path

import pytest

from istio_auth.door.register import DoorLimits, Register
from istio_auth.errors import Exhausted, NotAuthorized


class Connection:
    """A guest that does nothing."""

    def send_away(self) -> None:
        """Nothing to close."""


def enter(register: Register, count: int, whose: str, process: str | None = None) -> list[Connection]:
    """So many connections of one caller."""
    guests = [Connection() for _ in range(count)]
    for guest in guests:
        register.enter(guest, whose, process=process)
    return guests


async def test_a_process_has_a_limit_of_its_own_and_leaves_the_rest_to_others_of_its_user() -> None:
    register = Register(Path("server"), DoorLimits(per_caller=10, per_process=3), None)
    first = enter(register, 3, "uid 1", "process 7")
    with pytest.raises(Exhausted, match="3 connections of process 7"):
        enter(register, 1, "uid 1", "process 7")
    enter(register, 3, "uid 1", "process 8")
    register.leave(first[0], "")
    enter(register, 1, "uid 1", "process 7")
    assert register.connections == 6


async def test_a_caller_over_a_limit_has_one_line_in_the_log_and_every_other_refusal_has_its_own(
    caplog: pytest.LogCaptureFixture,
) -> None:
    told: list[str] = []
    register = Register(Path("server"), DoorLimits(), lambda listener, _reason: told.append(listener))
    for _ in range(3):
        register.refuse("main", "pid 7 uid 1", Exhausted("too many connections"))
        register.refuse("main", "pid 8 uid 1", Exhausted("too many connections"))
        register.refuse("main", "pid 7 uid 1", NotAuthorized("it is not welcome"))
    for port in (1001, 1002):
        register.refuse("tls", f"192.0.2.1:{port}", Exhausted("too many connections"))
        register.refuse("tls", f"[2001:db8::1]:{port}", Exhausted("too many connections"))
    assert (register.refused, len(told)) == (13, 13)
    lines = [record.getMessage() for record in caplog.records]
    assert sum("pid 7" in line and "too many" in line for line in lines) == 1
    assert sum("pid 8" in line for line in lines) == 1
    assert sum("not welcome" in line for line in lines) == 3
    assert sum("192.0.2.1" in line for line in lines) == 1, "each of its connections has another port"
    assert sum("2001:db8::1" in line for line in lines) == 1


async def test_what_is_kept_for_callers_with_few_connections_is_not_given_to_those_with_many() -> None:
    register = Register(Path("server"), DoorLimits(connections=20, reserve=5, few=2), None)
    enter(register, 15, "uid 1")
    with pytest.raises(Exhausted, match="15 connections are open"):
        enter(register, 1, "uid 1")
    enter(register, 2, "uid 2")
    with pytest.raises(Exhausted):
        enter(register, 1, "uid 2")
    enter(register, 2, "uid 3")
    enter(register, 1, "uid 4")
    with pytest.raises(Exhausted, match="20 connections are open"):
        enter(register, 1, "uid 5")


async def test_a_caller_that_was_refused_is_not_counted() -> None:
    register = Register(Path("server"), DoorLimits(per_process=1), None)
    (guest,) = enter(register, 1, "uid 1", "process 7")
    with pytest.raises(Exhausted):
        enter(register, 1, "uid 1", "process 7")
    register.leave(guest, "")
    assert register.connections == 0
    assert register.empty.is_set()
