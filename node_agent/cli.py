"""`node-agent`: run the agent, check its configuration, ask a running one, or write the configuration of a sidecar."""

from __future__ import annotations

from typing import NoReturn

from istio_auth.daemon.command import Program, run_command_line
from istio_auth.daemon.lifecycle import Daemon
from node_agent.admin.commands import explain, status
from node_agent.config import PREFIX, Config
from node_agent.sidecar.command import sidecar_config


async def _serve(config: Config, daemon: Daemon) -> None:
    from node_agent.app import serve  # what a daemon needs is not loaded for the other commands

    await serve(config, daemon)


def _check(config: Config) -> None:
    from node_agent.app import check

    check(config)


PROGRAM = Program(
    name="node-agent",
    about="Give each workload of this machine its own identity, and keep it fresh.",
    schema=Config,
    prefix=PREFIX,
    file_name="node-agent.toml",
    serve=_serve,
    check=_check,
    commands={"sidecar-config": sidecar_config, "status": status, "explain": explain},
)


def main() -> NoReturn:
    """The program."""
    run_command_line(PROGRAM)
