"""`ca-cli issue`: a certificate, its key and the root, from a CA's store or from a running CA."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from ca.cli.options import OutputOption, StateOption, duration
from istio_auth.daemon.output import Output


class KeyType(enum.StrEnum):
    """The keys that can be made."""

    P256 = "p256"
    P384 = "p384"
    RSA_2048 = "rsa-2048"


def issue(
    *,
    spiffe_id: Annotated[str, typer.Option("--id", metavar="SPIFFE-ID", help="The identity.")],
    out: Annotated[
        str, typer.Option(metavar="DIR", help="Folder for key.pem, cert-chain.pem and root-cert.pem; - for stdout.")
    ],
    ttl: Annotated[str, typer.Option(help="Its lifetime, for instance 1h; by default the CA's.")] = "",
    dns: Annotated[list[str] | None, typer.Option(metavar="NAME", help="A DNS name beside it; repeatable.")] = None,
    key_type: Annotated[KeyType, typer.Option(help="The kind of key to make.")] = KeyType.P256,
    force: Annotated[bool, typer.Option("--force", help="Replace files that are there.")] = False,
    state_folder: StateOption = None,
    ca_folder: Annotated[
        str, typer.Option(metavar="DIR", help="Folder of a plugged-in CA, if not the configured one.")
    ] = "",
    config: Annotated[
        str, typer.Option(metavar="FILE", help="The CA's configuration file, if not the default one.")
    ] = "",
    server: Annotated[str, typer.Option(metavar="HOST:PORT", help="Ask this running CA instead of the store.")] = "",
    trust_bundle: Annotated[str, typer.Option(metavar="FILE", help="With --server: what to trust it by.")] = "",
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="With --server: the join token to prove ourselves by.")
    ] = None,
    timeout: Annotated[str, typer.Option(help="With --server: how long to wait.")] = "10s",
    output: OutputOption = Output.TABLE,
) -> None:
    """Issue a certificate for any identity, as the operator of the CA; or ask a running CA for one, with a token.

    From the store: nothing needs to be set up, a CA is made on first use exactly as istio-ca makes it, by the same
    configuration. While istio-ca runs on that store, ask it with --server. Every certificate is on record in the
    issuance log.
    """
    import asyncio

    from ca.cli import issuing
    from istio_auth.spiffe_id import SpiffeID

    place = issuing.Place.of(out, replace=force)
    wanted = issuing.Wanted(
        SpiffeID.normalized(spiffe_id),
        issuing.new_key(key_type.value),
        duration(ttl) if ttl else None,
        tuple(dns or ()),
    )
    if server:
        from ca.cli.asking import ask

        found = asyncio.run(ask(wanted, server, trust_bundle, token_file, patience=duration(timeout)))
    elif trust_bundle or token_file:
        raise typer.BadParameter("--trust-bundle and --token-file belong to --server")
    else:
        from ca.cli.state import ca_settings

        flags = {"--state-folder": state_folder, "--ca-folder": ca_folder, "--config": config}
        settings = ca_settings({flag: str(word) for flag, word in flags.items() if word})
        found = asyncio.run(issuing.issue_from_store(settings, wanted))
    place.deliver(found, output)
