"""The life of a daemon: supervised tasks, signals, the service manager, and an end within ten seconds.

- A supervised task that dies ends the daemon, with its cause. So does one that returns, because none is meant to.
- SIGTERM and SIGINT: first the daemon is not ready, then the main coroutine drains and returns. A process that is still
  there after ten seconds is ended hard. A second signal, after a moment, ends it at once.
- SIGHUP calls the functions that `on_reload` was given, one after the other. If one fails, that is logged, and the
  others are called all the same.
- WATCHDOG=1 is sent by the event loop itself, so the service manager sees a loop that hangs.
- It may be PID 1 (see `istio_auth.daemon.signals`).
"""

from __future__ import annotations

import asyncio
import enum
import gc
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from datetime import timedelta

import structlog

from istio_auth.daemon.notify import Notifier
from istio_auth.daemon.readiness import Readiness
from istio_auth.daemon.signals import Signals
from istio_auth.errors import ConfigurationError, IstioAuthError

STOP_WITHIN = timedelta(seconds=9.5)  # the interpreter itself needs the rest of the ten seconds
_log = structlog.get_logger()


class Exit(enum.IntEnum):
    """Exit codes of all our programs."""

    DONE = 0
    FAILED = 1
    USAGE = 2  # usage or configuration
    REFUSED = 3  # it was checked, and is refused


class TaskEnded(IstioAuthError):
    """A task ended that was meant to run as long as the daemon."""


def spare_the_collector() -> None:
    """Let Python's cycle collector skip what a daemon holds when it begins to serve, and run less often than usual.

    What is there by then, modules and what they made, stays for good; most objects that come later are in no cycle. To
    look at all of them again and again took nearly a tenth of the processor time of a call.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


class Daemon:
    """What the main coroutine of a daemon is given.

    Args:
        notifier: tells the service manager.
        limit: called when the end begins; it starts the time limit.
    """

    def __init__(self, notifier: Notifier, limit: Callable[[], None]) -> None:
        self.readiness = Readiness()
        self.was_ready = False
        self._notifier = notifier
        self._limit = limit
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()
        self._reloads: dict[str, Callable[[], Awaitable[None]]] = {}
        self._group = asyncio.TaskGroup()
        self._tasks: list[asyncio.Task[None]] = []

    def supervise(self, name: str, work: Coroutine[object, object, None]) -> asyncio.Task[None]:
        """Run this beside the main coroutine, until that one returns. If this one ends, the daemon fails.

        Returns:
            its task, for callers that must end it before the main coroutine returns.
        """
        task = self._group.create_task(self._supervised(name, work), name=name)
        task.add_done_callback(lambda _: work.close())  # it may end before its work began
        self._tasks.append(task)
        return task

    def on_reload(self, name: str, reload: Callable[[], Awaitable[None]]) -> None:
        """Call `reload` at each SIGHUP. It must raise if it refuses the new content, and keep the old content then."""
        self._reloads[name] = reload

    def ready(self) -> None:
        """Everything is up: say so to the service manager, and let the readiness checks decide from now on."""
        self.was_ready = True
        self.readiness.started()
        self._notifier.ready()
        if problems := dict(self.readiness.problems()):
            _log.info("started, and not ready yet", problems=problems)
        else:
            _log.info("ready")

    async def until_stop(self) -> None:
        """Return when the daemon is to end; from then on it is not ready."""
        await self._stop.wait()

    def stop(self, cause: str) -> None:
        """Begin the end: not ready, and `until_stop` returns.

        Args:
            cause: why, for the log.
        """
        if not self._stop.is_set():
            _log.info("stopping", cause=cause)
            self._end()

    def reload(self) -> None:
        """Reload, as after a SIGHUP."""
        self._reload.set()

    async def live(self, main: Callable[[Daemon], Awaitable[None]]) -> None:
        """Run the main coroutine and its supervised tasks. Called by `run`.

        Raises:
            ExceptionGroup: the errors by which the main coroutine or a task ended.
        """
        async with self._group:
            try:
                self.supervise("reload", self._reload_forever())
                if self._notifier.watchdog:
                    self.supervise("watchdog", self._watch_forever(self._notifier.watchdog / 2))
                await main(self)
            finally:
                self._end()  # not logged here: `run` logs the cause, once
                for task in self._tasks:
                    task.cancel()

    def _end(self) -> None:
        if not self._stop.is_set():
            self.readiness.stopping()
            self._limit()
            self._notifier.stopping()
            self._stop.set()

    async def _reload_forever(self) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            self._notifier.reloading()
            for name, reload in self._reloads.items():
                try:
                    await reload()
                    _log.info("reloaded", part=name)
                except Exception as error:  # noqa: BLE001  # one part's fault, whatever it is, must not stop the others
                    _log_fault("not reloaded, the last good one stays", error, part=name)
            if self.was_ready and not self._stop.is_set():
                self._notifier.ready()

    async def _supervised(self, name: str, work: Coroutine[object, object, None]) -> None:
        try:
            await work
            raise TaskEnded("it ended, which it never should")
        except Exception as error:
            _log_fault("a task died and takes the daemon along", error, task=name)
            self.stop(f"the task {name!r} died")
            raise

    async def _watch_forever(self, interval: timedelta) -> None:
        while True:
            self._notifier.alive()
            await asyncio.sleep(interval.total_seconds())


def run(main: Callable[[Daemon], Awaitable[None]], *, stop_within: timedelta = STOP_WITHIN) -> Exit:
    """Run a daemon's main coroutine in an event loop of its own, on the process's main thread.

    Args:
        main: sets everything up, calls `ready`, waits for `until_stop`, and drains.
        stop_within: how long an orderly end may take before the process is ended hard.

    Returns:
        the exit code; the causes of a failure are logged.
    """
    daemon: Daemon | None = None

    async def live() -> None:
        nonlocal daemon
        daemon = Daemon(Notifier.of_process(), signals.limit)
        loop = asyncio.get_running_loop()
        signals.listen(
            end=lambda name: loop.call_soon_threadsafe(daemon.stop, name),
            reload=lambda: loop.call_soon_threadsafe(daemon.reload),
        )
        await daemon.live(main)

    with Signals(stop_within, Exit.FAILED) as signals:
        try:
            asyncio.run(live())
        except Exception as error:  # noqa: BLE001  # the end of the road: reported here, and nowhere else
            return _report(error, was_ready=daemon is not None and daemon.was_ready)
        _log.info("stopped")
        return Exit.DONE


def _report(error: Exception, *, was_ready: bool) -> Exit:
    causes = list(_causes(error))
    for cause in causes:
        _log_fault("failed" if was_ready else "can not start", cause)
    refused = not was_ready and all(isinstance(cause, ConfigurationError) for cause in causes)
    return Exit.USAGE if refused else Exit.FAILED


def _causes(error: BaseException) -> Iterator[BaseException]:
    if isinstance(error, BaseExceptionGroup):
        for inner in error.exceptions:
            yield from _causes(inner)
    else:
        yield error


def _log_fault(event: str, error: BaseException, **context: str) -> None:
    """Log a known fault in one line, and everything else with its traceback, because somebody has to mend it."""
    known = isinstance(error, IstioAuthError | OSError)
    _log.error(event, reason=str(error) or type(error).__name__, exc_info=None if known else error, **context)
