"""A daemon that behaves, or misbehaves, as its first argument says: `python -m tests.fakes.daemon MODE [SECONDS]`.

It writes one word a line to standard output for what happens to it.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from datetime import timedelta
from pathlib import Path

from istio_auth.daemon.lifecycle import Daemon, run
from istio_auth.daemon.logging import Format, Level, configure
from istio_auth.errors import ConfigurationError, NotReady


def say(word: str) -> None:
    sys.stdout.write(word + "\n")
    sys.stdout.flush()


async def serve(daemon: Daemon) -> None:
    mode = sys.argv[1]
    if mode == "refused":
        raise ConfigurationError("the store is of another trust domain")
    if mode == "port-in-use":
        raise NotReady("somebody else listens there")
    daemon.on_reload("bad", bad_reload)
    daemon.on_reload("file", good_reload)
    try:
        daemon.supervise("worker", worker(mode))
        if mode == "waits":
            daemon.readiness.add("part", lambda: "nothing yet")
        daemon.ready()
        say("ready")
        if mode == "refused-later":
            raise ConfigurationError("too late")
        if mode == "hung":
            time.sleep(3600)  # noqa: ASYNC251  # a hung event loop is what this mode is for
        await daemon.until_stop()
        say(f"stopping {sorted(daemon.readiness.problems())}")
        if mode == "slow":
            await asyncio.sleep(3600)
    finally:
        say("drained")


async def worker(mode: str) -> None:
    if mode == "dies":
        raise ValueError("a defect")
    if mode == "ends":
        return
    if mode == "hung-thread":
        await asyncio.to_thread(time.sleep, 3600)
    await asyncio.Event().wait()


async def bad_reload() -> None:
    raise ConfigurationError("not like this")


async def good_reload() -> None:
    if "orphan" in sys.argv:
        make_orphan()
    say("reloaded")


def make_orphan() -> None:
    """A grandchild whose parent is gone, and that ends at once."""
    if child := os.fork():
        os.waitpid(child, 0)
    elif os.fork():
        os._exit(0)
    else:
        Path("/dev/null").read_bytes()
        os._exit(0)


if __name__ == "__main__":
    configure(Level.INFO, Format.JSON)
    limit = timedelta(seconds=float(sys.argv[2])) if len(sys.argv) > 2 else timedelta(seconds=9.5)
    sys.exit(run(serve, stop_within=limit))
