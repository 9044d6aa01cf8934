"""`python -m deploy.demo`: prove the main job, or with `--serve` leave everything running to play with."""

from __future__ import annotations

import argparse
import asyncio
import os
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Coroutine
from pathlib import Path

from deploy.demo.checks import run_checks
from deploy.demo.daemons import Daemons, prepare, start_daemons
from deploy.demo.instructions import instructions
from deploy.demo.layout import Layout, Proof
from deploy.demo.postgresql import Database, NoDatabase, start_database
from deploy.demo.processes import Processes, ProcessFailed
from deploy.demo.report import Report
from deploy.demo.stranger import run_stranger
from deploy.demo.traffic import run_traffic
from deploy.demo.workloads import running_workloads

_TTL = "15s"  # so that three rotations fit into half a minute
_TTL_SERVE = "2m"  # for people, who are slower
_FAILED = 1
_SIGNALLED = 128  # and the signal's number, as shells count
_ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_LOOK = 0.2  # seconds between two looks for a signal

_Work = Callable[[Layout, Processes], Coroutine[object, object, int]]


def main() -> int:
    """Do what the arguments say; 0 if everything that had to be proven was."""
    parser = argparse.ArgumentParser(prog="python -m deploy.demo", description=__doc__)
    parser.add_argument("--serve", action="store_true", help="start everything, say how to play with it, and wait")
    parser.add_argument(
        "--proof",
        type=Proof,
        choices=Proof,
        default=Proof.UID if os.geteuid() == 0 else Proof.SOCKET,
        metavar="{uid,socket}",
        help="how workloads are told apart: by a user id for each (needs root; the default then), or by their sockets",
    )
    arguments = parser.parse_args()
    if arguments.proof is Proof.UID and os.geteuid() != 0:
        parser.error("only root can start processes of other users: use --proof socket")
    return _run(arguments.proof, serve=arguments.serve)


def _run(proof: Proof, *, serve: bool) -> int:
    """Run in a folder that is removed afterwards, unless something failed."""
    folder = Path(tempfile.mkdtemp(prefix="istio-auth-demo-"))
    try:
        code = asyncio.run(_with_processes(folder, proof, _serve if serve else _prove))
    except (ProcessFailed, OSError) as error:
        print(f"\nThe demo could not go on: {error}", flush=True)
        code = _FAILED
    if code == _FAILED:
        _tell_logs(folder)
    else:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if serve and code > _SIGNALLED else code


async def _with_processes(folder: Path, proof: Proof, work: _Work) -> int:
    layout = Layout.made(folder, proof)
    _introduce(layout)
    async with Processes(folder / "logs") as processes:
        return await _until_signal(work(layout, processes))


async def _until_signal(work: Coroutine[object, object, int]) -> int:
    """Do the work to its end, or to the first signal."""
    loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
    received: list[signal.Signals] = []
    for number in _ENDING:
        loop.add_signal_handler(number, received.append, number)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)  # whoever started us may have held them back
    while not task.done():
        if received:
            task.cancel()  # more than once: HTTP clients were seen to take it for a failure of their connection
        await asyncio.wait({task}, timeout=_LOOK)
    if received:
        await asyncio.gather(task, return_exceptions=True)  # whatever came of it
        return _SIGNALLED + received[0]
    return task.result()


async def _prove(layout: Layout, processes: Processes) -> int:
    started, report = time.monotonic(), Report()
    daemons, database = await _started(layout, processes, _TTL)
    async with running_workloads(layout, processes, database) as workloads:
        report.note(f"everything runs after {time.monotonic() - started:.1f} s; certificates live for {_TTL}")
        await run_checks(layout, workloads, report)
        await run_stranger(layout, daemons, processes, report)
        await run_traffic(layout, workloads, report)
    failed = sum(not finding.holds for finding in report.findings)
    verdict = f"{failed} FAILED" if failed else "all hold"
    report.title(f"{len(report.findings)} findings in {time.monotonic() - started:.0f} s: {verdict}")
    return 0 if report.holds else _FAILED


async def _serve(layout: Layout, processes: Processes) -> int:
    _, database = await _started(layout, processes, _TTL_SERVE)
    async with running_workloads(layout, processes, database) as workloads:
        print(instructions(layout, workloads, _TTL_SERVE), flush=True)
        await processes.until_one_ends()
    return _FAILED


async def _started(layout: Layout, processes: Processes, ttl: str) -> tuple[Daemons, Database | None]:
    """The daemons, and meanwhile the database."""
    database = asyncio.create_task(_database(layout, processes))
    try:
        await prepare(layout, ttl)
        return await start_daemons(layout, processes), await database
    finally:
        database.cancel()
        await asyncio.wait({database})


async def _database(layout: Layout, processes: Processes) -> Database | None:
    try:
        return await start_database(processes, layout.database, user=layout.backend.uid)
    except NoDatabase as error:
        print(f"  without SQL: {error}", flush=True)
        return None


def _introduce(layout: Layout) -> None:
    print("Istio Auth: a CA, a node agent and three workloads with Envoy sidecars, on this machine", flush=True)
    if layout.proof is Proof.UID:
        users = ", ".join(f"{place.name} {place.uid}" for place in layout.workloads)
        print(f"  proof of identity: each workload's own user id ({users})", flush=True)
    else:
        print("  proof of identity: each workload's own socket, in a folder of mode 0700", flush=True)


def _tell_logs(folder: Path) -> None:
    for log in sorted((folder / "logs").glob("*.err")):
        if lines := log.read_text(errors="replace").splitlines()[-8:]:
            print(f"\n--- {log.name}", *lines, sep="\n", flush=True)
    print(f"\nAll logs and files are kept in {folder}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
