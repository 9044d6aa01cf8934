"""The AuthorityStore port, which keeps the `AuthorityState`, and its adapter for a folder.

The base class gives one guarantee: "it is not there" and "it could not be looked at" are never confused. Only the first
may lead to a new root, so `load` answers None for it alone, and raises an error whatever else happens in the adapter.
Writing is compare-and-swap over the digest of the content, so that two writers can not undo each other's work.
"""

from __future__ import annotations

import hashlib
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

from ca.authority.state import AuthorityState, KeyReference
from istio_auth.errors import ConfigurationError, ConflictError, IstioAuthError, MissingError, NotReady
from istio_auth.files import FileLock, atomic_write, private_folder, read_secret, remove_leftovers, sync_folder

_MAX_STATE_BYTES = 4 << 20
_T = TypeVar("_T")
_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Versioned(Generic[_T]):
    """A value as it was stored, and the version under which to replace it."""

    value: _T
    version: str


class AuthorityStore(ABC):
    """Keeps the state of one authority. Adapters implement `where`, `_read` and `_write`. All of it blocks."""

    def load(self) -> Versioned[AuthorityState] | None:
        """What is stored; None only if it is certain that nothing is.

        Raises:
            ConfigurationError: it is damaged, of an unknown version, or open to others.
            NotReady: it could not be looked at.
        """
        if (content := self._guarded_read()) is None:
            return None
        try:
            return Versioned(AuthorityState.from_json(content), version_of(content))
        except ConfigurationError as error:
            raise ConfigurationError(f"{self.where}: {error}") from error

    def store(self, state: AuthorityState, *, expected: str | None) -> Versioned[AuthorityState]:
        """Replace what is stored.

        Args:
            state: the new state.
            expected: the version it replaces; None if there must be nothing yet.

        Raises:
            ConflictError: something else is stored by now: load it and decide again.
            ConfigurationError, NotReady: it could not be written.
        """
        content = state.to_json()
        try:
            self._write(content, expected)
        except IstioAuthError:
            raise
        except Exception as error:
            raise NotReady(f"the state of the authority could not be written ({type(error).__name__})") from error
        return Versioned(state, version_of(content))

    def load_or_make(self, first: Callable[[], AuthorityState]) -> Versioned[AuthorityState]:
        """What is stored, or what `first` makes if it is certain that nothing is.

        All processes that ask at once get the same. If writing fails, because another process was first or because the
        answer was lost, what is stored then counts.

        Raises:
            ConfigurationError, NotReady: what is stored can not be used or looked at, or the first state can not be
                written; or `first` raised it.
        """
        if (stored := self.load()) is not None:
            return stored
        state = first()
        try:
            stored = self.store(state, expected=None)
        except (ConflictError, NotReady) as error:
            if (stored := self.load()) is None:
                raise NotReady(f"the first state of the authority could not be kept: {error}") from error
        else:
            if not isinstance(state.active.key, KeyReference):
                _log.warning("a new root was made for %s: it ends %s", state.trust_domain, state.active.not_after)
        return stored

    @property
    @abstractmethod
    def where(self) -> str:
        """Where it keeps the state, for the operator who has to mend it."""

    @abstractmethod
    def _read(self) -> bytes | None:
        """The stored content, or None if it is certain that there is none."""

    @abstractmethod
    def _write(self, content: bytes, expected: str | None) -> None:
        """Replace the content of that version, or raise `ConflictError`."""

    def _guarded_read(self) -> bytes | None:
        try:
            return self._read()
        except MissingError as error:  # not "not there": an adapter says that with None, and in no other way
            raise NotReady(f"the state of the authority could not be looked at: {error}") from error
        except IstioAuthError:
            raise
        except Exception as error:
            raise NotReady(f"the state of the authority could not be looked at ({type(error).__name__})") from error


class FileAuthorityStore(AuthorityStore):
    """Keeps the state in `authority.json`, mode 0600, in a folder of mode 0700.

    Whoever may read the file can `load`. A writer holds the lock of the folder: a daemon for as long as it runs, with
    `hold()`; any other process for the one write, which fails while a daemon runs.

    Args:
        folder: the folder; made when it is first held or written to.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "authority.json"
        self._held = False

    @property
    def where(self) -> str:
        """The file."""
        return str(self._path)

    @contextmanager
    def hold(self) -> Iterator[None]:
        """Be the only process that writes here and signs with this authority.

        Raises:
            NotReady: another process is.
            ConfigurationError: the folder is open to others, or can not be used.
        """
        private_folder(self._folder)
        with ExitStack() as stack:
            try:
                stack.enter_context(FileLock(self._folder / "authority.lock"))
            except ConflictError as error:
                raise NotReady(f"another process runs on {self._folder}: a CA, or a command that issues") from error
            self._held = True
            try:
                remove_leftovers(self._folder)
                yield
            finally:
                self._held = False

    def _read(self) -> bytes | None:
        try:
            return read_secret(self._path, _MAX_STATE_BYTES)
        except MissingError:
            return None

    def _write(self, content: bytes, expected: str | None) -> None:
        with nullcontext() if self._held else self.hold():
            found = self._read()
            if (None if found is None else version_of(found)) != expected:
                raise ConflictError(f"{self._path} is not what it was")
            atomic_write(self._path, content, mode=0o600)
            if expected is None:
                sync_folder(self._folder.parent)  # the folder may be as new as the file


def version_of(content: bytes) -> str:
    """The version of a content: its digest."""
    return hashlib.sha256(content).hexdigest()
