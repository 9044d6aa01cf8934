"""`ca-cli trust-bundle`: the CA's own bundle, to pin on nodes or to hand to another trust domain."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from ca.cli.options import StateOption
from istio_auth.daemon.output import Output, note, print_json


class Format(enum.StrEnum):
    """The formats of a bundle."""

    SPIFFE = "spiffe"
    PEM = "pem"


def trust_bundle(
    *,
    form: Annotated[Format, typer.Option("--format", help="SPIFFE bundle JSON, or the roots in PEM.")] = Format.SPIFFE,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Write it there instead of to stdout.")] = None,
    state_folder: StateOption = None,
    output: Annotated[
        Output, typer.Option("--output", "-o", help="json: the bundle together with its trust domain.")
    ] = Output.TABLE,
) -> None:
    """Print the CA's trust bundle: what node agents pin, and what peers check certificates against."""
    import json

    from cryptography.hazmat.primitives import hashes

    from ca.cli.state import StateFolder
    from istio_auth.files import atomic_write

    bundle = StateFolder.existing(state_folder).authority().bundle()
    content = bundle.to_json() if form is Format.SPIFFE else bundle.to_pem()
    if out is not None:
        atomic_write(out, content, mode=0o644)
    fingerprints = [root.fingerprint(hashes.SHA256()).hex() for root in bundle.x509_authorities]
    if output is Output.JSON:
        facts = {"trust_domain": bundle.trust_domain.name, "sequence": bundle.sequence, "sha256": fingerprints}
        inline = json.loads(content) if form is Format.SPIFFE else content.decode()
        print_json(facts | ({"file": str(out)} if out else {"bundle": inline}))
        return
    if out is None:
        print(content.decode(), end="")
    note(f"trust domain {bundle.trust_domain}, sequence {bundle.sequence}, SHA-256 {', '.join(fingerprints)}")
