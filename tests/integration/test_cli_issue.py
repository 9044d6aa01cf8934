"""`ca-cli issue --server`: an operator without access to the store gets a certificate from a running CA."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from istio_auth.svid import X509SVID
from tests.fakes.processes import Machine, run

WEB = "spiffe://cluster.local/web"


@pytest.fixture
async def machine(tmp_path: Path) -> AsyncIterator[Machine]:
    machine = Machine(tmp_path, ttl="1h")
    async with machine.ca:
        await machine.prepare()
        yield machine


async def issued(machine: Machine, spiffe_id: str) -> X509SVID:
    out = machine.folder / "out"
    server = ("--server", f"127.0.0.1:{machine.ca_port}", "--trust-bundle", machine.folder / "bundle.json")
    await run("ca-cli", "issue", "--id", spiffe_id, "--out", out, *server, "--token-file", machine.token)
    return X509SVID.parse((out / "cert-chain.pem").read_bytes(), (out / "key.pem").read_bytes())


@pytest.mark.parametrize("spiffe_id", [WEB, "spiffe://cluster.local/agent/node-1"])
async def test_a_token_is_worth_a_registered_identity_or_the_agents_own(machine: Machine, spiffe_id: str) -> None:
    assert str((await issued(machine, spiffe_id)).id) == spiffe_id


async def test_what_is_not_registered_for_the_tokens_agent_is_refused(machine: Machine) -> None:
    with pytest.raises(AssertionError, match="impersonation"):
        await issued(machine, "spiffe://cluster.local/db")
    line = await machine.ca.says("certificate refused")
    assert line["reason"] == "spiffe://cluster.local/db is not registered for agent node-1"
    await machine.invite(out=machine.token)
    assert str((await issued(machine, WEB)).id) == WEB
