"""RootPublisher: keeps the trust bundle in a ConfigMap of every managed namespace. The I/O around `roots.plan`.

Level-triggered: any change of a namespace or its ConfigMap causes a look at it, and everything is looked at once in a
while. A ConfigMap that is right is not written again. One that somebody keeps changing back is left alone for a while,
and reported, so that there is no fight.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from types import MappingProxyType
from typing import Final, NoReturn

import structlog

from ca.controller.contention import Contention
from ca.controller.namespaces import Scope
from ca.controller.snapshot import Namespace
from ca.controller.work_queue import Agenda, Attempts, WorkQueue
from ca.platform.kubernetes.api.client import KubernetesAPI, Selection
from ca.platform.kubernetes.api.objects import Key, text
from ca.platform.kubernetes.api.reflector import Reflector
from ca.platform.kubernetes.api.resources import CONFIG_MAPS
from ca.platform.kubernetes.events.recorder import EventRecorder
from ca.platform.kubernetes.events.series import Regarding
from ca.platform.kubernetes.facts import ConfigMapFact
from ca.platform.kubernetes.roots.plan import (
    NAME,
    Foreign,
    Publication,
    PublishedRoots,
    Step,
    holds,
    new_config_map,
    next_step,
    patch_of,
)
from istio_auth.clock import Clock
from istio_auth.errors import ConflictError, IstioAuthError, MissingError

OUR_NAME: Final = Selection(fields=f"metadata.name={NAME}")  # which ConfigMaps to watch
_LOOK_EVERY = 0.25  # seconds between two looks at what is due
_SHOWN_WITHIN = timedelta(seconds=5)  # how long the watch may take to show a write of ours
_CHANGED_MEANWHILE = timedelta(seconds=0.5)
_FIRST_RETRY, _LONGEST_RETRY = timedelta(seconds=0.5), timedelta(minutes=2)
_log = structlog.get_logger()


@dataclass(slots=True)
class _Written:
    """Our last write in a namespace.

    Args:
        pem: what we wrote.
        version: the version that we made, or the latest one by others that was counted as a change.
        over: the version that we replaced; empty for none.
        until: until when the watch may still show the replaced version.
    """

    pem: str
    version: str
    over: str
    until: datetime


class RootPublisher:
    """Looks after the ConfigMaps, while it runs; only the leader runs it. Lives on one event loop.

    Args:
        api: the API server.
        namespaces: watches the namespaces; somebody else runs it.
        config_maps: watches the ConfigMaps of our name (`OUR_NAME`); somebody else runs it.
        roots: tells what is to be published; call `changed` when that has changed.
        scope: what we have to do with a namespace.
        mark: the name of this CA, in a label of everything it makes.
        clock: tells the time.
        events: tells people.
        leading: whether this process leads at this instant.
        workers: how many ConfigMaps are written at once.
        resync: how often everything is looked at, whether or not a change was heard of.
    """

    def __init__(
        self,
        api: KubernetesAPI,
        namespaces: Reflector[Namespace],
        config_maps: Reflector[ConfigMapFact],
        *,
        roots: Callable[[], PublishedRoots],
        scope: Callable[[str, Namespace | None], Scope],
        mark: str,
        clock: Clock,
        events: EventRecorder,
        leading: Callable[[], bool],
        workers: int = 8,
        resync: timedelta = timedelta(minutes=10),
    ) -> None:
        self._api = api
        self._namespaces = namespaces
        self._config_maps = config_maps
        self._source = roots
        self._scope = scope
        self._mark = mark
        self._clock = clock
        self._events = events
        self._leading = leading
        self._workers = workers
        self._resync = resync.total_seconds()
        self._begin()
        namespaces.on_change(lambda key: self._queue.add(key.name))
        config_maps.on_change(self._config_map_changed)

    @property
    def lacking(self) -> int:
        """How many managed namespaces are without the bundle, as far as is known."""
        return self._publication.lacking

    @property
    def findings(self) -> Mapping[str, Foreign]:
        """The namespaces whose ConfigMap is wrong but left alone, and why."""
        return MappingProxyType(self._findings)

    def published(self, sequence: int) -> datetime | None:
        """Since when every managed namespace holds the bundle of this sequence or a later one, without interruption.

        None if one does not, if that is not known for certain at present, or if this does not run.
        """
        if self._namespaces.fault or self._config_maps.fault:
            return None
        return self._publication.since(sequence)

    def changed(self) -> None:
        """There may be another bundle: look at once."""
        self._wake.set()

    async def run(self) -> NoReturn:
        """Look after the ConfigMaps until cancelled."""
        await self._namespaces.until_synced()
        await self._config_maps.until_synced()
        self._begin()
        try:
            async with asyncio.TaskGroup() as tasks:
                for _ in range(self._workers):
                    tasks.create_task(self._queue.work_off(self._look))
                tasks.create_task(self._look_at_everything())
                while True:
                    for namespace in self._agenda.take(self._clock.now()):
                        self._queue.add(namespace, urgent=False)
                    await asyncio.sleep(_LOOK_EVERY)
        finally:
            self._begin()

    def _begin(self) -> None:
        """Forget everything: another leader may have worked since."""
        self._roots: PublishedRoots | None = None
        self._publication = Publication()
        self._queue = WorkQueue[str]()
        self._agenda = Agenda[str]()
        self._contention = Contention[str]()
        self._written: dict[str, _Written] = {}
        self._attempts = Attempts[str](_FIRST_RETRY, _LONGEST_RETRY)
        self._findings: dict[str, Foreign] = {}
        self._wake = asyncio.Event()

    def _config_map_changed(self, key: Key) -> None:
        if key.name == NAME:
            self._queue.add(key.namespace)

    async def _look_at_everything(self) -> NoReturn:
        while True:
            self._wake.clear()
            now = self._clock.now()
            known = {key.name for key in self._namespaces.facts} | {key.namespace for key in self._config_maps.facts}
            if self._roots != (roots := self._source()):
                self._roots = roots
                self._publication.begin(roots.sequence, known, now)
            self._contention.left_alone(now)
            for namespace in known | self._written.keys():
                self._queue.add(namespace, urgent=False)
            try:
                async with asyncio.timeout(self._resync):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _look(self, namespace: str) -> None:
        roots, found = self._roots, self._config_maps.get(NAME, namespace=namespace)
        if roots is None:
            return
        step = self._decide(namespace, found, roots)
        if step is None:
            return
        try:
            if not self._leading():
                raise ConflictError("another one leads by now")
            version = await self._do(step, namespace, found, roots)
        except (ConflictError, MissingError):  # it was changed since it was shown, or the namespace is being deleted
            self._again(namespace, _CHANGED_MEANWHILE)
        except IstioAuthError as error:
            self._failed(namespace, error)
        else:
            self._attempts.forget(namespace)
            _log.debug("the roots were published", namespace=namespace, step=step.value, bundle_sequence=roots.sequence)
            until = self._clock.now() + _SHOWN_WITHIN
            self._agenda.put(namespace, until)
            self._written[namespace] = _Written(roots.pem, version, found.version if found else "", until)

    def _decide(self, namespace: str, found: ConfigMapFact | None, roots: PublishedRoots) -> Step | None:
        """What to do now; takes note of what is seen."""
        now = self._clock.now()
        scope = self._scope(namespace, self._namespaces.get(namespace))
        self._note(namespace, scope, is_held=holds(found, roots.pem))
        if self._is_not_shown_yet(namespace, found, now):
            return None
        step = next_step(scope, found, roots.pem, self._mark)
        if isinstance(step, Step) and scope is Scope.MANAGED:
            self._count_change(namespace, found, roots.pem)
            if (until := self._contention.until(namespace, now)) is not None:
                self._agenda.put(namespace, until)
                step = Foreign.CONTENDED
        if isinstance(step, Foreign):
            self._report(namespace, found, step)
            return None
        self._findings.pop(namespace, None)
        return step

    def _note(self, namespace: str, scope: Scope, *, is_held: bool) -> None:
        now = self._clock.now()
        if scope is not Scope.MANAGED:
            self._publication.is_gone(namespace, now)
            if scope is Scope.LEFT_ALONE:  # a new namespace of the same name begins with a clean record
                self._written.pop(namespace, None)
                self._contention.forget(namespace)
                self._attempts.forget(namespace)
        elif not is_held:
            self._publication.lacks(namespace)
        elif self._publication.holds(namespace, now):
            _log.info("every managed namespace holds the roots", bundle_sequence=self._publication.sequence)

    def _is_not_shown_yet(self, namespace: str, found: ConfigMapFact | None, now: datetime) -> bool:
        """Whether the watch still shows the version that we have replaced."""
        written = self._written.get(namespace)
        return written is not None and now < written.until and written.over == (found.version if found else "")

    def _count_change(self, namespace: str, found: ConfigMapFact | None, pem: str) -> None:
        """Take note if somebody has changed what we wrote; each change counts once."""
        version = found.version if found else ""
        written = self._written.get(namespace)
        if written is not None and written.pem == pem and written.version != version:
            written.version = version
            self._contention.note(namespace, self._clock.now())

    async def _do(self, step: Step, namespace: str, found: ConfigMapFact | None, roots: PublishedRoots) -> str:
        """Do it, and return the version after it; empty after a deletion."""
        if found is None:
            made = await self._api.create(CONFIG_MAPS, new_config_map(roots.pem, self._mark), namespace=namespace)
        elif step is Step.DELETE:
            await self._api.delete(CONFIG_MAPS, NAME, namespace=namespace, uid=found.uid, version=found.version)
            return ""
        else:
            patch = patch_of(found, roots.pem, self._mark)
            made = await self._api.patch(CONFIG_MAPS, NAME, patch, namespace=namespace)
        return text(made, "metadata", "resourceVersion")

    def _failed(self, namespace: str, error: IstioAuthError) -> None:
        self._again(namespace, self._attempts.failed(namespace, at_least=error.retry_after))
        level = _log.warning if self._attempts.count(namespace) == 1 else _log.debug
        level("the roots were not published", namespace=namespace, reason=str(error))

    def _report(self, namespace: str, found: ConfigMapFact | None, why: Foreign) -> None:
        if self._findings.get(namespace) is why:
            return
        self._findings[namespace] = why
        note = f"the ConfigMap {NAME} does not hold our trust bundle and is left alone: {why.value}"
        _log.warning("the roots are not published", namespace=namespace, reason=why.value)
        regarding = Regarding(CONFIG_MAPS, NAME, namespace, found.uid if found else "")
        self._events.record(regarding, "RootsNotPublished", note, action="Publish")

    def _again(self, namespace: str, delay: timedelta) -> None:
        self._agenda.put(namespace, self._clock.now() + delay)
