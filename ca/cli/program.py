"""The commands put together, and what exit code an error means."""

from __future__ import annotations

from typing import Annotated

import typer

from ca.cli import agent, inspect, issue, log, token, trust_bundle, verify
from istio_auth.errors import Code, IstioAuthError

app = typer.Typer(
    name="ca-cli",
    help="Issue, inspect and verify SPIFFE certificates, and look after join tokens and agents.",
    epilog="Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 checked and refused.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,  # rich would double the time that --help takes
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        import importlib.metadata

        typer.echo(importlib.metadata.version("istio-auth"))
        raise typer.Exit


@app.callback()
def _top(
    *,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    del version


app.command()(issue.issue)
app.command()(inspect.inspect)
app.command()(verify.verify)
app.command("trust-bundle")(trust_bundle.trust_bundle)
app.add_typer(token.app, name="token")
app.add_typer(agent.app, name="agent")
app.command()(log.log)


def exit_of(error: Exception) -> int:
    """The exit code that an error means."""
    from istio_auth.daemon.lifecycle import Exit

    if not isinstance(error, IstioAuthError):
        return Exit.FAILED
    meanings = {
        Code.MALFORMED: Exit.USAGE,
        Code.NOT_AUTHENTICATED: Exit.REFUSED,
        Code.NOT_AUTHORIZED: Exit.REFUSED,
    }
    return meanings.get(error.code, Exit.FAILED)
