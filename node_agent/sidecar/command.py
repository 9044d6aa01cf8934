"""`node-agent sidecar-config`: prints the Envoy bootstrap of a workload's sidecar (`istio_auth.envoy`).

The sidecar is told by flags, or by a file where every listener has settings of its own (`node_agent.sidecar.file`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from istio_auth.clock import parse_duration
from istio_auth.envoy.endpoint import UnixPath, parse_endpoint
from istio_auth.envoy.spec import (
    DEFAULT_CERTIFICATE,
    Inbound,
    Mode,
    Protocol,
    SidecarSpec,
    Upstream,
)
from istio_auth.envoy.token_rules import TokenRules
from istio_auth.errors import ConfigurationError, MalformedError
from istio_auth.spiffe_id import SpiffeID
from node_agent.layout import Layout
from node_agent.sidecar.agentless import Agentless, write_sidecar

_UPSTREAM_FORM = "NAME[/PROTOCOL]=LISTEN->CONNECT,ID[,ID...]"

FileOption = Annotated[
    Path | None, typer.Option("--file", metavar="FILE", help="Read the sidecar from a TOML file, instead of flags.")
]
IdOption = Annotated[str, typer.Option("--id", metavar="ID", help="The workload's SPIFFE ID.")]
SocketOption = Annotated[
    str, typer.Option("--agent-socket", metavar="PATH", help="The node agent's socket for this workload.")
]
AgentlessOption = Annotated[
    str,
    typer.Option(
        "--agentless",
        metavar="FOLDER",
        help="Ask no agent: Envoy itself follows the key, the certificates and the roots that are mounted in this "
        "folder and that somebody else renews. Needs --output.",
    ),
]
LayoutOption = Annotated[
    Layout,
    typer.Option(
        "--layout",
        help="What the mounted files are called. istio: cert-chain.pem, key.pem, root-cert.pem; tls: tls.crt, tls.key, "
        "ca.crt; credential-bundle: credential-bundle.pem (key and certificates), trust-bundle.pem.",
    ),
]
RootsOption = Annotated[
    str, typer.Option("--roots", metavar="FILE", help="Where the mounted roots are, if not in that folder.")
]
OutputOption = Annotated[
    Path | None,
    typer.Option(
        "--output",
        metavar="FOLDER",
        help="Write into this folder, and print nothing: envoy.json, and without an agent certificate.json and "
        "roots.json, which Envoy needs beside it.",
    ),
]
FoundOption = Annotated[
    Path | None,
    typer.Option(
        "--found-at",
        metavar="FOLDER",
        help="Where Envoy will find what --output writes, if it is moved, as in a ConfigMap.",
    ),
]
InboundOption = Annotated[
    list[str] | None,
    typer.Option(
        "--inbound",
        metavar="LISTEN=FORWARD",
        help="Let callers in at LISTEN and pass them to the application at FORWARD, for instance "
        "0.0.0.0:8443=127.0.0.1:8080 or [::]:8443=[::1]:8080. Repeatable.",
    ),
]
ProtocolOption = Annotated[
    Protocol,
    typer.Option("--protocol", help="What the application speaks: http2 for gRPC, tcp for all but HTTP."),
]
ModeOption = Annotated[
    Mode, typer.Option("--mode", help="STRICT: mutual TLS only; PERMISSIVE: plaintext too; DISABLE: plaintext only.")
]
AllowOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow",
        metavar="ID",
        help="A SPIFFE ID that mutual TLS lets in, or a trust domain's for all of its workloads. Repeatable; without "
        "any, nobody is let in.",
    ),
]
UpstreamOption = Annotated[
    list[str] | None,
    typer.Option(
        "--upstream",
        metavar=_UPSTREAM_FORM,
        help="Another workload: the application finds it at LISTEN, it is at CONNECT and has one of these SPIFFE IDs, "
        "for instance 'db/tcp=127.0.0.1:5432->db.internal:8443,spiffe://cluster.local/ns/shop/sa/db'. Repeatable.",
    ),
]
AdminOption = Annotated[
    str,
    typer.Option("--admin", metavar="WHERE", help="Where Envoy's administration listens: unix:/path, or on loopback."),
]
CertificateOption = Annotated[
    str,
    typer.Option(
        "--certificate", metavar="NAME", help="What the agent calls the certificate: the SPIFFE ID, if it has several."
    ),
]
AgeOption = Annotated[
    str,
    typer.Option(
        "--max-connection-age", metavar="DURATION", help="After how long an HTTP connection makes way for a new one."
    ),
]
TokensOption = Annotated[
    Path | None,
    typer.Option(
        "--request-authentication",
        metavar="FILE",
        help="Istio RequestAuthentication policies, in YAML: whose tokens HTTP requests may carry. A token that is not "
        "valid is refused (401); without one a request passes. It says on whose behalf a request is made. Only mutual "
        "TLS says which peer makes it.",
    ),
]
RequireOption = Annotated[
    bool, typer.Option("--require-token", help="Refuse HTTP requests without a valid token too (401).")
]
LabelOption = Annotated[
    list[str] | None,
    typer.Option(
        "--label", metavar="KEY=VALUE", help="A label of the workload, for policies with a selector. Repeatable."
    ),
]
CAOption = Annotated[
    Path | None,
    typer.Option(
        "--jwks-ca",
        metavar="FILE",
        help="Authorities, in PEM, of the servers that have the keys of token issuers; by default those of the system.",
    ),
]
RefreshOption = Annotated[
    str, typer.Option("--jwks-refresh", metavar="DURATION", help="How often keys of token issuers are fetched anew.")
]


def sidecar_config(
    *,
    file: FileOption = None,
    spiffe_id: IdOption = "",
    agent_socket: SocketOption = "",
    agentless: AgentlessOption = "",
    layout: LayoutOption = Layout.ISTIO,
    roots: RootsOption = "",
    output: OutputOption = None,
    found_at: FoundOption = None,
    inbound: InboundOption = None,
    protocol: ProtocolOption = Protocol.HTTP,
    mode: ModeOption = Mode.STRICT,
    allow: AllowOption = None,
    upstream: UpstreamOption = None,
    admin: AdminOption = "",
    certificate: CertificateOption = DEFAULT_CERTIFICATE,
    max_connection_age: AgeOption = "1h",
    request_authentication: TokensOption = None,
    require_token: RequireOption = False,
    label: LabelOption = None,
    jwks_ca: CAOption = None,
    jwks_refresh: RefreshOption = "5m",
) -> None:
    """Print the Envoy bootstrap of a workload's sidecar: `envoy -c` takes it as it is. It holds no secret."""
    if found_at and not output:
        raise ConfigurationError("--found-at is for what --output writes, which is missing")
    told_in = found_at or (output.absolute() if output else None)
    if file:
        from node_agent.sidecar.file import read_sidecar

        flags = (spiffe_id, agent_socket, agentless, roots, inbound, upstream, allow, admin)
        if any((*flags, request_authentication, require_token, label, jwks_ca)):
            raise ConfigurationError("a sidecar is told by --file or by flags, not by both")
        return _put(read_sidecar(file, _tell, told_in), output)
    own_id = _spiffe_id(_given(spiffe_id, "--id"))
    if agent_socket and agentless:
        raise ConfigurationError("--agent-socket and --agentless exclude each other")
    mounted = Agentless(agentless, layout, roots).secrets(told_in) if agentless or roots else None
    allowed, parse = _spiffe_ids(allow or ()), partial(parse_inbound, protocol=protocol, mode=mode)
    spec = SidecarSpec(
        own_id,
        None if mounted else UnixPath(_given(agent_socket, "--agent-socket")),
        tuple(parse(text, allow=allowed, require_token=require_token) for text in inbound or ()),
        tuple(map(parse_upstream, upstream or ())),
        parse_endpoint(admin) if admin else None,
        certificate,
        parse_duration(max_connection_age),
        _tokens(own_id, request_authentication, label, jwks_ca, jwks_refresh),
        mounted,
    )
    return _put(spec, output)


def parse_inbound(
    text: str, *, protocol: Protocol, mode: Mode, allow: tuple[SpiffeID, ...], require_token: bool = False
) -> Inbound:
    """The inbound listener that `LISTEN=FORWARD` spells.

    Raises:
        ConfigurationError: it spells none.
    """
    listen, separator, forward = text.partition("=")
    if not separator:
        raise ConfigurationError(f"{text[:100]!r} is no inbound listener: write LISTEN=FORWARD")
    places = parse_endpoint(listen), parse_endpoint(forward)
    return Inbound(*places, protocol, mode, allow, require_token=require_token)


def parse_upstream(text: str) -> Upstream:
    """The upstream that `NAME[/PROTOCOL]=LISTEN->CONNECT,ID[,ID...]` spells.

    Raises:
        ConfigurationError: it spells none.
    """
    head, equals, rest = text.partition("=")
    name, slash, protocol = head.partition("/")
    listen, arrow, rest = rest.partition("->")
    connect, *expect = rest.split(",")
    known = [one.value for one in Protocol]
    if not (equals and arrow and expect) or (slash and protocol not in known):
        raise ConfigurationError(
            f"{text[:200]!r} is no upstream: write {_UPSTREAM_FORM}, protocols are {', '.join(known)}"
        )
    spoken = Protocol(protocol) if slash else Protocol.HTTP
    return Upstream(name, parse_endpoint(listen), parse_endpoint(connect), _spiffe_ids(expect), spoken)


def _tokens(
    own_id: SpiffeID, policies: Path | None, labels: Sequence[str] | None, ca_file: Path | None, refresh: str
) -> TokenRules | None:
    from node_agent.sidecar.token_policy import read_token_rules

    if policies is None:
        if labels or ca_file:
            raise ConfigurationError("--label and --jwks-ca are for --request-authentication, which is missing")
        return None
    every = parse_duration(refresh)
    return read_token_rules(policies, own_id, labels=labels or (), ca_file=ca_file, refresh=every, tell=_tell)


def _put(spec: SidecarSpec, output: Path | None) -> None:
    # Here, so that the daemon, which shares the command line, does not pay for it.
    import json

    from istio_auth.envoy.bootstrap import sidecar_bootstrap
    from node_agent.sidecar.token_policy import cautions

    for caution in (*_closed(spec), *cautions(spec)):
        _tell(caution)
    if output is None:
        typer.echo(json.dumps(sidecar_bootstrap(spec), indent=2))
    else:
        told = spec.mounted.files(spec.id.trust_domain) if spec.mounted else {}
        write_sidecar(output, {**told, "envoy.json": sidecar_bootstrap(spec)})


def _closed(spec: SidecarSpec) -> Iterator[str]:
    for one in spec.inbound:
        if one.mode is not Mode.DISABLE and not one.allow:
            yield f"{one.label} lets nobody in by mutual TLS: name its callers with allow"


def _tell(text: str) -> None:
    typer.echo(text, err=True)


def _given(value: str, flag: str) -> str:
    if not value:
        raise ConfigurationError(f"{flag} is missing")
    return value


def _spiffe_ids(texts: Sequence[str]) -> tuple[SpiffeID, ...]:
    return tuple(_spiffe_id(text.strip()) for text in texts)


def _spiffe_id(text: str) -> SpiffeID:
    try:
        return SpiffeID.parse(text)
    except MalformedError as error:
        raise ConfigurationError(str(error)) from error
