"""A host and a port, as people write them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Self

from istio_auth.errors import ConfigurationError

_ANYWHERE: Final = ("", "*")


@dataclass(frozen=True, slots=True)
class HostPort:
    """Where to listen or to dial: a name or address, and a port.

    Args:
        host: a name, an IPv4 or an IPv6 address without brackets; empty means every address of the machine.
        port: 0 to 65535; 0 lets the system choose.
    """

    host: str
    port: int

    @classmethod
    def parse(cls, text: str) -> Self:
        """The host and port in `host:port`, `[IPv6 address]:port`, `:port` or `*:port`.

        Raises:
            ConfigurationError: the text is none of these.
        """
        if "://" in text:
            raise ConfigurationError(f"{text[:100]!r}: write host:port alone, without a scheme before it")
        host, colon, port = text.rpartition(":")
        if len(host) > 2 and host.startswith("[") and host.endswith("]"):
            host = host[1:-1]
        elif ":" in host:
            raise ConfigurationError(f"{text[:100]!r}: put an IPv6 address into brackets, for instance [::1]:15012")
        if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535 or set(host) & set("[]/@ \t\n"):
            raise ConfigurationError(
                f"{text[:100]!r} is no host:port: write for instance 127.0.0.1:15012 or [::1]:15012"
            )
        return cls("" if host in _ANYWHERE else host, int(port))

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"
