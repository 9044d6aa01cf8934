"""TrustBundlePublisher: keeps our roots in a ClusterTrustBundle, which pods get into a volume without any agent.

The API is new: if the API server lacks it, that is logged once, and each look tries again. Writing needs permission for
the verb `attest` on the signer of the bundle.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import NoReturn

import structlog

from ca.controller.contention import Contention
from ca.controller.snapshot import MARK_LABEL
from ca.platform.kubernetes.api.client import KubernetesAPI
from ca.platform.kubernetes.api.objects import Object, member, object_of, text
from ca.platform.kubernetes.api.resources import CLUSTER_TRUST_BUNDLES, Resource
from ca.platform.kubernetes.events.recorder import EventRecorder
from ca.platform.kubernetes.events.series import Regarding
from ca.platform.kubernetes.roots.plan import CONFIG_LABEL, Foreign, Publication, PublishedRoots
from istio_auth.clock import Clock
from istio_auth.errors import ConflictError, IstioAuthError, MissingError

_ATTEMPTS = 3  # at a write, if somebody else is faster each time
_log = structlog.get_logger()


def bundle_name(signer: str, name: str) -> str:
    """The name of a ClusterTrustBundle of a signer."""
    return f"{signer.replace('/', ':')}:{name}"


class TrustBundlePublisher:
    """Looks after one ClusterTrustBundle, while it runs; only the leader runs it. Lives on one event loop.

    Args:
        api: the API server.
        signer: the signer it belongs to, `domain/path`.
        roots: tells what is to be published; call `changed` when that has changed.
        mark: the name of this CA, in a label of everything it makes.
        clock: tells the time.
        events: tells people.
        leading: whether this process leads at this instant.
        name: what follows the signer in its name.
        resource: the kind, in the version that the API server serves.
        interval: how often it is looked at; often enough to see three changes in a minute.

    Attributes:
        name: the whole name of the object.
        fault: why it is not as it shall be; None if it is, or was not looked at yet.
    """

    def __init__(
        self,
        api: KubernetesAPI,
        signer: str,
        *,
        roots: Callable[[], PublishedRoots],
        mark: str,
        clock: Clock,
        events: EventRecorder,
        leading: Callable[[], bool],
        name: str = "roots",
        resource: Resource = CLUSTER_TRUST_BUNDLES,
        interval: timedelta = timedelta(seconds=15),
    ) -> None:
        self.name = bundle_name(signer, name)
        self.fault: str | None = None
        self._api = api
        self._signer = signer
        self._source = roots
        self._mark = mark
        self._clock = clock
        self._events = events
        self._leading = leading
        self._resource = resource
        self._interval = interval.total_seconds()
        self._begin()

    def published(self, sequence: int) -> datetime | None:
        """Since when it holds the bundle of this sequence or a later one; None if it does not, or this does not run."""
        return self._publication.since(sequence)

    def lags(self, sequence: int) -> bool:
        """Whether the object exists, so that pods may read it, without the bundle of this sequence in it."""
        return self._is_there and self._publication.since(sequence) is None

    def changed(self) -> None:
        """There may be another bundle: look at once."""
        self._wake.set()

    async def run(self) -> NoReturn:
        """Look after it until cancelled."""
        self._begin()
        try:
            while True:
                self._wake.clear()
                await self._look_and_tell()
                try:
                    async with asyncio.timeout(self._interval):
                        await self._wake.wait()
                except TimeoutError:
                    pass
        finally:
            self._begin()

    def _begin(self) -> None:
        self._publication = Publication()
        self._is_there = False
        self._contention = Contention[str]()
        self._written = ("", "")  # the PEM and the resource version of our last write
        self._wake = asyncio.Event()

    async def _look_and_tell(self) -> None:
        try:
            fault = await self._look()
        except IstioAuthError as error:
            fault = str(error)
        if fault is not None:
            self._publication.lacks(self.name)
        if fault != self.fault:
            self.fault = fault
            if fault is not None:
                _log.warning("the ClusterTrustBundle is not as it shall be", name=self.name, reason=fault)

    async def _look(self) -> str | None:
        """Make the object right; None if it is, otherwise why that is not possible."""
        now, roots = self._clock.now(), self._source()
        if self._publication.sequence != roots.sequence:
            self._publication.begin(roots.sequence, [self.name], now)
        for _ in range(_ATTEMPTS):
            try:
                found = await self._find()
                self._is_there = found is not None
                if found is not None and self._is_right(found, roots.pem):
                    self._publication.holds(self.name, now)
                    return None
                self._publication.lacks(self.name)
                if (why := self._left_alone(found, roots.pem, now)) is not None:
                    return self._tell(found, why)
                await self._write(found, roots)
            except ConflictError:
                continue
            except MissingError:  # there is no namespace that could be missing
                return f"the API server does not serve {self._resource} in {self._resource.version}"
        raise ConflictError("somebody else is always faster")

    async def _find(self) -> Object | None:
        try:
            return await self._api.get(self._resource, self.name)
        except MissingError:
            return None

    def _is_right(self, found: Object, pem: str) -> bool:
        labels = object_of(member(found, "metadata", "labels"))
        return text(found, "spec", "trustBundle") == pem and labels.get(CONFIG_LABEL) == "true"

    def _left_alone(self, found: Object | None, pem: str, now: datetime) -> Foreign | None:
        """Why it is not written although it is not right; None if it may be written."""
        if (mark := text(member(found, "metadata", "labels"), MARK_LABEL)) and mark != self._mark:
            return Foreign.ANOTHER_CA
        version = text(found, "metadata", "resourceVersion")
        if self._written[0] == pem and self._written[1] != version:  # somebody changed it; each change counts once
            self._written = pem, version
            self._contention.note(self.name, now)
        return Foreign.CONTENDED if self._contention.until(self.name, now) is not None else None

    async def _write(self, found: Object | None, roots: PublishedRoots) -> None:
        if not self._leading():
            raise ConflictError("another one leads by now")
        body = self._body(found, roots.pem)
        if found is None:
            made = await self._api.create(self._resource, body)
        else:
            made = await self._api.replace(self._resource, body)
        self._is_there = True
        self._written = roots.pem, text(made, "metadata", "resourceVersion")
        _log.info("the ClusterTrustBundle was published", name=self.name, bundle_sequence=roots.sequence)

    def _body(self, found: Object | None, pem: str) -> Object:
        """The object as it shall be, with everything that others put into it."""
        metadata = object_of(member(found, "metadata")) or {"name": self.name}
        labels = object_of(metadata.get("labels")) | {CONFIG_LABEL: "true", MARK_LABEL: self._mark}
        spec: Object = {"signerName": self._signer, "trustBundle": pem}
        return {"metadata": metadata | {"labels": labels}, "spec": object_of(member(found, "spec")) | spec}

    def _tell(self, found: Object | None, why: Foreign) -> str:
        note = f"it does not hold our trust bundle and is left alone: {why.value}"
        if self.fault != note:
            regarding = Regarding(self._resource, self.name, uid=text(found, "metadata", "uid"))
            self._events.record(regarding, "RootsNotPublished", note, action="Publish")
        return note
