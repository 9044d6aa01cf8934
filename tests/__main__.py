"""The test command: every check and every test, one line each, and what was left out (`python -m tests --help`).

Output of a check is shown only when it fails, so that what remains is the summary.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.cluster.build import built
from tests.cluster.istio.build import ISTIO
from tests.fakes import nginx, postgresql
from tests.fakes.go_module import BuildFailed

_BIN = Path(sys.executable).parent
_LEFT_OUT = {
    "root": "tests that need root (own user ids for workloads, PID 1)",
    "interop": "tests with a foreign client that is built first (Go)",
    "cluster": "tests with a real Kubernetes API server and istiod, built first (Go)",
    "node": "tests with a real kubelet and pods, built first (Go, root)",
}


@dataclass(frozen=True)
class _Check:
    name: str
    command: Sequence[str]


_CHECKS = (
    _Check("ruff check", (str(_BIN / "ruff"), "check", "--quiet", ".")),
    _Check("ruff format", (str(_BIN / "ruff"), "format", "--check", "--quiet", ".")),
    _Check("mypy --strict", (str(_BIN / "mypy"), "--no-error-summary")),
    _Check("import contracts", (str(_BIN / "lint-imports"), "--no-cache")),
)


@dataclass(frozen=True)
class _Result:
    ok: bool
    seconds: float
    output: str


def main() -> int:
    """Run what the arguments name; 0 if all of it holds."""
    parser = argparse.ArgumentParser(prog="python -m tests", description=__doc__)
    parser.add_argument("--group", choices=sorted(_LEFT_OUT), help="run only this group of tests, and no checks")
    arguments = parser.parse_args()
    failed = 0
    if not arguments.group:
        failed += sum(not _report(check.name, _run(check.command)) for check in _CHECKS)
    groups = [arguments.group] if arguments.group else [None, *(["cluster"] if _cluster_belongs_here() else [])]
    passed, broken, skipped = map(sum, zip(*map(_tests, groups), strict=True))
    if not arguments.group:
        for group, words in _LEFT_OUT.items():
            if group not in groups:
                print(f"left out: {words}: make test-{group}")
        for name in _missing_servers():
            print(f"left out: tests with a real {name}, which is not on this machine")
            failed += bool(os.environ.get("CI"))
    print(f"\n{passed} passed, {broken + failed} failed, {skipped} skipped")
    return 1 if broken + failed or not passed else 0


def _cluster_belongs_here() -> bool:
    """Whether its servers are there, and CI does not run that group by itself."""
    if os.environ.get("CI"):
        return False
    try:
        return built() is not None and ISTIO.built() is not None
    except BuildFailed:
        return True  # what is wrong, the tests will say


def _missing_servers() -> list[str]:
    there = {"PostgreSQL": postgresql.INSTALLED, "nginx": nginx.program() is not None}
    return [name for name, is_there in there.items() if not is_there]


def _tests(group: str | None) -> tuple[int, int, int]:
    wanted = group or " and ".join(f"not {name}" for name in _LEFT_OUT)
    processors = os.cpu_count() or 1
    workers = {
        None: 2 * processors,  # they wait for each other's daemons and certificates more than they compute
        "cluster": min(processors, 4),  # each has a control plane of its own
    }.get(group, 0)  # what needs root also needs the machine's user ids and ports for itself
    result = _run(
        (
            sys.executable,
            "-m",
            *(("tests.node",) if group == "node" else ("pytest", "-m", wanted)),
            "-n",
            str(workers),
            "--dist",
            "loadfile" if group == "cluster" else "worksteal",  # its files share daemons from test to test
            "--no-header",
            "--color=no",
        )
    )
    last = result.output.strip().rpartition("\n")[2]  # what failed may speak of numbers too
    counts = {
        word: int(match[1]) if (match := re.search(rf"(\d+) {word}", last)) else 0
        for word in ("passed", "failed", "errors?", "skipped")
    }
    _report(f"tests ({group})" if group else "tests", result, f"{counts['passed']} passed")
    for line in result.output.splitlines():
        if result.ok and line.startswith("SKIPPED"):
            print(f"  {line}")
    broken = counts["failed"] + counts["errors?"]
    return counts["passed"], broken if result.ok else max(broken, 1), counts["skipped"]


def _report(name: str, result: _Result, words: str = "") -> bool:
    print(f"{name:<18} {'ok' if result.ok else 'FAILED':<7} {result.seconds:5.1f} s  {words}".rstrip(), flush=True)
    if not result.ok:
        print(result.output, flush=True)
    return result.ok


def _run(command: Sequence[str]) -> _Result:
    started = time.monotonic()
    environment = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, check=False
    )
    return _Result(done.returncode == 0, time.monotonic() - started, done.stdout)


if __name__ == "__main__":
    sys.exit(main())
