"""The agents of one CA, one file each: `<name>.json`, written by the CA alone, and `evicted/<name>.json`.

A record and an eviction are separate files, so that recording a renewal can not undo an eviction that happens at the
same moment. A lock on the folder orders the few steps that look at both. An eviction by another process, such as
`ca-cli agent evict`, counts from the next request on: the folder of evictions is looked at each time.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from ca.agents.agent import AgentRecord, Evictions, check_agent_name, read_instant
from istio_auth.clock import whole_seconds
from istio_auth.errors import ConfigurationError, ConflictError, MissingError, NotAuthorized, NotReady
from istio_auth.files import FileLock, atomic_write, private_folder, read_bounded, sync_folder
from istio_auth.spiffe_id import SpiffeID
from istio_auth.subscribers import Subscribers

_MAX_FILE = 16 << 20  # the names of some hundred thousand workloads
_LOCK_PATIENCE = timedelta(seconds=5)
_SETTLED = 2_000_000_000  # ns: a folder changed within this time may change again under the same time stamp


class AgentFolder:
    """Keeps agents. Methods block, but `check_welcome`, `unnoted` and `evictions` as a rule only for one or two `stat`.

    Args:
        folder: where the files are; made if it is not there, and open to us only.

    Raises:
        ConfigurationError: the folder can not be used.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = private_folder(folder)
        self._evicted = private_folder(folder / "evicted")
        self._lock = threading.Lock()
        self._known: dict[str, tuple[tuple[int, int, bool], AgentRecord]] = {}  # by time stamp, inode, settled
        self._seen: tuple[int, bool] | None = None
        self._evictions = Evictions({})
        self._subscribers = Subscribers()

    def find(self, name: str) -> AgentRecord:
        """The record of an agent.

        Raises:
            MissingError: it never enrolled.
            ConfigurationError: that can be no agent's name, or the record is damaged.
            NotReady: the look-up failed.
        """
        check_agent_name(name)
        record, evicted_at = self._record(name), self.evictions().since.get(name)
        return record if evicted_at is None else replace(record, evicted_at=evicted_at)

    def list(self) -> list[AgentRecord]:
        """All agents, by name (see `find`)."""
        return [self.find(name) for name in sorted(path.stem for path in self._folder.glob("*.json"))]

    def check_welcome(self, name: str) -> AgentRecord:
        """The record of an agent that is enrolled and was not evicted.

        Raises:
            NotAuthorized: it is not enrolled, or was evicted.
            NotReady: the look-up failed.
        """
        try:
            record = self.find(name)
        except (MissingError, ConfigurationError) as error:
            raise NotAuthorized(f"the agent is not enrolled here: {error}") from error
        record.check_welcome()
        return record

    def is_known(self, name: str) -> bool:
        """Whether an agent of this name ever enrolled, or was evicted. A damaged record counts as an agent's.

        Raises:
            ConfigurationError, NotReady: the look-up failed.
        """
        try:
            check_agent_name(name)
        except ConfigurationError:
            return False
        try:
            self._record(name)
        except MissingError:
            return name in self.evictions().since
        except ConfigurationError:
            return True  # `find` will say that it is damaged
        return True

    def unnoted(self, name: str, identities: Iterable[SpiffeID]) -> frozenset[SpiffeID]:
        """Which of these SPIFFE IDs are not on record yet as held through this agent (see `Agents`)."""
        return frozenset(identities) - self.check_welcome(name).identities

    def enrol(self, name: str, node_key: str, *, invited_at: datetime, now: datetime) -> AgentRecord:
        """Keep the node key of an agent, in the place of an older one.

        Args:
            name: the agent.
            node_key: the fingerprint of its node key.
            invited_at: when the operator's join token was made.
            now: the present instant.

        Raises:
            NotAuthorized: the agent was evicted and can not come back, or not yet.
            ConfigurationError, NotReady: the record could not be kept.
        """
        check_agent_name(name)
        with self._alone():
            old = self._old_record(name)
            record = AgentRecord(name, node_key, whole_seconds(now))
            if old is not None:
                old.check_readmission(invited_at, now)
                record = replace(record, svid_end=old.svid_end, identities=old.identities)
            self._write(record)
            if old is not None and old.evicted_at is not None:
                (self._evicted / f"{name}.json").unlink(missing_ok=True)
                sync_folder(self._evicted)
        return record

    def note_svid(self, name: str, end: datetime) -> None:
        """Keep the end of an SVID that is about to be handed to an agent: recovery counts from there.

        Raises:
            NotAuthorized: the agent was evicted meanwhile.
            ConfigurationError, NotReady: it could not be kept; the SVID must not be handed out.
        """
        with self._alone():
            record = self.check_welcome(name)
            if record.svid_end is None or record.svid_end < end:
                self._write(replace(record, svid_end=end))

    def note_identities(self, name: str, identities: Iterable[SpiffeID]) -> None:
        """Keep the SPIFFE IDs for which certificates are about to be issued through an agent.

        Raises:
            NotAuthorized: the agent was evicted meanwhile.
            ConfigurationError, NotReady: they could not be kept; nothing must be issued.
        """
        with self._alone():
            record = self.check_welcome(name)
            if not record.identities.issuperset(wanted := frozenset(identities)):
                self._write(replace(record, identities=record.identities | wanted))

    def evict(self, name: str, now: datetime) -> AgentRecord:
        """Shut an agent out. One that is shut out already stays so, since the first time.

        Raises:
            MissingError: it never enrolled.
            ConfigurationError, NotReady: it could not be kept.
        """
        with self._alone():
            record = self.find(name)
            if record.evicted_at is not None:
                return record
            evicted_at = whole_seconds(now)
            atomic_write(self._evicted / f"{name}.json", evicted_at.isoformat().encode() + b"\n")
            return replace(record, evicted_at=evicted_at)

    def evictions(self) -> Evictions:
        """Who is shut out now, whichever process did it.

        Raises:
            ConfigurationError, NotReady: the look-up failed: nobody is welcome then.
        """
        try:
            changed = os.stat(self._evicted).st_mtime_ns  # noqa: PTH116  # as in `_record`
        except OSError as error:
            raise NotReady(f"can not look at {self._evicted}: {error.strerror}") from error
        if self._seen != (changed, True):
            settled = time.time_ns() - changed > _SETTLED
            found = self._read_evictions()
            self._seen = (changed, settled)
            if found != self._evictions:
                self._evictions = found
                self._subscribers.tell()
        return self._evictions

    def subscribe(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed`, on whichever thread notices, after each change of the evictions.

        Returns:
            a function that ends the subscription.
        """
        return self._subscribers.add(changed)

    def _read_evictions(self) -> Evictions:
        since: dict[str, datetime] = {}
        identities: dict[SpiffeID, datetime] = {}
        for path in self._evicted.glob("*.json"):
            since[path.stem] = _read_eviction(path)
            try:
                issued = self._record(path.stem).identities
            except MissingError:
                continue  # nothing was issued through it
            for spiffe_id in issued:
                identities[spiffe_id] = max(since[path.stem], identities.get(spiffe_id, since[path.stem]))
        return Evictions(since, identities)

    def _old_record(self, name: str) -> AgentRecord | None:
        try:
            return self.find(name)
        except MissingError:
            evicted_at = self.evictions().since.get(name)  # it may have outlived the record
            return None if evicted_at is None else AgentRecord(name, "", evicted_at, evicted_at=evicted_at)

    def _record(self, name: str) -> AgentRecord:
        """The record in an agent's file, read again only when the file was replaced."""
        path = self._folder / f"{name}.json"
        try:
            found = os.stat(path)  # noqa: PTH116  # half the time of Path.stat, on the way of every request
        except FileNotFoundError:
            self._known.pop(name, None)
            raise MissingError(f"agent {name} never enrolled") from None
        except OSError as error:
            raise NotReady(f"can not look at {path}: {error.strerror}") from error
        changed, number = found.st_mtime_ns, found.st_ino
        known = self._known.get(name)
        if known is None or known[0] != (changed, number, True):
            settled = time.time_ns() - changed > _SETTLED  # the inode does not help: a new file may get the old one's
            text = read_bounded(path, _MAX_FILE)
            try:
                record = AgentRecord.from_json(text)
            except ConfigurationError as error:
                raise ConfigurationError(f"{path}: {error}") from error
            if record.name != name:
                raise ConfigurationError(f"{path} is the record of agent {record.name}")
            known = self._known[name] = ((changed, number, settled), record)
        return known[1]

    def _write(self, record: AgentRecord) -> None:
        atomic_write(self._folder / f"{record.name}.json", record.to_json())

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Alone among our threads and among all processes."""
        with self._lock, ExitStack() as held:
            deadline = time.monotonic() + _LOCK_PATIENCE.total_seconds()
            while True:
                try:
                    held.enter_context(FileLock(self._folder / ".lock"))
                    break
                except ConflictError as error:
                    if time.monotonic() > deadline:
                        raise NotReady(f"the folder of the agents stays locked: {error}") from error
                    time.sleep(0.01)
            yield


def _read_eviction(path: Path) -> datetime:
    """When an agent was evicted. A file that does not say when evicts all the same, from the time it was written."""
    try:
        return read_instant(read_bounded(path, 100).decode().strip())
    except (ValueError, ConfigurationError):
        return datetime.fromtimestamp(path.stat().st_mtime, UTC)
    except MissingError:
        return datetime.now(UTC)  # taken back while we looked; the next look will see it
