"""Go's gRPC, Istio's own messages and go-spiffe as a client of a real `istio-ca`; built on first use, and kept."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
from pathlib import Path

import pytest

from tests.fakes.processes import Machine

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]  # the first build fetches and compiles gRPC
SOURCES = Path(__file__).parent / "go"
CACHE = Path(__file__).parents[2] / ".cache" / "interop-go"


async def output(*command: object, folder: Path | None = None) -> str:
    """What a program prints that ends well."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


@pytest.fixture
async def foreign() -> Path:
    """The client, of these very sources."""
    if (go := shutil.which("go")) is None:
        pytest.skip("Go is not installed: the client of tests/interop/go can not be built")
    sources = sorted(path for path in SOURCES.iterdir() if path.is_file())
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    built = CACHE / digest / "foreign"
    if not built.exists():
        unfinished = built.with_name(f"foreign.{os.getpid()}")
        await output(go, "build", "-mod=readonly", "-trimpath", "-o", unfinished, ".", folder=SOURCES)
        unfinished.rename(built)
    return built


async def test_go_gets_certificates_that_go_spiffe_accepts_and_two_of_them_meet(foreign: Path, tmp_path: Path) -> None:
    machine = Machine(tmp_path, ttl="1h")
    async with machine.ca:
        await machine.prepare()
        words = ("-address", f"127.0.0.1:{machine.ca_port}", "-bundle", tmp_path / "bundle.json")
        proofs = ("-token-file", machine.token, "-workload", "spiffe://cluster.local/web")
        seen = json.loads(await output(foreign, *words, *proofs))
    agent = "spiffe://cluster.local/agent/node-1"
    assert (seen["by_token"], seen["by_mtls"], seen["for_another"]) == (agent, agent, "spiffe://cluster.local/web")
    assert (seen["elements"], seen["sequence"]) == (2, 1)
    assert seen["refused"] == ["Unauthenticated"] * 3
    assert (seen["said"], seen["server_saw"], seen["client_saw"]) == ("ping", agent, "spiffe://cluster.local/web")
    assert "unexpected ID" in seen["stranger"]
