"""`ca-cli log`: the certificates that were issued, as the issuance log tells it."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

from ca.cli.options import OutputOption, StateOption
from istio_auth.daemon.output import Output, print_json, print_table


def log(
    *,
    spiffe_id: Annotated[str, typer.Option("--id", metavar="SPIFFE-ID", help="Only this identity's.")] = "",
    serial: Annotated[str, typer.Option(metavar="HEX", help="Only the one with this serial number.")] = "",
    caller: Annotated[str, typer.Option(metavar="SPIFFE-ID", help="Only what this caller asked for.")] = "",
    since: Annotated[datetime | None, typer.Option(help="Only what was issued from then on (UTC).")] = None,
    valid: Annotated[bool, typer.Option("--valid", help="Only what has not ended yet.")] = False,
    last: Annotated[int, typer.Option(min=1, help="At most so many, the newest.")] = 100,
    state_folder: StateOption = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """List issued certificates, the newest last: who holds what, who asked for it, how that was proven, until when."""
    from ca.cli.issued import Wanted, read_issued
    from ca.cli.state import StateFolder
    from istio_auth.system_clock import SystemClock

    wanted = Wanted.of(
        spiffe_id=spiffe_id,
        serial=serial,
        caller=caller,
        since=since,
        not_ended_at=SystemClock().now() if valid else None,
    )
    found = read_issued(StateFolder.existing(state_folder).issuance_log, wanted, last=last)
    if output is Output.JSON:
        print_json([issued.json() for issued in found])
        return
    rows = [issued.row() for issued in found]
    columns = ("NUMBER", "ISSUED", "SPIFFE ID", "ENDS", "CALLER", "PROVEN BY", "SERIAL")
    print_table(columns, rows, empty="no such certificate is on record")
