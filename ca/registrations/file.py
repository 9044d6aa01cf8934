"""The registrations file on disk: read at the start, and again when it changed.

At the start a bad file is an error, and a missing file means that nothing is registered. Later, a bad or missing file
is reported and the last good one stays in use: a mistake in an edit must not take every workload's identity away.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable
from pathlib import Path

import structlog

from ca.registrations.rules import MAX_FILE_BYTES, RegistrationRules, parse_registrations
from ca.registrations.table import RegistrationHistory, RegistrationTable
from ca.registry import Grant
from istio_auth.errors import ConfigurationError, IstioAuthError, MissingError, NotReady
from istio_auth.files import read_bounded
from istio_auth.spiffe_id import SpiffeID
from istio_auth.subscribers import Subscribers

_log = structlog.get_logger()
_WRITABLE_BY_ALL = 0o002
_SETTLING = 0.1  # seconds


class RegistrationFile:
    """The registrations that are in force.

    Args:
        path: the file.
        rules: the rules for its registrations.

    Attributes:
        fault: what is wrong with the file as it is now; None if it is in use. Otherwise the last good one is.
        reloads: how often a changed file was taken.
        failures: how often a changed file was refused.

    Raises:
        ConfigurationError: the file is bad.
        NotReady: it could not be read.
    """

    def __init__(self, path: Path, rules: RegistrationRules) -> None:
        self.fault: str | None = None
        self.reloads = 0
        self.failures = 0
        self._path = path
        self._rules = rules
        self._subscribers = Subscribers()
        self._reloading = asyncio.Lock()
        self._version = self._look()
        table = RegistrationTable() if self._version is None else self._read()
        self.history = RegistrationHistory(secrets.token_hex(8), table)

    @property
    def table(self) -> RegistrationTable:
        """The present registrations."""
        return self.history.table

    async def reload_if_changed(self) -> bool:
        """If the file has changed, take it if it is good, and report it if it is bad.

        Returns:
            whether the registrations changed.
        """
        async with self._reloading:
            version = await asyncio.to_thread(self._look)
            if version == self._version:
                return False
            await asyncio.sleep(_SETTLING)
            if version != await asyncio.to_thread(self._look):
                return False  # an editor is at work: half a file can be a good one that lacks registrations
            try:
                table = await asyncio.to_thread(self._read)
            except NotReady as error:
                self._refused(error)
                return False  # to be tried again
            except IstioAuthError as error:
                self._version = version
                self._refused(error)
                return False
            self._version = version
            self.fault = None
            self.reloads += 1
            changed = self.history.replace(table)
        _log.info(
            "registrations reloaded", path=str(self._path), registrations=len(table), revision=self.history.revision
        )
        if changed:
            self._subscribers.tell()
        return changed

    def subscribe(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed`, on the event loop, after each change.

        Returns:
            a function that ends the subscription.
        """
        return self._subscribers.add(changed)

    def history_of(self, agent: str) -> RegistrationHistory:  # noqa: ARG002  # one file for all
        """The tables for an agent (see `Registrations`)."""
        return self.history

    def follow(self, agent: str, changed: Callable[[], None]) -> Callable[[], None]:  # noqa: ARG002  # the same
        """Call `changed` after each change (see `Registrations`)."""
        return self.subscribe(changed)

    def grant_of(self, spiffe_id: SpiffeID, *, agent: str | None = None) -> Grant | None:
        """What the registrations of a SPIFFE ID allow (see `RegistrationTable.grant_of`)."""
        return self.table.grant_of(spiffe_id, agent=agent)

    def _refused(self, error: IstioAuthError) -> None:
        self.fault = str(error)
        self.failures += 1
        _log.error(
            "registrations file refused, the last good one stays",
            path=str(self._path),
            reason=str(error),
            registrations=len(self.table),
            revision=self.history.revision,
        )

    def _look(self) -> tuple[int, int, int] | None:
        """A value that changes whenever the file does; None if there is no file."""
        try:
            found = self._path.stat()
        except FileNotFoundError:
            return None
        except OSError:
            return 0, 0, 0  # reading it will say what is wrong
        return found.st_mtime_ns, found.st_ino, found.st_size

    def _read(self) -> RegistrationTable:
        try:
            text = read_bounded(self._path, MAX_FILE_BYTES)
            if self._path.stat().st_mode & _WRITABLE_BY_ALL:
                raise ConfigurationError("everybody may write to it: run chmod o-w")
            return parse_registrations(text, self._rules)
        except MissingError as error:
            raise ConfigurationError(f"{self._path} went away") from error
        except ConfigurationError as error:
            raise ConfigurationError(f"{self._path}: {error}") from error
