"""What the tests of a folder of files have in common: one workload, its cache, and a writer that is quick."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import timedelta
from pathlib import Path

from istio_auth.bundle import BundleSet
from istio_auth.registration import Registration, Selector
from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import X509SVID
from node_agent.backoff import Backoff
from node_agent.files.settings import FilesSettings
from node_agent.files.writer import FilesWriter
from node_agent.metrics import Metrics
from node_agent.workloads.cache import Held, WorkloadCache
from node_agent.workloads.registrations import Want
from tests.fakes.authority import FakeAuthority
from tests.fakes.clock import FakeClock
from tests.fakes.waiting import until

WEB = SpiffeID.parse("spiffe://cluster.local/web")
ROW = Registration(WEB, frozenset({Selector("files", "web")}))
SOON = timedelta(milliseconds=20)


class World:
    """A cache with one workload, and what is written of it."""

    def __init__(self, authority: FakeAuthority, folder: Path) -> None:
        self.authority, self.folder = authority, folder
        self.cache = WorkloadCache(BundleSet((authority.bundle(),)))
        self.cache.register((ROW,))
        self.progress = 0
        self.backoff = Backoff(first=SOON, longest=SOON)
        self.metrics = Metrics()

    @property
    def writes(self) -> float:
        return self.metrics.registry.get_sample_value("istio_auth_agent_files_written_total", {"files": "web"}) or 0

    def renew(self) -> X509SVID:
        return self.hold(self.authority.svid("/web"))

    def hold(self, svid: X509SVID) -> X509SVID:
        self.cache.put([Held(svid, Want(WEB), svid.not_after)])
        return svid

    def written(self) -> X509SVID:
        return X509SVID.parse((self.folder / "cert-chain.pem").read_bytes(), (self.folder / "key.pem").read_bytes())

    async def kept(self, writer: FilesWriter) -> None:
        """Wait until its reader was told, and that is kept."""
        await until(writer.is_current)
        await until((self.folder / "..data/..told").exists)

    def made_progress(self) -> None:
        self.progress += 1

    @asynccontextmanager
    async def writing(self, **settings: object) -> AsyncIterator[FilesWriter]:
        writer = FilesWriter(
            FilesSettings("web", self.folder, **settings),  # type: ignore[arg-type]  # by name
            self.cache,
            clock=FakeClock(),
            metrics=self.metrics,
            look=SOON,
            progress=self.made_progress,
            backoff=self.backoff,
        )
        task = asyncio.create_task(writer.run())
        try:
            yield writer
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task


def counting(path: Path) -> tuple[str, ...]:
    """A command that writes one letter each time."""
    return (sys.executable, "-I", "-c", f"with open({str(path)!r}, 'a') as file:\n    file.write('x')\n")
