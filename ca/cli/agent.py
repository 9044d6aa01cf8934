"""`ca-cli agent`: the node agents that were enrolled, and how to be rid of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ca.cli.options import OutputOption, StateOption
from istio_auth.daemon.output import Output, iso, print_json, print_table, shown

if TYPE_CHECKING:
    from ca.agents.agent import AgentRecord
    from istio_auth.bundle import JSON

app = typer.Typer(help="List and evict node agents.", no_args_is_help=True)


@app.command("list")
def list_agents(*, state_folder: StateOption = None, output: OutputOption = Output.TABLE) -> None:
    """List the enrolled agents, with the end of their last SVID."""
    from ca.cli.state import StateFolder

    agents = StateFolder.existing(state_folder).agents().list()
    if output is Output.JSON:
        print_json([_json(agent) for agent in agents])
        return
    rows = [
        (
            agent.name,
            "evicted" if agent.evicted_at else "enrolled",
            shown(agent.enrolled_at),
            shown(agent.svid_end) if agent.svid_end else "(none yet)",
            str(len(agent.identities)),
        )
        for agent in agents
    ]
    print_table(("AGENT", "STATE", "ENROLLED", "SVID ENDS", "IDENTITIES"), rows, empty="no agent is enrolled")


@app.command()
def evict(
    name: Annotated[str, typer.Argument(help="The name of the agent.")],
    *,
    state_folder: StateOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Shut an agent out: it can no longer renew, recover or ask for certificates, and its join tokens are revoked.

    Certificates that it holds stay good until they end: their peers do not ask the CA.
    """
    from ca.cli.state import StateFolder
    from istio_auth.system_clock import SystemClock

    state = StateFolder.existing(state_folder)
    agent = state.agents().evict(name, SystemClock().now())
    revoked = state.tokens().revoke_all(name)
    if output is Output.JSON:
        print_json(_json(agent) | {"tokens_revoked": revoked})
        return
    tokens = f", and {revoked} of its join tokens revoked" if revoked else ""
    print(f"agent {name} is evicted{tokens}; what it holds stays good until it ends")


def _json(agent: AgentRecord) -> dict[str, JSON]:
    return {
        "name": agent.name,
        "node_key_sha256": agent.node_key,
        "enrolled_at": iso(agent.enrolled_at),
        "svid_not_after": None if agent.svid_end is None else iso(agent.svid_end),
        "identities": [str(identity) for identity in sorted(agent.identities)],
        "evicted_at": None if agent.evicted_at is None else iso(agent.evicted_at),
    }
