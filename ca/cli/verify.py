"""`ca-cli verify`: would a chain, or the server at an address, be accepted, and if not, why not?"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Annotated

import typer

from ca.cli.options import OutputOption, duration
from istio_auth.daemon.output import Output


def verify(
    target: Annotated[
        str, typer.Argument(help="A chain (file, SVID folder or - for stdin), or host:port of a server.")
    ],
    *,
    trust_bundle: Annotated[
        str, typer.Option(help="PEM, SPIFFE bundle or bundle map; by default the root in the SVID folder.")
    ] = "",
    spiffe_id: Annotated[
        list[str] | None, typer.Option("--id", metavar="SPIFFE-ID", help="Accept only this identity; may be repeated.")
    ] = None,
    trust_domain: Annotated[
        str, typer.Option(help="Accept only members of this trust domain; also whose the bundle is.")
    ] = "",
    svid: Annotated[Path | None, typer.Option(help="Folder with the certificate to show to the server.")] = None,
    server_name: Annotated[str, typer.Option(help="Server name to ask for (SNI), if not the host.")] = "",
    timeout: Annotated[str, typer.Option(help="How long to wait for the server.")] = "5s",
    at: Annotated[datetime | None, typer.Option(help="Judge at this instant (UTC) instead of now.")] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Check a certificate chain against a trust bundle, or what a live server presents.

    Exit code 0: it would be accepted. 3: it would be refused; the reason is printed. 1: the server was not reached.
    """
    from ca.cli.verification import Expected, verified_chain, verified_server
    from istio_auth.daemon.lifecycle import Exit
    from istio_auth.daemon.output import print_json, print_sections

    expected = Expected.of(spiffe_id or (), trust_domain, at)
    if target == "-" or Path(target).exists():
        found = verified_chain(target, trust_bundle, expected)
    else:
        found = verified_server(
            target, trust_bundle, expected, svid=svid, server_name=server_name, timeout=duration(timeout)
        )
    if output is Output.JSON:
        print_json(found.json())
    else:
        print_sections(found.sections())
    if not found.verdict.accepted:
        raise typer.Exit(Exit.REFUSED)
