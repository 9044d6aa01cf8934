"""An IssuanceLog in memory, which is slow or broken on request."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from ca.issuance_log import IssuanceRecord, Receipt
from istio_auth.errors import NotReady


class MemoryIssuanceLog:
    """Keeps the records in memory.

    Attributes:
        records: what is on record.
        appends: the sizes of the batches.
        broken: while true nothing can be put on record.
        gate: appending waits for it; clear it to hold the threads.
    """

    def __init__(self) -> None:
        self.records: list[IssuanceRecord] = []
        self.appends: list[int] = []
        self.broken = False
        self.gate = threading.Event()
        self.gate.set()
        self.arrived = threading.Semaphore(0)
        self._lock = threading.Lock()
        self._fault: str | None = None

    def append_many(self, records: Sequence[IssuanceRecord]) -> list[Receipt]:
        self.arrived.release()
        assert self.gate.wait(30)
        with self._lock:
            if self.broken:
                self._fault = "the disk is full"
                raise NotReady(self._fault)
            self._fault = None
            first = len(self.records) + 1
            self.records += records
            self.appends.append(len(records))
            return [Receipt(first + number) for number in range(len(records))]

    def ready(self) -> str | None:
        return self._fault

    def probe(self) -> None:
        if not self.broken:
            self._fault = None
