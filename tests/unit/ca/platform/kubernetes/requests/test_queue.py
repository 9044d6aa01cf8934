"""RequestQueue: every request gets its answer in the end, and none stands in the way of another."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from ca.platform.kubernetes.api.client import KubernetesAPI
from ca.platform.kubernetes.api.objects import Object, text
from ca.platform.kubernetes.api.resources import CERTIFICATE_SIGNING_REQUESTS
from ca.platform.kubernetes.requests.queue import RequestQueue
from istio_auth.errors import ConflictError, Exhausted, IstioAuthError, MissingError, NotReady
from tests.fakes.api_server import FakeAPIServer
from tests.fakes.background import in_background
from tests.fakes.clock import FakeClock
from tests.fakes.waiting import until

SIGNER = "istio-auth.io/workload"
LONGEST = timedelta(minutes=1)


class Signer:
    """Answers requests, or raises what a test wants; an answered one waits no more, as the API server tells."""

    def __init__(self, server: FakeAPIServer) -> None:
        self.looked: list[str] = []
        self.errors: dict[str, Exception] = {}
        self.busy: dict[str, asyncio.Event] = {}
        self.tells = True
        self._server = server

    async def answer(self, request: Object) -> None:
        name = text(request, "metadata", "name")
        self.looked.append(name)
        if name in self.busy:
            await self.busy[name].wait()
        if name in self.errors:
            raise self.errors[name]
        if self.tells:
            ask(self._server, name, waits=False)


def ask(server: FakeAPIServer, name: str, *, signer: str = SIGNER, waits: bool = True) -> None:
    server.put(CERTIFICATE_SIGNING_REQUESTS, name, spec={"signerName": signer}, status={} if waits else {"done": True})


class Running:
    """A queue and its clock."""

    def __init__(self, api: KubernetesAPI, signer: Signer, clock: FakeClock) -> None:
        self.clock = clock
        self.queue = RequestQueue(
            api,
            CERTIFICATE_SIGNING_REQUESTS,
            SIGNER,
            answer=signer.answer,
            waits=lambda request: request["status"] == {},
            clock=clock,
            look=timedelta(seconds=0.01),
        )

    @property
    def delayed(self) -> dict[str, str]:
        return {key.name: reason for key, reason in self.queue.delayed.items()}

    def run(self) -> AbstractAsyncContextManager[None]:
        return in_background(self.queue.run())


@pytest.fixture
async def signer(server: FakeAPIServer) -> Signer:
    return Signer(server)


@pytest.fixture
def stopped(api: KubernetesAPI, signer: Signer, clock: FakeClock) -> Running:
    return Running(api, signer, clock)


@pytest.fixture
async def running(stopped: Running, server: FakeAPIServer) -> AsyncIterator[Running]:
    async with stopped.run():
        await until(lambda: server.open)
        yield stopped


async def test_each_request_of_ours_that_waits_is_answered_once(
    stopped: Running, signer: Signer, server: FakeAPIServer
) -> None:
    ask(server, "before")
    ask(server, "done", waits=False)
    ask(server, "foreign", signer="example.org/other")
    async with stopped.run():
        await until(lambda: server.open)
        ask(server, "after")
        await until(lambda: len(signer.looked) == 2 and not len(stopped.queue))
    assert signer.looked == ["before", "after"]
    assert stopped.queue.resource is CERTIFICATE_SIGNING_REQUESTS


async def test_one_that_hangs_holds_nobody_up(running: Running, signer: Signer, server: FakeAPIServer) -> None:
    signer.busy["slow"] = asyncio.Event()
    ask(server, "slow")
    await until(lambda: signer.looked == ["slow"])
    for number in range(40):
        ask(server, f"r-{number}")
    await until(lambda: len(running.queue) == 1)
    signer.busy["slow"].set()
    await until(lambda: not len(running.queue))
    assert len(signer.looked) == 41


@pytest.mark.parametrize(
    "error", [NotReady("no"), Exhausted("no"), IstioAuthError("no"), KeyError("no"), RuntimeError("no"), TimeoutError()]
)
async def test_a_bad_one_waits_with_its_reason_and_the_others_are_answered(
    running: Running, signer: Signer, server: FakeAPIServer, error: Exception
) -> None:
    signer.errors["bad"] = error
    ask(server, "bad")
    for number in range(40):
        ask(server, f"r-{number}")
    await until(lambda: len(running.queue) == 1 and running.delayed)
    ours = isinstance(error, IstioAuthError)
    assert running.delayed == {"bad": "no" if ours else f"a fault of ours: {type(error).__name__}"}
    del signer.errors["bad"]
    running.clock.advance(timedelta(seconds=1))
    await until(lambda: not len(running.queue))
    assert signer.looked.count("bad") == 2
    await until(lambda: not running.delayed)


async def test_the_delays_grow_up_to_a_minute(running: Running, signer: Signer, server: FakeAPIServer) -> None:
    signer.errors["bad"] = NotReady("not yet")
    ask(server, "bad")
    for attempt in range(1, 10):
        await until(lambda attempt=attempt: len(signer.looked) == attempt and running.queue._agenda.next())  # type: ignore[misc]  # of a default
        due = running.queue._agenda.next()
        assert due is not None
        bound = min(timedelta(seconds=2 ** (attempt - 1)), LONGEST)
        assert bound / 2 <= due - running.clock.now() <= bound
        running.clock.time = due
    await until(lambda: len(signer.looked) == 10)


async def test_nothing_is_looked_at_before_its_time(running: Running, signer: Signer, server: FakeAPIServer) -> None:
    signer.errors["bad"] = Exhausted("too many", retry_after=timedelta(seconds=40))
    ask(server, "bad")
    await until(running.queue._agenda.next)
    assert running.queue._agenda.next() == running.clock.now() + timedelta(seconds=40)
    running.clock.advance(timedelta(seconds=39))
    ask(server, "good")
    await until(lambda: signer.looked == ["bad", "good"])
    running.clock.advance(timedelta(seconds=1))
    await until(lambda: signer.looked == ["bad", "good", "bad"])


async def test_a_reason_is_logged_once_as_long_as_it_is_the_same(
    running: Running, signer: Signer, server: FakeAPIServer
) -> None:
    signer.errors["bad"] = NotReady("no key yet")
    with capture_logs() as logs:
        ask(server, "bad")
        for attempt in range(1, 4):
            await until(lambda attempt=attempt: len(signer.looked) == attempt and running.queue._agenda.next())  # type: ignore[misc]  # of a default
            running.clock.advance(LONGEST)
        await until(lambda: len(signer.looked) == 4)
        signer.errors["bad"] = NotReady("no chain yet")
        await until(running.queue._agenda.next)
        running.clock.advance(LONGEST)
        await until(lambda: running.delayed["bad"] == "no chain yet")
    told = [(log["log_level"], log["reason"]) for log in logs if log["event"] == "a request waits"]
    assert told == [("warning", "no key yet"), ("warning", "no chain yet")]


async def test_one_that_waits_is_looked_at_at_once_if_it_changes(
    running: Running, signer: Signer, server: FakeAPIServer
) -> None:
    signer.errors["bad"] = NotReady("not approved")
    ask(server, "bad")
    await until(lambda: running.delayed)
    del signer.errors["bad"]
    ask(server, "bad")
    await until(lambda: not len(running.queue))
    assert signer.looked == ["bad", "bad"]


async def test_one_that_changes_while_it_is_looked_at_is_looked_at_again_by_one_alone(
    running: Running, signer: Signer, server: FakeAPIServer
) -> None:
    signer.busy["web"] = asyncio.Event()
    signer.errors["web"] = ConflictError("it was changed")
    ask(server, "web")
    await until(lambda: signer.looked == ["web"])
    ask(server, "web")
    ask(server, "other")
    await until(lambda: signer.looked == ["web", "other"])
    del signer.errors["web"]
    signer.busy["web"].set()
    await until(lambda: not len(running.queue))
    assert signer.looked == ["web", "other", "web"]


@pytest.mark.parametrize("how", ["deleted", "answered by another"])
async def test_one_that_is_gone_is_forgotten(running: Running, signer: Signer, server: FakeAPIServer, how: str) -> None:
    signer.errors["bad"] = NotReady("no")
    ask(server, "bad")
    await until(lambda: running.delayed)
    if how == "deleted":
        server.remove(CERTIFICATE_SIGNING_REQUESTS, "bad")
    else:
        ask(server, "bad", waits=False)
    await until(lambda: not running.delayed)
    assert not len(running.queue)
    assert len(running.queue._agenda) == 0
    assert not running.queue._attempts._failed


async def test_one_that_goes_while_it_is_looked_at_is_forgotten_in_the_end(
    running: Running, signer: Signer, server: FakeAPIServer
) -> None:
    signer.busy["bad"], signer.errors["bad"] = asyncio.Event(), NotReady("no")
    ask(server, "bad")
    await until(lambda: signer.looked)
    server.remove(CERTIFICATE_SIGNING_REQUESTS, "bad")
    await until(lambda: not len(running.queue))
    signer.busy["bad"].set()
    await until(lambda: running.delayed)
    running.clock.advance(LONGEST)
    await until(lambda: not running.delayed)
    assert signer.looked == ["bad"]


@pytest.mark.parametrize("error", [ConflictError("it was changed"), MissingError("it is gone")])
async def test_a_conflict_is_no_fault(
    running: Running, signer: Signer, server: FakeAPIServer, error: IstioAuthError
) -> None:
    signer.errors["web"] = error
    with capture_logs() as logs:
        ask(server, "web")
        await until(lambda: signer.looked)
        ask(server, "other")
        await until(lambda: "other" in signer.looked and len(running.queue) == 1)
    assert (running.delayed, logs, len(running.queue._agenda)) == ({}, [], 0)


async def test_a_conflict_ends_the_waiting_for_what_was_in_the_way_before(
    running: Running, signer: Signer, server: FakeAPIServer
) -> None:
    signer.errors["web"] = NotReady("no")
    ask(server, "web")
    await until(lambda: running.delayed)
    signer.errors["web"] = ConflictError("it was changed")
    running.clock.advance(LONGEST)
    await until(lambda: not running.delayed)
    assert not running.queue._attempts._failed


async def test_a_request_without_sense_is_left_out_and_the_others_are_answered(
    running: Running, signer: Signer, server: FakeAPIServer
) -> None:
    server.put(CERTIFICATE_SIGNING_REQUESTS, "odd", spec={"signerName": SIGNER})  # `waits` stumbles over it
    ask(server, "web")
    await until(lambda: signer.looked == ["web"])


class TestNextTerm:
    async def test_what_was_being_answered_when_a_term_ended_is_answered_in_the_next(
        self, stopped: Running, signer: Signer, server: FakeAPIServer
    ) -> None:
        signer.busy["web"] = asyncio.Event()
        ask(server, "web")
        async with stopped.run():
            await until(lambda: signer.looked)
        del signer.busy["web"]
        async with stopped.run():
            await until(lambda: not len(stopped.queue))
        assert signer.looked == ["web", "web"]

    async def test_what_another_leader_answered_meanwhile_is_not_looked_at(
        self, stopped: Running, signer: Signer, server: FakeAPIServer
    ) -> None:
        signer.busy["web"] = asyncio.Event()
        signer.errors["late"] = NotReady("no")
        ask(server, "web")
        ask(server, "late")
        async with stopped.run():
            await until(lambda: stopped.delayed and len(signer.looked) == 2)
        signer.busy.clear()
        ask(server, "web", waits=False)
        ask(server, "late", waits=False)
        stopped.clock.advance(LONGEST)
        async with stopped.run():
            await until(lambda: server.open)
            ask(server, "new")
            await until(lambda: "new" in signer.looked)
        assert sorted(signer.looked) == ["late", "new", "web"]
