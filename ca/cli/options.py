"""Options that several commands share."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated

import typer

from istio_auth.daemon.output import Output

OutputOption = Annotated[Output, typer.Option("--output", "-o", help="How to print the result.")]
StateOption = Annotated[
    Path | None, typer.Option("--state-folder", metavar="DIR", help="The CA's state folder, if not the configured one.")
]


def duration(text: str) -> timedelta:
    """A duration on the command line, such as `90s` or `24h`."""
    from istio_auth.clock import parse_duration
    from istio_auth.errors import ConfigurationError

    try:
        return parse_duration(text)
    except ConfigurationError as error:
        raise typer.BadParameter(str(error)) from error
