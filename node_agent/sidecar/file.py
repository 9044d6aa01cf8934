"""A sidecar described in TOML, for `node-agent sidecar-config --file`.

    id = "spiffe://cluster.local/ns/shop/sa/web"
    agent_socket = "/run/istio-auth/agent.sock"
    admin = "unix:/run/web/admin.sock"
    request_authentication = "tokens.yaml"                # whose tokens HTTP listeners take

    [[inbound]]
    listen = "0.0.0.0:8443"
    forward = "127.0.0.1:8080"
    protocol = "http"                                     # http, http2 (so gRPC) or tcp
    mode = "STRICT"                                       # STRICT, PERMISSIVE or DISABLE
    allow = ["spiffe://cluster.local/ns/shop/sa/front"]
    require_token = true                                  # refuse requests without one

    [[upstream]]
    name = "db"
    listen = "unix:/run/web/db.sock"
    connect = "db.shop.internal:8443"
    protocol = "tcp"
    expect = ["spiffe://cluster.local/ns/shop/sa/db"]

Without an agent, `agent_socket` is left out, and mounted files take its place (`node_agent.sidecar.agentless`):

    [agentless]
    folder = "/var/run/identity"
    layout = "credential-bundle"                          # istio, tls or credential-bundle
    roots = "/var/run/roots/trust-bundle.pem"             # if they are not in the folder

An unknown key is an error, as in the daemons' own files. What each means is told in `istio_auth.envoy.spec`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from istio_auth.daemon.settings import Sources, load
from istio_auth.envoy.endpoint import UnixPath, parse_endpoint
from istio_auth.envoy.spec import (
    DEFAULT_CERTIFICATE,
    DEFAULT_CONNECTION_AGE,
    Inbound,
    Mode,
    Protocol,
    SidecarSpec,
    Upstream,
)
from istio_auth.envoy.token_rules import DEFAULT_REFRESH
from istio_auth.errors import ConfigurationError
from istio_auth.spiffe_id import SpiffeID
from node_agent.sidecar.agentless import Agentless
from node_agent.sidecar.token_policy import read_token_rules


def read_sidecar(path: Path, tell: Callable[[str], None] = lambda _: None, told_in: Path | None = None) -> SidecarSpec:
    """The sidecar that a file describes.

    Args:
        path: the file.
        tell: hears what is no mistake but may surprise.
        told_in: the folder in which Envoy finds what it is told by; None where the bootstrap alone is made.

    Raises:
        ConfigurationError: it can not be read, or describes none; the message names the file.
    """
    try:
        return load(_SidecarFile, Sources(file=path, file_required=True)).config.spec(tell, told_in)
    except ConfigurationError as error:
        told = str(error)
        raise ConfigurationError(told if str(path) in told else f"{path}: {told}") from error


@dataclass(frozen=True, slots=True)
class _InboundTable:
    listen: str
    forward: str
    protocol: Protocol = Protocol.HTTP
    mode: Mode = Mode.STRICT
    allow: tuple[SpiffeID, ...] = ()
    name: str = ""
    require_token: bool = False

    def inbound(self) -> Inbound:
        listen, forward = parse_endpoint(self.listen), parse_endpoint(self.forward)
        return Inbound(listen, forward, self.protocol, self.mode, self.allow, self.name, self.require_token)


@dataclass(frozen=True, slots=True)
class _UpstreamTable:
    name: str
    listen: str
    connect: str
    expect: tuple[SpiffeID, ...]
    protocol: Protocol = Protocol.HTTP

    def upstream(self) -> Upstream:
        listen, connect = parse_endpoint(self.listen), parse_endpoint(self.connect)
        return Upstream(self.name, listen, connect, self.expect, self.protocol)


@dataclass(frozen=True, slots=True)
class _SidecarFile:
    id: SpiffeID | None = None
    agent_socket: Path | None = None
    inbound: tuple[_InboundTable, ...] = ()
    upstream: tuple[_UpstreamTable, ...] = ()
    admin: str | None = None
    certificate: str = DEFAULT_CERTIFICATE
    max_connection_age: timedelta = DEFAULT_CONNECTION_AGE
    request_authentication: Path | None = None
    labels: tuple[str, ...] = ()
    jwks_ca: Path | None = None
    jwks_refresh: timedelta = DEFAULT_REFRESH
    agentless: Agentless = field(default_factory=Agentless)

    def spec(self, tell: Callable[[str], None], told_in: Path | None) -> SidecarSpec:
        mounted = self.agentless.secrets(told_in) if self.agentless != Agentless() else None
        if self.id is None or (self.agent_socket is None and mounted is None):
            raise ConfigurationError("id must be set, and agent_socket or agentless")
        tokens = None
        if self.request_authentication:
            tokens = read_token_rules(
                self.request_authentication,
                self.id,
                labels=self.labels,
                ca_file=self.jwks_ca,
                refresh=self.jwks_refresh,
                tell=tell,
            )
        elif self.labels or self.jwks_ca:
            raise ConfigurationError("labels and jwks_ca are for request_authentication, which is not set")
        return SidecarSpec(
            id=self.id,
            agent_socket=UnixPath(str(self.agent_socket)) if self.agent_socket else None,
            inbound=tuple(table.inbound() for table in self.inbound),
            upstreams=tuple(table.upstream() for table in self.upstream),
            admin=parse_endpoint(self.admin) if self.admin else None,
            certificate=self.certificate,
            max_connection_age=self.max_connection_age,
            tokens=tokens,
            mounted=mounted,
        )
