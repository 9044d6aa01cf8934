"""Subscribers to a change: the one way in which parts of a process tell each other that something is new."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Subscribers:
    """Functions to call after each change. May be used from any thread; `tell` calls them on its own thread."""

    def __init__(self) -> None:
        self._functions: dict[object, Callable[[], None]] = {}
        self._lock = threading.Lock()

    def add(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` after each change, until the returned function is called."""
        key = object()
        with self._lock:
            self._functions[key] = changed

        def end() -> None:
            with self._lock:
                self._functions.pop(key, None)

        return end

    def tell(self) -> None:
        """Call all of them, without holding the lock, so that they may subscribe and unsubscribe."""
        with self._lock:
            functions = list(self._functions.values())
        for changed in functions:
            changed()

    def __bool__(self) -> bool:
        return bool(self._functions)

    def after_fork(self) -> None:
        """Called in a forked child: the thread that held the lock at the fork is not here to release it."""
        self._lock = threading.Lock()
