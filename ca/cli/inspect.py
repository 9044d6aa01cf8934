"""`ca-cli inspect`: what a certificate, chain, bundle, CSR or an SVID's folder says, and what is unusual about it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ca.cli.options import OutputOption
from istio_auth.daemon.output import Output

if TYPE_CHECKING:
    from ca.cli.inspection import Document

SOURCES = (
    "Files in PEM, DER or SPIFFE bundle JSON, folders of an SVID, - for standard input, or secret/NAME and "
    "configmap/NAME in Kubernetes."
)


def inspect(
    sources: Annotated[list[str], typer.Argument(help=SOURCES, metavar="SOURCE...")],
    namespace: Annotated[
        str, typer.Option("--namespace", "-n", help="The namespace of secrets and config maps.")
    ] = "default",
    kubeconfig: Annotated[
        Path | None, typer.Option("--kubeconfig", envvar="KUBECONFIG", help="How to reach Kubernetes.")
    ] = None,
    output: OutputOption = Output.TABLE,
) -> None:
    """Show a certificate, chain, bundle or CSR: identity, times in words, what is unusual.

    Nothing is checked against a trust bundle: `ca-cli verify` does that. Private keys are never shown.
    """
    from ca.cli.inspection import inspected, inspected_object
    from istio_auth.daemon.output import print_json, print_sections
    from istio_auth.system_clock import SystemClock

    found: list[Document] = []
    now = SystemClock().now()
    for source in sources:
        kind, _, name = source.partition("/")
        if kind in {"secret", "configmap"} and name and not Path(source).exists():
            found += inspected_object(source, _looked_up(kind, name, namespace, kubeconfig), now)
        else:
            found += inspected(source, now)
    if output is Output.JSON:
        print_json({"documents": [document.json for document in found]})
    else:
        print_sections(section for document in found for section in document.sections)


def _looked_up(kind: str, name: str, namespace: str, kubeconfig: Path | None) -> Mapping[str, bytes]:
    from istio_auth.errors import ConfigurationError

    try:
        from ca.platform.kubernetes.lookup import look_up
    except ModuleNotFoundError as error:  # its client is large, and not for everybody
        raise ConfigurationError(f"{error.name} is not installed: pip install 'istio-auth[kubernetes]'") from error
    return look_up(kind, name, namespace=namespace, kubeconfig=kubeconfig)
