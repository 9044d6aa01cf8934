"""Leader election among real processes that are killed, paused and cut off."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

import pytest

from ca.platform.kubernetes.api.client import KubernetesAPI
from ca.platform.kubernetes.api.connection import connected
from ca.platform.kubernetes.leader.candidate import LeaseTiming
from ca.platform.kubernetes.leader.lease import LeaderElection
from istio_auth.system_clock import SystemClock
from tests.cluster.candidate import LEASE, TIMING
from tests.cluster.client import Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.waiting import eventually
from tests.fakes import guard
from tests.fakes.waiting import until


class Line(NamedTuple):
    """That a candidate might write."""

    identity: str
    term: int
    instant: float


class Candidates:
    """Processes that stand for election for the lease of one namespace."""

    def __init__(self, plane: ControlPlane, namespace: str, folder: Path, stack: ExitStack) -> None:
        self._plane, self._namespace, self._file, self._stack = plane, namespace, folder / "written", stack

    def start(self, identity: str, *, seconds: int = 4) -> subprocess.Popen[bytes]:
        command = (sys.executable, "-m", "tests.cluster.candidate", self._plane.kubeconfig, self._namespace)
        process = subprocess.Popen((*command, identity, self._file, str(seconds)), process_group=guard.group())
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def lines(self) -> list[Line]:
        with suppress(FileNotFoundError):
            whole = self._file.read_text().rpartition("\n")[0]  # the last line may be half written
            words = [line.split() for line in whole.splitlines()]
            return [Line(identity, int(term), float(instant)) for identity, term, instant in words]
        return []

    async def until_leads(self, identity: str, *, after: int = -1) -> Line:
        """Its first line of a term after this one."""

        def found() -> list[Line]:
            return [line for line in self.lines() if line.identity == identity and line.term > after]

        await until(found)
        return found()[0]

    def last_of(self, identity: str) -> Line:
        """The last line of one that writes no more, or not now."""
        return [line for line in self.lines() if line.identity == identity][-1]

    def assert_one_at_a_time(self) -> None:
        """Terms are in the order of time, and each is of one candidate."""
        lines = sorted(self.lines(), key=lambda line: line.instant)
        assert [line.term for line in lines] == sorted(line.term for line in lines)
        assert len({line.term for line in lines}) == len({(line.term, line.identity) for line in lines})


@pytest.fixture
def candidates(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> Iterator[Candidates]:
    with ExitStack() as stack:
        yield Candidates(control_plane, namespace, tmp_path, stack)


@pytest.fixture
async def api(control_plane: ControlPlane) -> AsyncIterator[KubernetesAPI]:
    async with connected(control_plane.kubeconfig) as api:
        yield api


async def test_when_a_leader_is_killed_another_leads_once_the_lease_has_run_out(candidates: Candidates) -> None:
    first = candidates.start("first")
    await candidates.until_leads("first")
    candidates.start("second")
    first.kill()
    first.wait()
    last = candidates.last_of("first")
    taken = await candidates.until_leads("second", after=last.term)
    assert taken.term == last.term + 1
    assert taken.instant - last.instant > (TIMING.duration - TIMING.renew_deadline).total_seconds()
    candidates.assert_one_at_a_time()


async def test_a_paused_leader_that_wakes_up_after_another_took_over_writes_nothing(candidates: Candidates) -> None:
    first = candidates.start("first")
    await candidates.until_leads("first")
    candidates.start("second")
    first.send_signal(signal.SIGSTOP)
    taken = await candidates.until_leads("second", after=candidates.last_of("first").term)
    first.send_signal(signal.SIGCONT)
    goes_on = len(candidates.lines()) + 100
    await until(lambda: len(candidates.lines()) > goes_on)
    assert not [line for line in candidates.lines() if line.term < taken.term and line.instant > taken.instant]
    candidates.assert_one_at_a_time()


async def test_a_leader_that_stops_in_good_order_is_followed_long_before_the_lease_has_run_out(
    candidates: Candidates,
) -> None:
    first = candidates.start("first", seconds=600)
    await candidates.until_leads("first")
    candidates.start("second", seconds=600)
    first.terminate()
    await asyncio.to_thread(first.wait)
    await candidates.until_leads("second")
    candidates.assert_one_at_a_time()


# Nobody loses the lease for a moment in which the machine does something else.
PATIENT = LeaseTiming(timedelta(seconds=60), timedelta(seconds=40), timedelta(seconds=0.3))
# And who leaves, or fails, has the time to say so.
PARTING = replace(PATIENT, retry_period=timedelta(seconds=20))


@contextmanager
def standing(election: LeaderElection, led: Callable[[int], None]) -> Iterator[asyncio.Task[None]]:
    """Stand for election meanwhile; tell each term that begins."""

    async def lead(term: int) -> None:
        led(term)
        await asyncio.Event().wait()

    task = asyncio.create_task(election.run(lead))
    try:
        yield task
    finally:
        task.cancel()


async def ended(task: asyncio.Task[None]) -> None:
    """Return when it is cancelled and has ended."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_the_lease_tells_people_who_leads_and_is_empty_after_an_orderly_stop(
    api: KubernetesAPI, admin: Client, namespace: str
) -> None:
    terms: list[int] = []
    election = LeaderElection(api, namespace, LEASE, identity="me", clock=SystemClock(), timing=PARTING)
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{LEASE}"
    with standing(election, terms.append) as task:
        await until(lambda: terms)
        lease = await admin.get(path)
        assert lease["spec"]["holderIdentity"] == election.leader == "me"
        assert lease["spec"]["leaseDurationSeconds"] == 60
        assert lease["spec"]["leaseTransitions"] == terms[0]
        await ended(task)
    assert "holderIdentity" not in (await admin.get(path))["spec"]
    assert not election.still_leading()
    assert election.leader == ""


async def test_what_others_put_into_the_lease_stays_and_its_leader_leads_on(
    api: KubernetesAPI, admin: Client, namespace: str
) -> None:
    terms: list[int] = []
    election = LeaderElection(api, namespace, LEASE, identity="me", clock=SystemClock(), timing=PATIENT)
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{LEASE}"
    with standing(election, terms.append) as task:
        await until(lambda: terms)
        patched = await admin.patch(path, {"metadata": {"annotations": {"example.org/note": "kept"}}})

        async def renewed() -> bool:
            return bool((await admin.get(path))["spec"]["renewTime"] > patched["spec"]["renewTime"])

        await eventually(renewed)
        assert (await admin.get(path))["metadata"]["annotations"] == {"example.org/note": "kept"}
        assert election.still_leading()
        assert len(terms) == 1
        await ended(task)


async def test_a_lease_that_somebody_deleted_is_made_anew_by_its_leader(
    api: KubernetesAPI, admin: Client, namespace: str
) -> None:
    terms: list[int] = []
    election = LeaderElection(api, namespace, LEASE, identity="me", clock=SystemClock(), timing=PATIENT)
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{LEASE}"
    with standing(election, terms.append) as task:
        await until(lambda: terms)
        await admin.delete(path)
        lease = await eventually(lambda: admin.find(path))
        assert lease["spec"]["holderIdentity"] == "me"
        assert len(terms) == 1
        await ended(task)


async def test_a_leader_whose_lease_another_was_given_by_hand_stops_at_once(
    api: KubernetesAPI, admin: Client, namespace: str
) -> None:
    terms: list[int] = []
    election = LeaderElection(api, namespace, LEASE, identity="me", clock=SystemClock(), timing=PATIENT)
    path = f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{LEASE}"
    with standing(election, terms.append) as task:
        await until(lambda: terms)
        given = {"holderIdentity": "other", "leaseTransitions": 7, "leaseDurationSeconds": 1}
        await admin.patch(path, {"spec": given})
        await until(lambda: not election.still_leading())
        await until(lambda: len(terms) == 2)
        assert terms[1] == 8
        await ended(task)


async def test_the_work_is_stopped_before_the_lease_has_run_out_when_the_api_server_hangs(
    own_control_plane: ControlPlane,
) -> None:
    timing = replace(PATIENT, renew_deadline=timedelta(seconds=2.4))  # long before, for the machine may be busy
    stopped = asyncio.Event()
    instants: list[float] = []
    async with connected(own_control_plane.kubeconfig) as api:
        election = LeaderElection(api, "default", LEASE, identity="me", clock=SystemClock(), timing=timing)
        led = asyncio.Event()

        async def lead(term: int) -> None:
            led.set()
            try:
                await asyncio.Event().wait()
            finally:
                instants.append(asyncio.get_running_loop().time())
                stopped.set()

        task = asyncio.create_task(election.run(lead))
        async with asyncio.timeout(90):
            await led.wait()
        own_control_plane.pause_api_server()
        begin = asyncio.get_running_loop().time()
        async with asyncio.timeout(90):
            await stopped.wait()
        assert instants[0] - begin < timing.duration.total_seconds()
        assert not election.still_leading()
        led.clear()
        own_control_plane.resume_api_server()
        async with asyncio.timeout(90):
            await led.wait()  # it leads again
        await ended(task)


async def test_work_that_fails_ends_the_election_with_its_cause_and_releases_the_lease(
    api: KubernetesAPI, admin: Client, namespace: str
) -> None:
    election = LeaderElection(api, namespace, LEASE, identity="me", clock=SystemClock(), timing=PARTING)

    async def lead(term: int) -> None:
        raise RuntimeError(f"term {term} went wrong")

    with pytest.raises(RuntimeError, match="term 0 went wrong"):
        await election.run(lead)
    lease = await admin.get(f"/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{LEASE}")
    assert "holderIdentity" not in lease["spec"]
