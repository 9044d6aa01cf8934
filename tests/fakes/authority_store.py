"""An AuthorityStore in memory, which fails, loses races and forgets on request."""

from __future__ import annotations

from collections.abc import Callable

from ca.authority.state import AuthorityState
from ca.authority.store import AuthorityStore, version_of
from istio_auth.errors import ConflictError


class MemoryAuthorityStore(AuthorityStore):
    """Keeps the state in memory.

    Attributes:
        content: what is stored.
        writes: how often it was replaced.
        reading, writing: called before each; may raise, or change the content first, as another process would.
    """

    def __init__(self, state: AuthorityState | None = None) -> None:
        self.content = None if state is None else state.to_json()
        self.writes = 0
        self.reading: Callable[[], None] = lambda: None
        self.writing: Callable[[], None] = lambda: None

    @property
    def where(self) -> str:
        return "memory"

    def _read(self) -> bytes | None:
        self.reading()
        return self.content

    def _write(self, content: bytes, expected: str | None) -> None:
        self.writing()
        if (None if self.content is None else version_of(self.content)) != expected:
            raise ConflictError("somebody else was first")
        self.content = content
        self.writes += 1
