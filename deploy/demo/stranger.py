"""How workloads are told apart, proven: who comes to the socket of another gets nothing.

With a user id for each workload, a sidecar for the backend is started by a stranger's user id, which the agent turns
away, and by the backend's own, which it serves. Without (that needs root), each socket stands in a folder that only its
owner can enter, and gives out one identity: a sidecar that asks for the backend's at the frontend's socket waits for
ever, and at the backend's it is served.
"""

from __future__ import annotations

import itertools
import json
import stat
from collections.abc import Callable, Mapping
from pathlib import Path

from deploy.demo.daemons import Daemons
from deploy.demo.envoy import Envoy, start_envoy
from deploy.demo.layout import LOOPBACK, STRANGER_UID, Layout, Proof, own_folder
from deploy.demo.log import Log
from deploy.demo.processes import Processes, ProcessFailed, program, run
from deploy.demo.report import Finding, Report
from deploy.demo.waiting import holds_within
from istio_auth.bundle import JSON

_REASON_WITHIN = 10.0
Line = Mapping[str, JSON]


async def run_stranger(layout: Layout, daemons: Daemons, processes: Processes, report: Report) -> None:
    """Prove that nobody gets another's certificate."""
    report.title("A node agent that gives each workload its own certificate")
    attempts = _Attempts(layout, Log(daemons.agent.errors), processes)
    findings = attempts.by_uid() if layout.proof is Proof.UID else attempts.by_socket()
    for finding in await findings:
        report.add(finding)


class _Attempts:
    """Sidecars for the backend that are started where, or by whom, they should not be."""

    def __init__(self, layout: Layout, log: Log, processes: Processes) -> None:
        self._layout = layout
        self._log = log
        self._processes = processes
        self._numbers = itertools.count(1)

    async def by_uid(self) -> list[Finding]:
        """A stranger's process at the backend's socket."""
        backend = self._layout.backend
        stranger = await self._sidecar(backend.agent_socket, STRANGER_UID)
        reason = await self._reason(
            lambda line: found if f"uid {STRANGER_UID}" in (found := _text(line, "event").partition(": ")[2]) else ""
        )
        return [
            await _refused(f"a process of uid {STRANGER_UID} at the backend's socket", stranger, reason),
            await _served(f"the same by uid {backend.uid}", await self._sidecar(backend.agent_socket, backend.uid)),
        ]

    async def by_socket(self) -> list[Finding]:
        """A process that got hold of another workload's socket."""
        frontend, backend = self._layout.frontend, self._layout.backend
        folders = [place.agent_socket.parent.stat() for place in self._layout.workloads]
        private = all(stat.S_IMODE(folder.st_mode) == 0o700 for folder in folders)
        misled = await self._sidecar(frontend.agent_socket, None)
        reason = await self._reason(
            lambda line: f"{line['event']}: {found}" if str(backend.id) in (found := _text(line, "names")) else ""
        )
        return [
            Finding("each socket is in a folder of its owner alone", "holds", "mode 0700", holds=private),
            await _refused("the backend's certificate at the frontend's socket", misled, reason),
            await _served("the same at its own socket", await self._sidecar(backend.agent_socket, None)),
        ]

    async def _sidecar(self, agent_socket: Path, uid: int | None) -> Envoy:
        backend, name = self._layout.backend, f"attempt-{next(self._numbers)}"
        folder = own_folder(self._layout.folder / "workloads" / name, uid)
        told = ("--id", backend.id, "--certificate", backend.id, "--allow", self._layout.frontend.id)
        places = ("--agent-socket", agent_socket, "--admin", f"unix:{folder / 'admin.sock'}")
        listener = ("--inbound", f"{LOOPBACK}:0={LOOPBACK}:{backend.ports['web']}")
        printed = await run([program("node-agent"), "sidecar-config", *map(str, (*told, *places, *listener))])
        return await start_envoy(self._processes, name, json.loads(printed), folder, uid=uid)

    async def _reason(self, told: Callable[[Line], str]) -> str:
        """What the agent's log says of the attempt, as soon as it does."""

        async def is_told() -> bool:
            return any(map(told, self._log.lines()))

        await holds_within(_REASON_WITHIN, is_told)
        return next(filter(None, map(told, self._log.lines())), "")


def _text(line: Line, key: str) -> str:
    return str(line.get(key, ""))


async def _refused(name: str, envoy: Envoy, reason: str) -> Finding:
    certificates = await envoy.serial_numbers()
    await envoy.child.end()
    holds = bool(reason) and not certificates
    return Finding(name, "refused" if holds else "unclear", f"node-agent: {reason or 'nothing told'}", holds=holds)


async def _served(name: str, envoy: Envoy) -> Finding:
    try:
        await envoy.wait_ready()
    except ProcessFailed as error:
        return Finding(name, "REFUSED", str(error), holds=False)
    certificates = await envoy.serial_numbers()
    await envoy.child.end()
    return Finding(name, "served", "it got its certificate", holds=bool(certificates))
