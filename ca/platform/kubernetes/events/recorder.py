"""EventRecorder: writes what happened to an object as a Kubernetes Event on it; `kubectl describe` shows it.

Events are for people. Recording one never blocks, never fails and never costs more than a bounded queue: an Event that
does not fit, or can not be written, is dropped with a line in the log. Log and metrics tell what happened anyway.
"""

from __future__ import annotations

import asyncio
import re
import uuid
from typing import Final, NoReturn

import structlog

from ca.platform.kubernetes.api.client import KubernetesAPI
from ca.platform.kubernetes.api.objects import Object, micro_time
from ca.platform.kubernetes.api.resources import EVENTS
from ca.platform.kubernetes.events.series import EventSeries, EventType, Occurrence, Regarding, Series
from istio_auth.clock import Clock
from istio_auth.errors import IstioAuthError, MissingError

CONTROLLER: Final = "istio-auth.io/istio-ca"
_NOTE_BYTES = 1024  # events.k8s.io/v1: note
_WORD_BYTES = 128  # reason, action and reporting instance
_NAME_LENGTH = 253 - 17  # of the object, in the name of the Event
_NO_NAMESPACE = "default"  # where Events about objects without one are
_UNFIT = re.compile(r"[^a-z0-9.-]+")
_log = structlog.get_logger()


class EventRecorder:
    """Writes Events, one after the other. Lives on one event loop.

    Args:
        api: the API server.
        instance: the name of this process, as a pod's.
        clock: tells the time.
        capacity: how many may wait to be written.
    """

    def __init__(self, api: KubernetesAPI, *, instance: str, clock: Clock, capacity: int = 500) -> None:
        self._api = api
        self._instance = _cut(instance, _WORD_BYTES)
        self._clock = clock
        self._series = EventSeries()
        self._queue: asyncio.Queue[Series] = asyncio.Queue(capacity)
        self._fault: str | None = None
        self._full = False

    def record(
        self, regarding: Regarding, reason: str, note: str, *, action: str, event_type: EventType = EventType.WARNING
    ) -> None:
        """Record what happened to an object. Returns at once, and raises nothing.

        Args:
            regarding: which object.
            reason: the reason of the Event, in one word: `IssuanceFailed`.
            note: what happened, in full; cut at 1024 bytes. Never a key or a token.
            action: what was done, or tried, in one word: `Issue`.
            event_type: whether to worry.
        """
        occurrence = Occurrence(
            regarding, _cut(action, _WORD_BYTES), _cut(reason, _WORD_BYTES), _cut(note, _NOTE_BYTES), event_type
        )
        series = self._series.count(occurrence, self._clock.now())
        if series is None:
            return
        try:
            self._queue.put_nowait(series)
        except asyncio.QueueFull:
            if not self._full:
                _log.warning("events are left out", waiting=self._queue.qsize())
            self._full = True

    async def run(self) -> NoReturn:
        """Write what was recorded, for ever."""
        while True:
            series = await self._queue.get()
            try:
                await self._write(series)
            except IstioAuthError as error:
                self._report(str(error), series)
            else:
                self._fault = None
            finally:
                self._queue.task_done()
            self._full = self._full and not self._queue.empty()

    async def written(self) -> None:
        """Return when nothing waits to be written."""
        await self._queue.join()

    async def _write(self, series: Series) -> None:
        namespace = series.occurrence.regarding.namespace or _NO_NAMESPACE
        if series.name:
            try:
                await self._api.patch(EVENTS, series.name, _counted(series), namespace=namespace)
            except MissingError:  # the API server keeps Events for an hour
                series.name = ""
            else:
                return
        name = f"{_fit(series.occurrence.regarding.name)}.{uuid.uuid4().hex[:16]}"
        await self._api.create(EVENTS, self._event(series, name, namespace), namespace=namespace)
        series.name = name

    def _event(self, series: Series, name: str, namespace: str) -> Object:
        occurrence = series.occurrence
        event: Object = {
            "metadata": {"name": name, "namespace": namespace},
            "eventTime": micro_time(series.first),
            "reportingController": CONTROLLER,
            "reportingInstance": self._instance,
            "action": occurrence.action,
            "reason": occurrence.reason,
            "note": occurrence.note,
            "type": occurrence.type.value,
            "regarding": occurrence.regarding.reference(),
        }
        return event | _counted(series) if series.count > 1 else event

    def _report(self, reason: str, series: Series) -> None:
        """Log a warning for the first failure in a row; the others only at debug level."""
        level = _log.debug if self._fault else _log.warning
        level("an event was not written", object=series.occurrence.regarding.name, reason=reason)
        self._fault = reason


def _counted(series: Series) -> Object:
    return {"series": {"count": series.count, "lastObservedTime": micro_time(series.last)}}


def _cut(text: str, limit: int) -> str:
    """At most so many bytes of UTF-8, and something that can be sent."""
    data = text.encode(errors="replace")
    return data.decode() if len(data) <= limit else data[: limit - 3].decode(errors="ignore") + "..."


def _fit(name: str) -> str:
    """The name of an object as the beginning of a DNS subdomain."""
    return _UNFIT.sub("-", name.lower())[:_NAME_LENGTH].strip(".-") or "event"
