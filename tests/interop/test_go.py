"""Go's gRPC, Istio's own messages and go-spiffe as a client of a real `istio-ca`; built on first use, and kept."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.fakes.processes import Machine
from tests.interop.go_programs import built, output

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]  # the first build fetches and compiles gRPC


async def test_go_gets_certificates_that_go_spiffe_accepts_and_two_of_them_meet(tmp_path: Path) -> None:
    foreign = await built(".")
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
