"""The pods of this node, as the kubelet told them last; it is asked again for a pod that it has not told of.

A container may call before the kubelet tells of it, and the kubelet may be restarting; so a caller waits, up to a
limit, and then hears "not now" and nothing else: whoever is in a pod never counts as what it is besides. There is one
question at a time, whoever waits for it, and a pause between two: callers that come and go ask nothing of the kubelet.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import timedelta

import structlog

from istio_auth.errors import NotReady
from istio_auth.registration import Selector
from node_agent.attest.kubelet import PodSource
from node_agent.attest.pod import Place
from node_agent.attest.pod_list import PodList

FRESH = timedelta(seconds=5)  # what is told of a pod that is known; its labels may change
RECENT = timedelta(milliseconds=250)  # what is not asked for again, whoever is not found in it
_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(milliseconds=500), timedelta(seconds=2)  # of who waits
log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Answer:
    """What came of a question, and when that was asked."""

    asked: float
    pods: PodList | None
    trouble: str | None


class Pods:
    """Looks up pods.

    Args:
        source: tells of them.
        wait: how long a caller waits.
        containers: whether containers of one pod are told apart.

    Attributes:
        trouble: why the pods are not to be had; None while they are.
    """

    def __init__(self, source: PodSource, *, wait: timedelta, containers: bool) -> None:
        self._source, self._wait, self._containers = source, wait, containers
        self._answer = _Answer(float("-inf"), None, "it was not asked yet")
        self._asking: asyncio.Task[None] | None = None
        self.trouble: str | None = None

    async def selectors(self, place: Place) -> frozenset[Selector]:
        """What a process at this place is known by.

        Raises:
            NotReady: the kubelet does not tell of it in time.
        """
        reason, age, pause = "the kubelet has not answered yet", FRESH, _FIRST_PAUSE
        try:
            async with asyncio.timeout(self._wait.total_seconds()):
                while True:
                    try:
                        return (await self._pods(age)).selectors(place, containers=self._containers)
                    except NotReady as error:
                        reason = str(error)
                    again = self._answer.asked + pause.total_seconds()
                    await asyncio.sleep(again - asyncio.get_running_loop().time())
                    age, pause = RECENT, min(2 * pause, _LONGEST_PAUSE)
        except TimeoutError:
            message = f"{reason}; waited for {self._wait.total_seconds():g} s"
            raise NotReady(message, public="the caller's pod is not known yet", retry_after=_FIRST_PAUSE) from None

    async def _pods(self, age: timedelta) -> PodList:
        """The pods as they were at most so long ago.

        Raises:
            NotReady: they are not to be had.
        """
        now = asyncio.get_running_loop().time()
        if self._asking is None and self._answer.asked <= now - age.total_seconds():
            self._asking = asyncio.create_task(self._ask(now))
        if self._asking is not None:
            await asyncio.shield(self._asking)  # who stops waiting does not stop the others
        if self._answer.pods is None:
            raise NotReady(self._answer.trouble or "")
        return self._answer.pods

    async def _ask(self, now: float) -> None:
        try:
            self._answer = _Answer(now, await self._source.pods(), None)
        except NotReady as error:
            self._answer = _Answer(now, None, str(error))
        finally:
            self._asking = None
        if self._answer.trouble is not None and self._answer.trouble != self.trouble:
            log.warning("callers in pods are not known", reason=self._answer.trouble)
        self.trouble = self._answer.trouble
