"""The sample settings of deploy/standalone: the programs take them, and they fit together."""

from __future__ import annotations

import json
import re
import shlex
import tomllib
from pathlib import Path

import pytest

from ca.profile import IssuanceProfile
from ca.registrations.rules import RegistrationRules, parse_registrations
from deploy.demo.envoy import envoy_binary
from istio_auth.daemon.settings import Sources, load
from istio_auth.registration import Selector
from node_agent.config import Config as AgentConfig
from node_agent.sidecar.file import read_sidecar
from tests.command import ca_cli
from tests.fakes.processes import run

SAMPLES = Path(__file__).parents[3] / "deploy" / "standalone"


async def effective(program: str, *flags: object) -> dict[str, str]:
    """What a program says that it would run with."""
    told = json.loads(await run(program, "check-config", "--output", "json", *flags))
    return {row["name"]: row["value"] for row in told["settings"]}


@pytest.fixture
def pinned(tmp_path: Path) -> Path:
    """A bundle for the agent to pin, as ca-cli writes it."""
    state, bundle = tmp_path / "ca", tmp_path / "trust-bundle.json"
    wanted = ("--id", "spiffe://cluster.local/any", "--out", tmp_path / "any")
    assert ca_cli("issue", *wanted, "--state-folder", state).code == 0
    assert ca_cli("trust-bundle", "--out", bundle, "--state-folder", state).code == 0
    return bundle


async def test_istio_ca_takes_its_settings_and_the_registrations(tmp_path: Path) -> None:
    flags = ("--registrations", SAMPLES / "registrations.toml", "--state-folder", tmp_path / "none")
    values = await effective("istio-ca", "--config", SAMPLES / "ca.toml", *flags)
    assert (values["trust_domain"], values["metrics_listen"]) == ("cluster.local", "127.0.0.1:15014")


async def test_node_agent_takes_its_settings(pinned: Path) -> None:
    values = await effective("node-agent", "--config", SAMPLES / "node-agent.toml", "--trust-bundle", pinned)
    assert (values["name"], values["socket[0].path"]) == ("node-1", "/run/istio-auth/agent.sock")


async def test_an_envoy_configuration_comes_out_of_the_sidecar() -> None:
    bootstrap = json.loads(await run("node-agent", "sidecar-config", "--file", SAMPLES / "sidecar.toml"))
    assert bootstrap["node"]["id"] == "spiffe://cluster.local/ns/shop/sa/web"


async def test_the_token_policy_is_that_of_the_guide_whose_command_makes_an_envoy_take_it(
    pinned: Path, tmp_path: Path
) -> None:
    sample, guide = SAMPLES / "tokens.yaml", (SAMPLES.parents[1] / "docs/guides/sidecars.md").read_text()
    (shown,) = re.findall(r"^```yaml\n(.*?)^```", guide, re.DOTALL | re.MULTILINE)
    assert shown == re.sub(r"^#.*\n", "", sample.read_text(), flags=re.MULTILINE)
    (command,) = re.findall(r"^(node-agent sidecar-config [^`]*tokens\.yaml[^`]*) >", guide, re.MULTILINE)
    words = [str(sample) if word == "tokens.yaml" else word for word in shlex.split(command.replace("\\\n", " "))]
    ca = pinned.parent / "any" / "root-cert.pem"
    printed = await run(*words, "--jwks-ca", ca)
    (tmp_path / "web.json").write_text(printed)
    await run(str(envoy_binary()), "--mode", "validate", "-c", tmp_path / "web.json")
    assert "jwt_authn" in printed
    assert "allow_missing" not in printed


def test_the_samples_speak_of_the_same_trust_domain_agent_socket_and_workloads() -> None:
    ca = tomllib.loads((SAMPLES / "ca.toml").read_text())
    agent = load(AgentConfig, Sources(file=SAMPLES / "node-agent.toml", file_required=True)).config
    sidecar = read_sidecar(SAMPLES / "sidecar.toml")
    rules = RegistrationRules(agent.trust_domain, IssuanceProfile().max_ttl, lambda _: None)
    table = parse_registrations((SAMPLES / "registrations.toml").read_bytes(), rules)
    registered = {entry.spiffe_id: entry.selectors for entry in table.of_agent(agent.name).values()}

    assert ca["trust_domain"] == agent.trust_domain.name
    assert {sidecar.id, *sidecar.inbound[0].allow} == set(registered)
    (socket,) = agent.sockets
    assert str(sidecar.agent_socket) in {str(socket.path), f"unix:{socket.path}"}
    named = {selector for selectors in registered.values() for selector in selectors if selector.type == "socket"}
    assert named == {Selector("socket", socket.name)}
