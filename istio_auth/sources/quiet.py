"""A fork waits until no thread of ours reads keys and certificates.

OpenSSL and cryptography have locks of their own, of algorithms, random numbers and what they keep: one that a thread
holds at the moment of a fork is held in the child for ever, where the next handshake would hang. What other threads of
the program do with TLS at that moment is theirs to know.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Generator
from contextlib import contextmanager

_PATIENCE = 1.0  # seconds; reading takes milliseconds


class _Quiet:
    """Held while somebody reads, and by a fork."""

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
    """Read keys and certificates in here, on a thread that the program knows nothing of."""
    with _quiet.lock:
        yield
