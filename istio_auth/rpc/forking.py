"""Forks, and gRPC's blocking interface: gRPC is stopped before a fork, or else the child may not use it.

gRPC does not survive a fork while its threads run: the child hangs in its locks or crashes, in spite of
`GRPC_ENABLE_FORK_SUPPORT`. But when its last channel is gone, gRPC ends all of its threads, and then a fork harms
neither parent nor child. So before a fork every user that is registered here drops its channels and calls, and nobody
starts new ones until the fork is over. If other code in the process keeps gRPC running, the child gets `Forked` when
it first uses gRPC through us.
"""

from __future__ import annotations

import os
import threading
import time
import weakref
from pathlib import Path
from typing import Protocol

from istio_auth.errors import NotReady

_PATIENCE = 1.0  # seconds; gRPC ends its threads within milliseconds of its last channel
_TASKS = Path("/proc/self/task")
# How the names of gRPC's threads begin; the kernel keeps 15 characters of a name.
_NAMES = ("event_engine", "grpc_", "lifeguard", "default-execut", "resolver-execu")


class Forked(NotReady):
    """This process was forked while gRPC ran in its parent, and so can not use gRPC."""


class User(Protocol):
    """An object that uses gRPC's blocking interface."""

    def release(self) -> None:
        """Drop every channel and call; those who wait for a call get an error."""
        ...

    def after_fork(self) -> None:
        """Called in the child."""
        ...


class _Gate:
    """Its lock is held for the moment in which a gRPC object is started or dropped, and for a whole fork."""

    def __init__(self) -> None:
        self.users: weakref.WeakSet[User] = weakref.WeakSet()
        self.lock = threading.RLock()
        self.at_work = False  # at the fork
        self.broken = False

    def before(self) -> None:
        self.lock.acquire()
        users = list(self.users)
        for user in users:
            user.release()
        over = time.monotonic() + _PATIENCE
        while (at_work := grpc_at_work()) and users and time.monotonic() < over:
            time.sleep(0.001)
        self.at_work = at_work

    def after_in_parent(self) -> None:
        self.lock.release()

    def after_in_child(self) -> None:
        self.lock = threading.RLock()
        self.broken = self.broken or self.at_work
        for user in list(self.users):
            user.after_fork()


_gate = _Gate()
os.register_at_fork(before=_gate.before, after_in_parent=_gate.after_in_parent, after_in_child=_gate.after_in_child)


def grpc_at_work() -> bool:
    """Whether gRPC has threads in this process now; False if the system has no /proc to tell."""
    if not _TASKS.is_dir():
        return False
    for task in _TASKS.iterdir():
        try:
            name = (task / "comm").read_text()
        except OSError:
            continue  # it has just ended
        if name.startswith(_NAMES):
            return True
    return False


def tell_of_forks(user: User) -> None:
    """Tell this user of forks from now on, for as long as it lives."""
    _gate.users.add(user)


def starting() -> threading.RLock:
    """A lock to hold while a channel or call of gRPC is started, so that no fork happens meanwhile.

    Raises:
        Forked: gRPC can not be used in this process.
    """
    if _gate.broken:
        raise Forked(
            "this process was forked while its parent used gRPC, which does not survive that: fork before anything "
            "uses gRPC, or start processes by `spawn` or `forkserver`"
        )
    return _gate.lock


def dropping() -> threading.RLock:
    """A lock to hold while a channel of gRPC is dropped."""
    return _gate.lock
