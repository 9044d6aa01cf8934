"""`ca-cli`: issue, inspect and verify certificates, and look after join tokens and agents. One module a command.

Exit codes: 0 done, 1 failed, 2 wrong usage or configuration, 3 checked and refused. Results go to standard output,
everything else to standard error. Command modules import what they need when they run, so that `--help` is quick.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line, and tell an error in one sentence; ends the process.

    Args:
        arguments: the words after the program's name; None takes those of this process.
    """
    from ca.cli.program import app, exit_of
    from istio_auth.daemon.output import note
    from istio_auth.errors import IstioAuthError

    try:
        app(arguments)
    except (IstioAuthError, OSError) as error:
        note(f"ca-cli: {error}")
        sys.exit(exit_of(error))
