"""Reflector: keeps slim facts about all objects of one kind at the API server, and tells subscribers of changes.

It lists, and then watches from there, for ever. A watch that ends is opened again where it stopped. One that is silent
for too long is taken for dead, as the API server sends a bookmark every minute. When the version is no longer known,
everything is listed anew. A list replaces all facts in one step; objects that vanished meanwhile are changes too.

An object that can not be decoded is left out and reported, and does no harm to the others. An object that has not
changed since it was decoded is not decoded again.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import AsyncIterator, Callable, Mapping
from datetime import timedelta
from types import MappingProxyType
from typing import Generic, NoReturn, TypeVar

import structlog

from ca.platform.kubernetes.api.client import EVERYTHING, KubernetesAPI, Selection
from ca.platform.kubernetes.api.objects import Key, Object, text
from ca.platform.kubernetes.api.refusals import WatchExpired
from ca.platform.kubernetes.api.resources import Resource
from istio_auth.errors import IstioAuthError, NotReady
from istio_auth.rotation import retry_delay

_WATCH = timedelta(minutes=5)
_SILENCE = timedelta(minutes=2.5)  # more than two bookmarks
_TURN = 20  # objects that are decoded in a row before other tasks of the event loop get their turn
_FIRST_RETRY, _LONGEST_RETRY = timedelta(seconds=0.2), timedelta(seconds=15)
_log = structlog.get_logger()
_Fact = TypeVar("_Fact")


class Reflector(Generic[_Fact]):
    """Keeps facts about the objects of one kind. Lives on one event loop.

    Args:
        api: the API server.
        resource: the kind.
        decode: what is kept of an object, or None if nothing; raises for one that is damaged.
        selection: which objects.
        silence: how long nothing may be heard before the watch is opened again.
        clock: tells steady seconds.

    Attributes:
        lists: how often everything was listed.
        heard: when the API server last confirmed that the facts are up to date, by the steady clock.
    """

    def __init__(
        self,
        api: KubernetesAPI,
        resource: Resource,
        decode: Callable[[Object], _Fact | None],
        *,
        selection: Selection = EVERYTHING,
        silence: timedelta = _SILENCE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.lists = 0
        self.heard = -float("inf")
        self._api = api
        self._resource = resource
        self._decode = decode
        self._selection = selection
        self._silence = silence
        self._clock = clock
        self._facts: dict[Key, _Fact] = {}
        self._versions: dict[Key, str] = {}
        self._synced = asyncio.Event()
        self._changed: list[Callable[[Key], None]] = []
        self._fault: str | None = "nothing was listed yet"
        self._silent = False

    @property
    def facts(self) -> Mapping[Key, _Fact]:
        """All facts, as far as is known; a view that follows changes."""
        return MappingProxyType(self._facts)

    @property
    def synced(self) -> bool:
        """Whether everything was listed once, by the present `run`."""
        return self._synced.is_set()

    @property
    def fault(self) -> str | None:
        """Why the API server can not be heard at present; None if it can."""
        return self._fault

    def age(self) -> timedelta:
        """How long ago the API server last confirmed the facts; `timedelta.max` before the first list."""
        seconds = self._clock() - self.heard
        return timedelta.max if seconds == float("inf") else timedelta(seconds=seconds)

    def get(self, name: str, *, namespace: str = "") -> _Fact | None:
        """What is known of one object; None if it is not there, as far as is known."""
        return self._facts.get(Key(namespace, name))

    def on_change(self, changed: Callable[[Key], None]) -> None:
        """Call this with the key of each object that came, changed or went, and with every key at the first list."""
        self._changed.append(changed)

    async def until_synced(self) -> None:
        """Return when everything was listed once, by the present `run` or the next one."""
        await self._synced.wait()

    async def run(self) -> NoReturn:
        """List and watch, for ever; a fault is reported once and tried again."""
        try:
            await self._follow()
        finally:
            self._synced.clear()  # whoever runs it again must not take these facts for the state of that time

    async def _follow(self) -> NoReturn:
        attempt, version = 0, ""
        while True:
            failed, asked_for = False, timedelta()
            try:
                version = version or await self._list()
                opened = self._clock()
                async for reached in self._watch(version):
                    version, attempt = reached, 0
            except WatchExpired:
                failed, version = True, ""
            except IstioAuthError as error:
                self._report(error)
                failed, asked_for = True, error.retry_after or timedelta()
            if failed or self._clock() - opened < 1:  # a watch that ends at once is a failure too
                attempt += 1
                delay = retry_delay(attempt, draw=random.random(), first=_FIRST_RETRY, longest=_LONGEST_RETRY)  # noqa: S311  # jitter
                await asyncio.sleep(max(delay, asked_for).total_seconds())

    async def _list(self) -> str:
        """Take the whole state over, and return the version to watch from."""
        found: dict[Key, _Fact] = {}
        versions: dict[Key, str] = {}
        version = ""
        async for page in self._api.pages(self._resource, self._selection):
            for number, item in enumerate(page.items):
                if not number % _TURN:
                    await asyncio.sleep(0)
                self._take(item, found, versions)
            version = page.version
        changed = [
            key for key in self._versions.keys() | versions.keys() if self._versions.get(key) != versions.get(key)
        ]
        self._facts, self._versions = found, versions
        self.lists += 1
        self._confirm()
        self._synced.set()
        for key in changed:
            self._tell(key)
        return version

    async def _watch(self, version: str) -> AsyncIterator[str]:
        """Follow the changes from a version, and yield the version after each."""
        lasting = _WATCH * (1 + random.random())  # noqa: S311  # so that all watches do not end together
        async with self._api.watch(self._resource, version, self._selection, lasting=lasting) as events:
            if not self._silent:  # after a silence an open watch proves nothing: only an event does
                self._confirm()
            while True:
                try:
                    async with asyncio.timeout(self._silence.total_seconds()):
                        event = await anext(events, None)
                except TimeoutError:
                    self._silent = True
                    raise NotReady(f"nothing was heard for {self._silence.total_seconds():g} seconds") from None
                if event is None:
                    return
                self._silent = False
                self._confirm()
                if found := self._apply(event):
                    yield found

    def _apply(self, event: Object) -> str:
        item = event.get("object")
        if not isinstance(item, dict):
            return ""
        version = text(item, "metadata", "resourceVersion")
        if event.get("type") != "BOOKMARK":
            key = Key.of(item)
            if event.get("type") == "DELETED":
                self._facts.pop(key, None)
                self._versions.pop(key, None)
            else:
                self._take(item, self._facts, self._versions)
            self._tell(key)
        return version

    def _take(self, item: Object, facts: dict[Key, _Fact], versions: dict[Key, str]) -> None:
        key, version = Key.of(item), text(item, "metadata", "resourceVersion")
        if version and self._versions.get(key) == version:
            fact = self._facts.get(key)  # decoded before
        else:
            facts.pop(key, None)
            fact = self._decoded(key, item)
        versions[key] = version
        if fact is not None:
            facts[key] = fact

    def _decoded(self, key: Key, item: Object) -> _Fact | None:
        try:
            return self._decode(item)
        except IstioAuthError as error:
            _log.warning("an object is left out", kind=self._resource.kind, object=str(key), reason=str(error))
        except Exception:  # noqa: BLE001  # one bad object must not end the others
            _log.exception("an object is left out", kind=self._resource.kind, object=str(key))
        return None

    def _tell(self, key: Key) -> None:
        for changed in self._changed:
            changed(key)

    def _confirm(self) -> None:
        self.heard = self._clock()
        if self._fault is not None:
            _log.info("watching", kind=self._resource.kind, of=str(self._selection), objects=len(self._facts))
            self._fault = None

    def _report(self, error: IstioAuthError) -> None:
        if self._fault != str(error):
            self._fault = str(error)
            _log.warning("not watching", kind=self._resource.kind, of=str(self._selection), reason=self._fault)
