"""What a daemon tells its service manager (sd_notify(3)): a datagram to the socket that NOTIFY_SOCKET names.

Without that variable every message goes nowhere. A message that can not be sent is logged and never stops the daemon.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import MutableMapping
from datetime import timedelta

import structlog

_log = structlog.get_logger()
_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """Tells the service manager that started us, if one did.

    Args:
        environment: holds its variables; they are taken out, so that no program that we start can speak for us.
        pid: our process id: a watchdog may be meant for another process (sd_watchdog_enabled(3)).
    """

    def __init__(self, environment: MutableMapping[str, str], pid: int) -> None:
        address, usec, watched = (environment.pop(name, "") for name in _VARIABLES)
        self._address = "\0" + address[1:] if address.startswith("@") else address
        ours = watched in {"", str(pid)}
        self.watchdog = timedelta(microseconds=int(usec)) if ours and usec.isdigit() and int(usec) else None

    @classmethod
    def of_process(cls) -> Notifier:
        """The notifier for the service manager that the environment of this process names."""
        return cls(os.environ, os.getpid())

    def ready(self) -> None:
        """We serve."""
        self._tell("READY=1")

    def reloading(self) -> None:
        """We read our files again; `ready` ends it."""
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        """We are stopping."""
        self._tell("STOPPING=1")

    def alive(self) -> None:
        """The event loop runs."""
        self._tell("WATCHDOG=1")

    def status(self, words: str) -> None:
        """What we are doing, in one line for people."""
        self._tell(f"STATUS={words.splitlines()[0] if words else ''}")

    def _tell(self, message: str) -> None:
        if not self._address:
            return
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as out:
                out.setblocking(False)  # a manager that does not read must not block the event loop
                out.sendto(message.encode(), self._address)
        except OSError as error:
            _log.warning("the service manager could not be told", message=message.partition("\n")[0], reason=str(error))
