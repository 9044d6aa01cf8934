"""The alarm clock rings late rather than never."""

from __future__ import annotations

import asyncio
import time
from datetime import datetime, timedelta, tzinfo

import pytest
from apscheduler.executors import base as executors
from apscheduler.schedulers import base as schedulers

from istio_auth.daemon.alarm import Alarm

TICK = timedelta(milliseconds=50)


def shift_calendar(monkeypatch: pytest.MonkeyPatch, by: timedelta) -> None:
    class Shifted:
        @staticmethod
        def now(zone: tzinfo) -> datetime:
            return datetime.now(zone) + by

    for module in (schedulers, executors):
        monkeypatch.setattr(module, "datetime", Shifted)


async def test_it_rings_again_and_again() -> None:
    async with Alarm() as alarm, asyncio.timeout(60):
        rings = alarm.every(TICK, jitter=TICK / 5)
        started = time.monotonic()
        for _ in range(3):
            await anext(rings)
        assert time.monotonic() - started >= 2 * TICK.total_seconds()
        await rings.aclose()


async def test_what_was_missed_comes_as_one_ring() -> None:
    async with Alarm() as alarm, asyncio.timeout(60):
        rings = alarm.every(TICK)
        await anext(rings)
        time.sleep(10 * TICK.total_seconds())  # noqa: ASYNC251  # a stalled event loop is what is tested
        begun = time.monotonic()
        for _ in range(5):  # one for all that was missed, and four that each need their time
            await anext(rings)
        assert time.monotonic() - begun >= 3 * TICK.total_seconds()
        await rings.aclose()


async def test_a_machine_that_slept_is_rung_soon_after_it_wakes_however_late(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Alarm(look=TICK) as alarm, asyncio.timeout(60):
        rings = alarm.every(timedelta(hours=1))
        waiting = asyncio.ensure_future(anext(rings))
        await asyncio.sleep(0)
        shift_calendar(monkeypatch, timedelta(hours=1, minutes=30))
        await waiting
        await rings.aclose()


async def test_a_clock_that_was_set_back_does_not_silence_it(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Alarm() as alarm, asyncio.timeout(60):
        rings = alarm.every(TICK)
        await anext(rings)
        shift_calendar(monkeypatch, timedelta(days=-1))
        await anext(rings)
        await anext(rings)
        await rings.aclose()


async def test_a_listener_may_outlive_the_clock() -> None:
    async with Alarm() as alarm:
        rings = alarm.every(TICK)
        await anext(rings)
    await rings.aclose()
