"""Makes a fork wait until no thread of ours reads keys and certificates.

OpenSSL and cryptography have internal locks, for algorithms, random numbers and caches. If a thread holds one at the
moment of a fork, it is held in the child for ever, and the next handshake there hangs. The program itself must see to
its own threads that use TLS at that moment.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager

_PATIENCE = 1.0  # seconds; reading takes milliseconds


class _Quiet:
    """Its lock is held while somebody reads, and during a fork."""

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.held = False  # by the fork that is under way

    def before(self) -> None:
        self.held = self.lock.acquire(timeout=_PATIENCE)

    def after_in_parent(self) -> None:
        if self.held:
            self.lock.release()

    def after_in_child(self) -> None:
        self.lock = threading.RLock()


_quiet = _Quiet()
os.register_at_fork(before=_quiet.before, after_in_parent=_quiet.after_in_parent, after_in_child=_quiet.after_in_child)


@contextmanager
def no_fork() -> Generator[None]:
    """Read keys and certificates inside this block, on a thread of ours that the program does not know of."""
    with _quiet.lock:
        yield
