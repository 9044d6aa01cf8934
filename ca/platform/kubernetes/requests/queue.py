"""RequestQueue: works on certificate requests, each by itself, until it has an answer.

The requests to one signer are watched. One that can not be answered now is tried again, with growing waits; one that
was changed meanwhile is looked at again at once. All of it runs on the leader alone, but a second leader would do no
harm: the API server takes one answer and refuses the other.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from typing import NoReturn

import structlog

from ca.controller.work_queue import Agenda, Attempts, WorkQueue
from ca.platform.kubernetes.api.client import KubernetesAPI, Selection
from ca.platform.kubernetes.api.objects import Key, Object
from ca.platform.kubernetes.api.reflector import Reflector
from ca.platform.kubernetes.api.resources import Resource
from istio_auth.clock import Clock
from istio_auth.errors import ConflictError, Exhausted, IstioAuthError, MissingError, NotReady

WORKERS = 32  # a kubelet that starts anew asks for all its pods at once
_FIRST_RETRY, _LONGEST_RETRY = timedelta(seconds=1), timedelta(minutes=1)
_LOOK = timedelta(seconds=0.5)
_log = structlog.get_logger()


class RequestQueue:
    """Watches requests and has them answered. Lives on one event loop.

    Args:
        api: the API server.
        resource: the kind of requests.
        signer: the signer name whose requests they are.
        answer: answers one; raises `NotReady` or `Exhausted` with the reason if that is not possible now.
        waits: whether a request waits for an answer.
        clock: tells the time.
        look: how often to look for requests that have waited long enough.

    Attributes:
        reflector: the requests that wait.
        delayed: by request, why it could not be answered yet.
    """

    def __init__(
        self,
        api: KubernetesAPI,
        resource: Resource,
        signer: str,
        *,
        answer: Callable[[Object], Awaitable[None]],
        waits: Callable[[Object], bool],
        clock: Clock,
        look: timedelta = _LOOK,
    ) -> None:
        self.delayed: dict[Key, str] = {}
        self.reflector = Reflector(
            api,
            resource,
            lambda request: request if waits(request) else None,
            selection=Selection(fields=f"spec.signerName={signer}"),
        )
        self._resource = resource
        self._answer = answer
        self._clock = clock
        self._look = look
        self._queue: WorkQueue[Key] = WorkQueue()
        self._agenda: Agenda[Key] = Agenda()
        self._attempts = Attempts[Key](_FIRST_RETRY, _LONGEST_RETRY)
        self.reflector.on_change(self._changed)

    def __len__(self) -> int:
        return len(self.reflector.facts)

    @property
    def resource(self) -> Resource:
        """The kind of requests."""
        return self._resource

    async def run(self) -> NoReturn:
        """Watch and answer, for ever."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.reflector.run())
            await self.reflector.until_synced()
            for key in self.reflector.facts:  # also those that an earlier run left unanswered
                self._queue.add(key)
            group.create_task(self._ring())
            for _ in range(WORKERS):
                group.create_task(self._queue.work_off(self._look_at))
        raise AssertionError("none of them ends")

    def _changed(self, key: Key) -> None:
        if key in self.reflector.facts:
            self._queue.add(key)
        else:
            self._forget(key)

    async def _look_at(self, key: Key) -> None:
        if (request := self.reflector.facts.get(key)) is None:
            return self._forget(key)
        try:
            await self._answer(request)
        except (ConflictError, MissingError):
            pass  # it was changed or is gone, and the watch tells
        except (NotReady, Exhausted) as error:
            return self._later(key, str(error), at_least=error.retry_after)
        except IstioAuthError as error:
            _log.error("a request could not be answered", kind=self._resource.kind, request=str(key), reason=str(error))
            return self._later(key, str(error))
        except Exception as error:  # noqa: BLE001  # one bad request must not end the others
            _log.exception("a request could not be answered", kind=self._resource.kind, request=str(key))
            return self._later(key, f"a fault of ours: {type(error).__name__}")
        return self._forget(key)

    def _later(self, key: Key, reason: str, *, at_least: timedelta | None = None) -> None:
        if self.delayed.get(key) != reason:
            _log.warning("a request waits", kind=self._resource.kind, request=str(key), reason=reason)
        self.delayed[key] = reason
        self._agenda.put(key, self._clock.now() + self._attempts.failed(key, at_least=at_least))

    def _forget(self, key: Key) -> None:
        self.delayed.pop(key, None)
        self._attempts.forget(key)
        self._agenda.drop(key)

    async def _ring(self) -> NoReturn:
        while True:
            for key in self._agenda.take(self._clock.now()):
                self._queue.add(key)
            await asyncio.sleep(self._look.total_seconds())
