"""`ca-cli inspect`: what a certificate, chain, bundle, CSR or an SVID's folder says, and what is unusual about it."""

from __future__ import annotations

from typing import Annotated

import typer

from ca.cli.options import OutputOption
from ca.cli.output import Output

SOURCES = "Files in PEM, DER or SPIFFE bundle JSON, folders of an SVID, or - for standard input."


def inspect(
    sources: Annotated[list[str], typer.Argument(help=SOURCES, metavar="FILE...")],
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a certificate, chain, bundle or CSR: identity, times in words, what is unusual.

    Nothing is checked against a trust bundle: `ca-cli verify` does that. Private keys are never shown.
    """
    from ca.cli.inspection import inspected
    from ca.cli.output import print_json, print_sections
    from istio_auth.system_clock import SystemClock

    found = [document for source in sources for document in inspected(source, SystemClock().now())]
    if output is Output.JSON:
        print_json({"documents": [document.json for document in found]})
    else:
        print_sections(section for document in found for section in document.sections)
