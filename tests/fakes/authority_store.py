"""An AuthorityStore in memory, shared by replicas, which fails, loses races, answers and content on request."""

from __future__ import annotations

import threading
from collections.abc import Callable

from ca.authority.state import AuthorityState
from ca.authority.store import AuthorityStore, version_of
from istio_auth.errors import ConflictError


class MemoryAuthorityStore(AuthorityStore):
    """Keeps the state in memory. Replicas on threads of their own may share it.

    Attributes:
        content: what is stored.
        writes: how often it was replaced.
        reading, writing: called before each; may raise, or change the content first, as another process would.
        written: called after each write; what it raises, the writer hears of a write that was made.
    """

    def __init__(self, state: AuthorityState | None = None) -> None:
        self.content = None if state is None else state.to_json()
        self.writes = 0
        self.reading: Callable[[], None] = lambda: None
        self.writing: Callable[[], None] = lambda: None
        self.written: Callable[[], None] = lambda: None
        self._lock = threading.Lock()

    @property
    def where(self) -> str:
        return "memory"

    def _read(self) -> bytes | None:
        self.reading()
        return self.content

    def _write(self, content: bytes, expected: str | None) -> None:
        self.writing()
        with self._lock:
            if (None if self.content is None else version_of(self.content)) != expected:
                raise ConflictError("somebody else was first")
            self.content = content
            self.writes += 1
        self.written()
