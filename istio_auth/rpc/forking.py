"""Forks, and gRPC's blocking interface: a fork finds gRPC at rest, or the child may not use it.

gRPC does not survive a fork that hits it at work: the child hangs in its locks or crashes, in spite of
`GRPC_ENABLE_FORK_SUPPORT`. But with its last channel gone it ends all of its threads, and then a fork is harmless to
both. So before a fork every user that is registered here drops what it has of gRPC, and waits until the fork is over.
Where others in the process keep gRPC at work, the child is told so at its first use of ours.
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
# How gRPC names its threads, as far as the kernel tells: 15 characters.
_NAMES = ("event_engine", "grpc_", "lifeguard", "default-execut", "resolver-execu")


class Forked(NotReady):
    """This process was forked while gRPC was at work in its parent, and so can not use it."""


class User(Protocol):
    """Somebody who uses gRPC's blocking interface."""

    def release(self) -> None:
        """Drop every channel and call; whoever waits for one hears of it."""
        ...

    def after_fork(self) -> None:
        """Called in the child."""
        ...


class _Gate:
    """Who starts something of gRPC's holds this for that moment; a fork holds it throughout."""

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
    """Whether gRPC has threads in this process now; where the kernel does not tell, it is taken to have none."""
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
    """From now on this user is told, for as long as it lives."""
    _gate.users.add(user)


def starting() -> threading.RLock:
    """A lock to hold while something of gRPC's is started, so that no fork comes in between.

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
    """A lock to hold while something of gRPC's is put out of reach."""
    return _gate.lock
