"""Following: one thread that passes what the Workload API sends to a source, for as long as the source exists."""

from __future__ import annotations

import _thread
import logging
import threading
import weakref
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Generic, TypeVar

from istio_auth.errors import IstioAuthError, NotReady
from istio_auth.rpc.forking import Forked, starting
from istio_auth.workload_api.blocking import BlockingWorkloadAPIClient

_Value = TypeVar("_Value")

_LOG = logging.getLogger(__name__)
_PAUSE = timedelta(seconds=5)  # after an unexpected error
_JOIN = 5.0  # seconds; the thread ends at once, unless a subscriber blocks it


class Following(Generic[_Value]):
    """Follows one stream until the client is closed, or another attempt can not help.

    Args:
        source: the source; when it is garbage collected, the client is closed.
        client: the client of the stream.
        watch: opens the stream; takes a function to call with each failure.
        take: a method of the source, called with each value.
        failed: a method of the source, called with each failure.
    """

    def __init__(
        self,
        source: object,
        client: BlockingWorkloadAPIClient,
        watch: Callable[[Callable[[IstioAuthError], None]], Iterator[_Value]],
        *,
        take: Callable[[_Value], None],
        failed: Callable[[Exception], None],
    ) -> None:
        self._client = client
        self._watch = watch
        # Garbage is collected on any thread, in the middle of anything, with any locks held: so another thread closes.
        self._finalizer = weakref.finalize(source, _thread.start_new_thread, client.close, ())
        self._finalizer.atexit = False
        # A source to which nobody else refers must be collected, in spite of its thread.
        self._take: weakref.WeakMethod[Callable[[_Value], None]] = weakref.WeakMethod(take)
        self._failed: weakref.WeakMethod[Callable[[Exception], None]] = weakref.WeakMethod(failed)
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin; in a forked child, begin again, or tell the source at once that gRPC can not be used there."""
        try:
            starting()
        except Forked as error:
            self._tell(error)
            return
        self._thread = threading.Thread(target=self._run, name="istio-auth Workload API", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Close the client, and wait for the thread."""
        self._finalizer.detach()
        self._client.close()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_JOIN)

    def _run(self) -> None:
        going_on = True
        while going_on:
            try:
                for value in self._watch(self._tell):
                    if (take := self._take()) is not None:
                        take(value)
                    del take, value
                going_on = False
            except Forked as error:
                self._tell(error)
                going_on = False
            except IstioAuthError as error:
                self._tell(NotReady(f"{error}; it is not asked again: see who serves there, then open another source"))
                going_on = False
            except Exception as error:  # noqa: BLE001  # whatever it is, following goes on
                _LOG.exception("following the Workload API failed")
                self._tell(error)
                going_on = not self._client.closed_within(_PAUSE)

    def _tell(self, error: Exception) -> None:
        if (failed := self._failed()) is not None:
            failed(error)
