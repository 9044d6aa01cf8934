"""The commands put together, and what exit code an error means."""

from __future__ import annotations

import typer

from ca.cli import agent, inspect, issue, log, token, trust_bundle, verify
from istio_auth.errors import Code, IstioAuthError

FAILED = 1
REFUSED = 3
_EXITS = {Code.MALFORMED: 2, Code.NOT_AUTHENTICATED: REFUSED, Code.NOT_AUTHORIZED: REFUSED}

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
app.command()(issue.issue)
app.command()(inspect.inspect)
app.command()(verify.verify)
app.command("trust-bundle")(trust_bundle.trust_bundle)
app.add_typer(token.app, name="token")
app.add_typer(agent.app, name="agent")
app.command()(log.log)


def exit_of(error: Exception) -> int:
    """The exit code that an error means."""
    return _EXITS.get(error.code, FAILED) if isinstance(error, IstioAuthError) else FAILED
