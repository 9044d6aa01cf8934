"""Where Envoy listens or dials: a host with a port, or a Unix socket (envoy.config.core.v3.Address)."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import TypeAlias

from istio_auth.bundle import JSON
from istio_auth.errors import ConfigurationError
from istio_auth.registration import check_dns_name

_UNIX = "unix:"
_MAX_UNIX_PATH = 107  # sun_path less its final NUL, unix(7)
_OWNER_ONLY = 0o600


@dataclass(frozen=True, slots=True)
class HostPort:
    """An IP address (to dial, also a DNS name) and a port; to listen, port 0 takes any free port.

    Raises:
        ConfigurationError: the host is no IP address and no DNS name, or the port is none.
    """

    host: str
    port: int

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ConfigurationError(f"{self.port} is no port: 0 to 65535")
        if not self.is_address:
            check_dns_name(self.host)

    @property
    def is_address(self) -> bool:
        """Whether the host is an IP address."""
        return _address(self.host) is not None

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine reaches it."""
        address = _address(self.host)
        return address is not None and address.is_loopback

    def reaches(self, other: Endpoint) -> bool:
        """Whether dialling this reaches a listener at `other`, which may listen at every address."""
        if not isinstance(other, HostPort) or self.port != other.port:
            return False
        listening, dialled = _address(other.host), _address(self.host)
        if listening is None or dialled is None:
            return self == other
        everywhere = listening.is_unspecified and (dialled.is_loopback or dialled.is_unspecified)
        return listening == dialled or (everywhere and dialled.version <= listening.version)

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, slots=True)
class UnixPath:
    """A Unix socket, by its absolute path. If Envoy makes it, only Envoy's user can connect (mode 0600).

    Raises:
        ConfigurationError: the path is not absolute, too long for a socket, or not printable.
    """

    path: str

    def __post_init__(self) -> None:
        if not self.path.startswith("/") or not self.path.isprintable():
            raise ConfigurationError(f"{self.path[:200]!r} is no absolute path of a Unix socket")
        if len(self.path.encode()) > _MAX_UNIX_PATH:
            raise ConfigurationError(f"{self.path!r} is too long for a Unix socket: at most {_MAX_UNIX_PATH} bytes")

    def reaches(self, other: Endpoint) -> bool:
        """Whether dialling this reaches a listener at `other`."""
        return self == other

    def __str__(self) -> str:
        return _UNIX + self.path


Endpoint: TypeAlias = HostPort | UnixPath


def parse_endpoint(text: str) -> Endpoint:
    """The endpoint in `host:port`, `[IPv6 address]:port` or `unix:/path`.

    Raises:
        ConfigurationError: the text is none of these.
    """
    if text.startswith(_UNIX):
        return UnixPath(text.removeprefix(_UNIX))
    host, colon, port = text.rpartition(":")
    bracketed = host.startswith("[") and host.endswith("]")
    if bracketed:
        host = host[1:-1]
    if not colon or not (port.isascii() and port.isdigit()) or bracketed != (":" in host):
        raise ConfigurationError(
            f"{text[:100]!r} is no endpoint: write for instance 127.0.0.1:8080, [::1]:8080 or unix:/run/app.sock"
        )
    return HostPort(host, int(port))


def listen_address(endpoint: Endpoint) -> dict[str, JSON]:
    """The Address to listen at; `::` takes IPv4 as well, as people expect."""
    if isinstance(endpoint, UnixPath):
        return {"pipe": {"path": endpoint.path, "mode": _OWNER_ONLY}}
    socket: dict[str, JSON] = {"address": endpoint.host, "port_value": endpoint.port}
    address = _address(endpoint.host)
    if address is not None and address.version == 6 and address.is_unspecified:
        socket["ipv4_compat"] = True
    return {"socket_address": socket}


def dial_address(endpoint: Endpoint) -> dict[str, JSON]:
    """The Address to connect to."""
    if isinstance(endpoint, UnixPath):
        return {"pipe": {"path": endpoint.path}}
    return {"socket_address": {"address": endpoint.host, "port_value": endpoint.port}}


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return None if "%" in host else ipaddress.ip_address(host)
    except ValueError:
        return None
