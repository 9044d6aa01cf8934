"""Steady traffic while every certificate is replaced: nothing may fail, and each new serial must be seen at work."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

from deploy.demo.client import CallFailed, http_get, tcp_echo
from deploy.demo.layout import Layout
from deploy.demo.report import Finding, Report
from deploy.demo.rotation import Seen, Witness
from deploy.demo.sql import Transaction, ask
from deploy.demo.waiting import holds_within
from deploy.demo.workloads import Workloads

ROTATIONS = 3
_SQL = "backend-sql"
_PAUSE = 0.05  # between two calls of one flow
_LONGEST = 60.0
_SHOWN_FAILURES = 5


async def run_traffic(layout: Layout, workloads: Workloads, report: Report) -> None:
    """Prove that rotation is not noticed."""
    report.title(f"Steady traffic until every certificate was replaced {ROTATIONS} times")
    if workloads.database is None:
        await _rotate(layout, workloads, report)
        return
    async with Transaction(workloads.frontend.outbound[_SQL]) as transaction:
        await _rotate(layout, workloads, report)
        report.add(await transaction.finding())


async def _rotate(layout: Layout, workloads: Workloads, report: Report) -> None:
    clock, witness = asyncio.get_running_loop().time, Witness(layout, workloads)
    started, traffic = clock(), _Traffic()
    flows = [asyncio.create_task(traffic.flow(name, call)) for name, call in _flows(workloads).items()]

    async def all_rotated() -> bool:
        return all(seen.rotations >= ROTATIONS for seen in await witness.look())

    await holds_within(_LONGEST, all_rotated, every=0.5)
    for flow in flows:
        flow.cancel()
    await asyncio.wait(flows)
    await asyncio.sleep(0.5)  # so that the last lines are in the logs
    for seen in await witness.look():
        report.add(_rotated(seen))
    report.add(traffic.finding(len(flows), clock() - started))


@dataclass
class _Traffic:
    """What was sent so far."""

    sent: int = 0
    failures: list[str] = field(default_factory=list)

    async def flow(self, name: str, call: Callable[[], Awaitable[object]]) -> None:
        """Call for ever."""
        while True:
            self.sent += 1
            try:
                await call()
            except CallFailed as error:
                self.failures.append(f"{name}: {error}")
            await asyncio.sleep(_PAUSE)

    def finding(self, flows: int, seconds: float) -> Finding:
        """What became of it."""
        told = f"{self.sent} requests in {flows} flows and {seconds:.0f} s, {len(self.failures)} failed"
        shown = "".join(f"\n            {failure}" for failure in self.failures[:_SHOWN_FAILURES])
        holds = self.sent > 0 and not self.failures
        return Finding(
            "requests while certificates rotated", "passed" if holds else "FAILED", told + shown, holds=holds
        )


def _flows(workloads: Workloads) -> Mapping[str, Callable[[], Awaitable[object]]]:
    """Every workload is a client and a server in one of them."""
    frontend, backend, intruder = (workload.outbound for workload in workloads.all)
    sql = {"frontend to backend, SQL": partial(ask, frontend[_SQL])} if workloads.database else {}
    return {
        **sql,
        "frontend to backend": partial(http_get, frontend["backend"]),
        "frontend to backend, TCP": partial(tcp_echo, frontend["backend-tcp"]),
        "frontend to intruder": partial(http_get, frontend["intruder"]),
        "backend to frontend": partial(http_get, backend["frontend"]),
        "intruder to frontend": partial(http_get, intruder["frontend"]),
    }


def _rotated(seen: Seen) -> Finding:
    serials = ", ".join(f"{serial[:8]} {count}x" for serial, count in seen.serials.items())
    holds = seen.rotations >= ROTATIONS
    result = f"{seen.rotations} times"
    return Finding(f"the certificate of {seen.name} was replaced", result, f"{seen.where}: {serials}", holds=holds)
