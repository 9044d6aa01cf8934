"""Who wants to hear of a change: the one way in which parts of a process tell each other that something is new."""

from __future__ import annotations

import threading
from collections.abc import Callable


class Subscribers:
    """Functions to call after each change. From any thread; they are called on the thread that tells."""

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
        """Call all of them; not under the lock, so that they may add and end."""
        with self._lock:
            functions = list(self._functions.values())
        for changed in functions:
            changed()

    def __bool__(self) -> bool:
        return bool(self._functions)

    def after_fork(self) -> None:
        """In a forked child: whoever held the lock when it was forked is not here to give it back."""
        self._lock = threading.Lock()
