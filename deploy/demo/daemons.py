"""The CA and the node agent, set up as an operator would: by configuration files and `ca-cli`."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path

import aiohttp

from deploy.demo.layout import AGENT, LOOPBACK, TRUST_DOMAIN, Layout, Place
from deploy.demo.processes import Child, Processes, ProcessFailed, program, run
from deploy.demo.toml import table
from deploy.demo.waiting import holds_within

_READY_WITHIN = 60.0
_OPERATOR_TTL = "1h"  # of certificates issued by hand: they outlive the demo


@dataclass(frozen=True, slots=True)
class Daemons:
    """The two daemons, running."""

    ca: Child
    agent: Child


async def prepare(layout: Layout, ttl: str) -> None:
    """Do what an operator does before the first start.

    A root is made, its bundle is printed for agents to pin, a join token is made, and registrations say which workload
    earns which identity. Two certificates are issued by hand for the frontend's name, alike in everything but their
    issuer: one by our CA, one by a foreign CA that calls itself the same.

    Args:
        layout: where everything is.
        ttl: how long certificates live.
    """
    cli, state = program("ca-cli"), ("--state-folder", layout.folder / "ca")
    ours, foreign = layout.operator_folder / "ours", layout.operator_folder / "foreign"
    name = ("--id", str(layout.frontend.id), "--ttl", _OPERATOR_TTL)
    await asyncio.gather(
        run([cli, "issue", *name, "--out", ours, *state]),
        run([cli, "issue", *name, "--out", foreign, "--state-folder", layout.folder / "foreign-ca"]),
    )
    await asyncio.gather(
        run([cli, "trust-bundle", "--out", _bundle(layout), *state]),
        run([cli, "token", "create", AGENT, "--out", _token(layout), *state]),
    )
    _registrations(layout).write_text("".join(_registration(place) for place in layout.workloads))
    _ca_file(layout).write_text(_ca_config(layout, ttl))
    _agent_file(layout).write_text(_agent_config(layout))


async def start_daemons(layout: Layout, processes: Processes) -> Daemons:
    """Start both, each once the other can be of use to it, and wait until they are ready.

    Raises:
        ProcessFailed: one is not ready in time.
    """
    ca = await processes.start("istio-ca", [program("istio-ca"), "--config", _ca_file(layout)])
    await _ready(ca, layout.ca_health)
    agent = await start_agent(layout, processes)
    return Daemons(ca, agent)


async def start_agent(layout: Layout, processes: Processes) -> Child:
    """Start the node agent and wait until it is ready."""
    agent = await processes.start("node-agent", [program("node-agent"), "--config", _agent_file(layout)])
    await _ready(agent, layout.agent_health)
    return agent


def _ca_config(layout: Layout, ttl: str) -> str:
    top = table(
        trust_domain=str(TRUST_DOMAIN),
        listen=f"{LOOPBACK}:{layout.ca_port}",
        metrics_listen=f"{LOOPBACK}:{layout.ca_health}",
        state_folder=str(layout.folder / "ca"),
        registrations=str(_registrations(layout)),
    )
    return top + table("signing", default_ttl=ttl) + table("log", format="json")


def _agent_config(layout: Layout) -> str:
    top = table(
        ca_address=f"{LOOPBACK}:{layout.ca_port}",
        trust_domain=str(TRUST_DOMAIN),
        trust_bundle=str(_bundle(layout)),
        join_token_file=str(_token(layout)),
        name=AGENT,
        state_folder=str(layout.folder / "agent"),
        run_folder=str(layout.folder / "agent"),
        metrics_listen=f"{LOOPBACK}:{layout.agent_health}",
    )
    return top + table("log", format="json") + "".join(map(_socket, layout.workloads))


def _socket(place: Place) -> str:
    if place.uid is None:
        return table("[socket]", path=str(place.agent_socket), name=place.name, mode="0600")
    # Everybody may connect, so that it is the agent which turns a stranger away, and says why.
    return table("[socket]", path=str(place.agent_socket), name=place.name, mode="0666", uids=[place.uid])


def _registration(place: Place) -> str:
    return table("[registration]", spiffe_id=str(place.id), agents=[AGENT], selectors=[place.selector])


def _registrations(layout: Layout) -> Path:
    return layout.folder / "registrations.toml"


def _ca_file(layout: Layout) -> Path:
    return layout.folder / "ca.toml"


def _agent_file(layout: Layout) -> Path:
    return layout.folder / "agent.toml"


def _bundle(layout: Layout) -> Path:
    return layout.operator_folder / "trust-bundle.json"


def _token(layout: Layout) -> Path:
    return layout.operator_folder / "join-token"


async def _ready(child: Child, port: int) -> None:
    async def is_ready() -> bool:
        child.require_alive()
        try:
            async with http.get(f"http://{LOOPBACK}:{port}/readyz") as answer:
                return answer.status == 200
        except aiohttp.ClientError:
            return False

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=2)) as http:
        if not await holds_within(_READY_WITHIN, is_ready):
            raise ProcessFailed(f"{child.name} was not ready within {_READY_WITHIN:.0f} s")
