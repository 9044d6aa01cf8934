"""`ca-cli agent`: the node agents that were enrolled, and how to be rid of one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from ca.cli.options import OutputOption, StateOption
from istio_auth.daemon.output import Output, iso, print_json, print_table, shown

if TYPE_CHECKING:
    from ca.agents.agent import AgentRecord
    from ca.service.sync_book import Acknowledgement
    from istio_auth.bundle import JSON

app = typer.Typer(help="List and evict node agents.", no_args_is_help=True)


@app.command("list")
def list_agents(*, state_folder: StateOption = None, output: OutputOption = Output.TABLE) -> None:
    """List the enrolled agents, with the end of their last SVID and who on their nodes has taken the trust bundle.

    TAKEN counts the streams and files of the node that want the bundle, and of them those that have taken BUNDLE.
    """
    from ca.cli.state import StateFolder
    from ca.service.sync_record import read_record

    state = StateFolder.existing(state_folder)
    agents, heard = state.agents().list(), read_record(state.path)
    if output is Output.JSON:
        print_json([_json(agent) | {"heard": _heard(heard.get(agent.name))} for agent in agents])
        return
    rows = [
        (
            agent.name,
            "evicted" if agent.evicted_at else "enrolled",
            shown(agent.enrolled_at),
            shown(agent.svid_end) if agent.svid_end else "(none yet)",
            str(len(agent.identities)),
            *_taken(heard.get(agent.name)),
        )
        for agent in agents
    ]
    columns = ("AGENT", "STATE", "ENROLLED", "SVID ENDS", "IDENTITIES", "BUNDLE", "TAKEN", "LAGGARDS")
    print_table(columns, rows, empty="no agent is enrolled")


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


def _taken(word: Acknowledgement | None) -> tuple[str, str, str]:
    if word is None:
        return "-", "-", ""
    counts = f"{word.consumers_current} of {word.consumers}{'' if word.streams else ', away'}"
    more = word.consumers - word.consumers_current - len(word.laggards)
    names = [*word.laggards, *([f"and {more} more"] if more > 0 else [])]
    return str(word.sequence), counts, ", ".join(names)


def _heard(word: Acknowledgement | None) -> dict[str, JSON] | None:
    from ca.service.sync_record import acknowledgement_document

    return None if word is None else acknowledgement_document(word)
