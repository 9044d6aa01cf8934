"""What a sidecar is: whose it is, where its agent is, what it lets in and where it goes.

Values are checked when they are made, so Envoy accepts the bootstrap of every `SidecarSpec`. Nobody is let in by
default: an empty `allow` lets nobody in.
"""

from __future__ import annotations

import enum
import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import timedelta

from istio_auth.envoy.endpoint import Endpoint, HostPort, UnixPath
from istio_auth.envoy.mounted_secrets import MountedSecrets
from istio_auth.envoy.token_rules import TokenRules
from istio_auth.errors import ConfigurationError
from istio_auth.spiffe_id import SpiffeID

_NAME = re.compile(r"[a-z0-9](?:[a-z0-9_-]{0,61}[a-z0-9])?")  # it is part of metric names and of a server name
DEFAULT_CERTIFICATE = "default"
DEFAULT_CONNECTION_AGE = timedelta(hours=1)


class Mode(enum.Enum):
    """What an inbound listener takes (Istio's PeerAuthentication modes)."""

    STRICT = "STRICT"  # mutual TLS only
    PERMISSIVE = "PERMISSIVE"  # mutual TLS from peers of the mesh, plaintext from all others
    DISABLE = "DISABLE"  # plaintext only


class Protocol(enum.Enum):
    """What the application speaks."""

    HTTP = "http"  # HTTP/1.1
    HTTP2 = "http2"  # HTTP/2 without TLS, so gRPC
    TCP = "tcp"  # anything else

    @property
    def is_http(self) -> bool:
        """Whether requests are seen one by one."""
        return self is not Protocol.TCP


@dataclass(frozen=True, slots=True)
class Inbound:
    """A port on which others reach the workload.

    Args:
        listen: where the sidecar listens.
        forward: where the application listens.
        protocol: what the application speaks.
        mode: what is let in.
        allow: the SPIFFE IDs of the callers that mutual TLS lets in, each exact; a trust domain's own ID stands for
            all of its workloads. If empty, mutual TLS lets nobody in. Plaintext proves no caller: PERMISSIVE and
            DISABLE let all of it in.
        name: its name in metrics and logs; by default the port. A Unix socket needs one.
        require_token: whether requests without a valid token are refused. A token says on whose behalf a request is
            made, never which peer makes it: that is for mutual TLS.

    Raises:
        ConfigurationError: the parts do not fit together.
    """

    listen: Endpoint
    forward: Endpoint
    protocol: Protocol = Protocol.HTTP
    mode: Mode = Mode.STRICT
    allow: tuple[SpiffeID, ...] = ()
    name: str = ""
    require_token: bool = False

    def __post_init__(self) -> None:
        if not self.name:
            named = str(self.listen.port) if isinstance(self.listen, HostPort) else ""
            object.__setattr__(self, "name", named)
        _check_name(self.name, "inbound")
        _check_listen(self.listen, self.name)
        _check_dial(self.forward, self.name)
        if self.forward.reaches(self.listen):
            raise ConfigurationError(f"inbound {self.name}: it would forward to itself, at {self.listen}")
        if self.mode is Mode.DISABLE and self.allow:
            raise ConfigurationError(f"inbound {self.name}: without TLS there is no caller to allow: use STRICT")
        if self.require_token and not self.protocol.is_http:
            raise ConfigurationError(f"inbound {self.name}: TCP has no place for a token: require it of HTTP only")

    @property
    def label(self) -> str:
        """What Envoy calls it."""
        return f"inbound_{self.name}"


@dataclass(frozen=True, slots=True)
class Upstream:
    """Another workload, at an address of this machine that the application dials in plaintext.

    Args:
        name: its name in metrics and logs.
        listen: where the application dials it. Whoever can connect here speaks with this workload's identity.
        connect: where it really is.
        expect: the SPIFFE IDs that it may have, each exact and of a workload.
        protocol: what is spoken.

    Raises:
        ConfigurationError: the parts do not fit together.
    """

    name: str
    listen: Endpoint
    connect: Endpoint
    expect: tuple[SpiffeID, ...]
    protocol: Protocol = Protocol.HTTP

    def __post_init__(self) -> None:
        _check_name(self.name, "upstream")
        _check_listen(self.listen, self.name)
        _check_dial(self.connect, self.name)
        if isinstance(self.listen, HostPort) and not self.listen.is_loopback:
            raise ConfigurationError(
                f"upstream {self.name}: whoever reaches {self.listen} would speak as this workload: listen on "
                "loopback, or better on a Unix socket"
            )
        if not self.expect:
            raise ConfigurationError(f"upstream {self.name}: say which SPIFFE ID the server has")
        for expected in self.expect:
            if not expected.path:
                raise ConfigurationError(f"upstream {self.name}: {expected} names a trust domain, not a server")

    @property
    def label(self) -> str:
        """What Envoy calls it."""
        return f"outbound_{self.name}"


@dataclass(frozen=True, slots=True)
class SidecarSpec:
    """One workload's sidecar.

    Args:
        id: the workload's SPIFFE ID.
        agent_socket: the node agent's Unix socket for this workload; None if `mounted` is given.
        inbound: what is let in.
        upstreams: where the workload goes.
        admin: where Envoy's own administration listens: loopback or a Unix socket; None turns it off.
        certificate: the agent's name for the SVID: `default`, or the SPIFFE ID for a workload that has several.
        max_connection_age: the age at which an HTTP connection is replaced by a new one, so that none lives on for days
            with the certificates that it began with; at least 100 ms.
        tokens: whose tokens its HTTP listeners take; None leaves tokens to the application.
        mounted: the mounted files that replace the agent; None if `agent_socket` is given.

    Raises:
        ConfigurationError: the parts do not fit together.
    """

    id: SpiffeID
    agent_socket: UnixPath | None
    inbound: tuple[Inbound, ...] = ()
    upstreams: tuple[Upstream, ...] = ()
    admin: Endpoint | None = None
    certificate: str = DEFAULT_CERTIFICATE
    max_connection_age: timedelta = DEFAULT_CONNECTION_AGE
    tokens: TokenRules | None = None
    mounted: MountedSecrets | None = None

    def __post_init__(self) -> None:
        if not self.id.path:
            raise ConfigurationError(f"{self.id} names a trust domain, not a workload")
        if not self.inbound and not self.upstreams:
            raise ConfigurationError("a sidecar without inbound listener and upstream does nothing: give it one")
        if self.certificate not in {DEFAULT_CERTIFICATE, str(self.id)}:
            raise ConfigurationError(f"the certificate is called {DEFAULT_CERTIFICATE!r} or {str(self.id)!r}")
        if isinstance(self.admin, HostPort) and not self.admin.is_loopback:
            raise ConfigurationError(f"whoever reaches {self.admin} could stop Envoy: keep it on loopback")
        if self.max_connection_age < timedelta(milliseconds=100):
            raise ConfigurationError("connections need some time to live: at least 100ms")
        self._check_secrets()
        self._check_tokens()
        self._check_distinct()

    def _check_secrets(self) -> None:
        if (self.agent_socket is None) == (self.mounted is None):
            raise ConfigurationError("secrets come from an agent's socket or from mounted files: name one of them")
        if self.mounted is None:
            return
        if self.certificate != DEFAULT_CERTIFICATE:
            raise ConfigurationError("mounted files hold one certificate: no other can be named")
        peers = [peer for one in self.inbound for peer in one.allow] + [
            peer for one in self.upstreams for peer in one.expect
        ]
        if foreign := [peer for peer in peers if peer.trust_domain != self.id.trust_domain]:
            raise ConfigurationError(
                f"{foreign[0]} is of another trust domain, and mounted roots are those of {self.id.trust_domain}: "
                "peers of several trust domains need an agent"
            )

    def _check_tokens(self) -> None:
        if self.tokens and not any(inbound.protocol.is_http for inbound in self.inbound):
            raise ConfigurationError("tokens are looked for in HTTP requests, and no inbound listener takes any")
        required = [inbound.name for inbound in self.inbound if inbound.require_token]
        if required and not self.tokens:
            raise ConfigurationError(f"inbound {required[0]} requires a token: say whose, by request authentication")

    def _check_distinct(self) -> None:
        places: list[Inbound | Upstream] = [*self.inbound, *self.upstreams]
        if repeated := _repeated(place.label for place in places):
            raise ConfigurationError(f"two are called {repeated}: give each a name of its own")
        taken = [place.listen for place in places] + ([self.admin] if self.admin else [])
        fixed = [str(listen) for listen in taken if not isinstance(listen, HostPort) or listen.port]
        if repeated := _repeated(fixed):
            raise ConfigurationError(f"two listen at {repeated}")


def _check_name(name: str, what: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigurationError(
            f"an {what} needs a name of 1 to 63 of a-z, 0-9, '_' and '-', with a letter or digit at both ends, "
            f"not {name[:100]!r}"
        )


def _check_listen(endpoint: Endpoint, name: str) -> None:
    if isinstance(endpoint, HostPort) and not endpoint.is_address:
        raise ConfigurationError(f"{name}: listen at an IP address, not at {endpoint}")


def _check_dial(endpoint: Endpoint, name: str) -> None:
    if isinstance(endpoint, HostPort) and not endpoint.port:
        raise ConfigurationError(f"{name}: {endpoint} can not be dialled: port 0 is none")


def _repeated(names: Iterable[str]) -> str:
    return next((name for name, count in Counter(names).items() if count > 1), "")
