"""Where the Workload API listens: reads `SPIFFE_ENDPOINT_SOCKET` strictly (Workload Endpoint 4).

    unix:///absolute/path      or, the same by RFC 3986, unix:/absolute/path
    tcp://<IP address>:<port>

Nothing else is allowed: no authority before a path, no path after a port, no query, no fragment, no host name.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from urllib.parse import quote_from_bytes, unquote_to_bytes

from istio_auth.errors import ConfigurationError
from istio_auth.host_port import HostPort

VARIABLE = "SPIFFE_ENDPOINT_SOCKET"
_MAX_ADDRESS = 2048
_MAX_PATH = 107  # bytes; the kernel's limit (unix(7))
_GRAMMAR = re.compile(r"(unix|tcp):(//)?([!-~]*)")
_STRAY_PERCENT = re.compile(r"%(?![0-9A-Fa-f]{2})")


def chosen_address(address: str | None, environment: Mapping[str, str]) -> str:
    """The address a client was given, or else the one that its environment names (WE-07).

    Raises:
        ConfigurationError: there is neither.
    """
    chosen = address if address is not None else environment.get(VARIABLE, "")
    if not chosen:
        raise ConfigurationError(
            f"nobody says where the Workload API listens: set {VARIABLE}, for instance to unix:///run/spiffe/agent.sock"
        )
    return chosen


def grpc_target(address: str) -> str:
    """The gRPC target for this address.

    Raises:
        ConfigurationError: the address has none of these forms.
    """
    if len(address) > _MAX_ADDRESS or not (match := _GRAMMAR.fullmatch(address)):
        raise _refused(address, "it must look like unix:///path/to/socket or tcp://127.0.0.1:8080")
    scheme, slashes, rest = match.groups()
    if "?" in rest or "#" in rest:
        raise _refused(address, "it has no query and no fragment")
    return _unix(address, rest) if scheme == "unix" else _tcp(address, rest if slashes else "")


def _unix(address: str, path: str) -> str:
    if not path.startswith("/"):
        raise _refused(address, "after unix:// comes an absolute path, without a host name before it (WE-08)")
    if _STRAY_PERCENT.search(path):
        raise _refused(address, "a percent sign in it is followed by two hexadecimal digits")
    octets = unquote_to_bytes(path)
    if path.endswith("/") or b"\0" in octets:
        raise _refused(address, "its path names no socket")
    if len(octets) > _MAX_PATH:
        raise _refused(address, f"the path of a socket has at most {_MAX_PATH} bytes, this one {len(octets)}")
    return "unix://" + quote_from_bytes(octets)


def _tcp(address: str, rest: str) -> str:
    try:
        place = HostPort.parse(rest)
        host = ipaddress.ip_address(place.host)
    except (ValueError, ConfigurationError):
        place = HostPort("", 0)
    if not place.port or "%" in place.host or ("[" in rest) != (":" in place.host):
        raise _refused(address, "after tcp:// come an IP address, a colon and a port, and nothing more (WE-09)")
    return f"ipv{host.version}:{HostPort(str(host), place.port)}"


def _refused(address: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"{address[:200]!a} is no address of a Workload API: {why}")
