"""`ca-cli token`: join tokens, by which an operator invites a node. A token is shown once, when it is made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ca.cli.options import OutputOption, StateOption, duration
from istio_auth.daemon.output import Output, iso, life_in_words, note, print_json, print_table, shown

if TYPE_CHECKING:
    from ca.agents.join_token import JoinToken
    from istio_auth.bundle import JSON

app = typer.Typer(help="Make, list and revoke join tokens, which enrol node agents.", no_args_is_help=True)


@app.command()
def create(
    agent: Annotated[str, typer.Argument(help="The name of the agent that it enrols, once.")],
    *,
    ttl: Annotated[str, typer.Option(help="How long it is good.")] = "10m",
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it there (mode 0600), not to stdout.")] = None,
    state_folder: StateOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Make a join token for an agent and print it: nobody can learn it again, only its hash is kept."""
    from ca.cli.state import StateFolder
    from istio_auth.errors import IstioAuthError
    from istio_auth.files import atomic_write
    from istio_auth.system_clock import SystemClock

    tokens = StateFolder.of(state_folder).tokens()
    text, token = tokens.create(agent, SystemClock().now(), ttl=duration(ttl))
    if out is not None:
        try:
            atomic_write(out, text.encode() + b"\n", mode=0o600)
        except IstioAuthError:
            tokens.revoke(token.hash)  # it was not written, so nobody has it
            raise
    if output is Output.JSON:
        print_json(_json(token) | ({"file": str(out)} if out else {"token": text}))
        return
    if out is None:
        print(text)
    note(f"join token {token.id} enrols agent {agent}, once, until {shown(token.expires_at)}")


@app.command("list")
def list_tokens(*, state_folder: StateOption = None, output: OutputOption = Output.TABLE) -> None:
    """List the join tokens that were not used."""
    from ca.cli.state import StateFolder
    from istio_auth.system_clock import SystemClock

    now = SystemClock().now()
    tokens = StateFolder.existing(state_folder).tokens().list()
    if output is Output.JSON:
        print_json([_json(token) | {"ended": token.expires_at <= now} for token in tokens])
        return
    rows = [(token.id, token.agent, life_in_words(token.created_at, token.expires_at, now)) for token in tokens]
    print_table(("ID", "AGENT", "LIFE"), rows, empty="no unused join tokens")


@app.command()
def revoke(
    token_id: Annotated[str, typer.Argument(metavar="ID", help="The id of the token, or the start of it.")],
    *,
    state_folder: StateOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Revoke a join token that was not used."""
    from ca.cli.state import StateFolder

    token = StateFolder.existing(state_folder).tokens().revoke(token_id)
    if output is Output.JSON:
        print_json(_json(token))
    else:
        print(f"join token {token.id} of agent {token.agent} is revoked")


def _json(token: JoinToken) -> dict[str, JSON]:
    return {
        "id": token.id,
        "agent": token.agent,
        "created_at": iso(token.created_at),
        "expires_at": iso(token.expires_at),
    }
