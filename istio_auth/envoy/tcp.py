"""TCP as a sidecar treats it: bytes pass unchanged, because the peer was verified at the handshake."""

from __future__ import annotations

from istio_auth.bundle import JSON
from istio_auth.envoy.extension import extension

_PROXY = "envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy"
_IDLE_TIMEOUT = "3600s"


def tcp_proxy(stat_prefix: str, cluster: str, log: list[JSON]) -> dict[str, JSON]:
    """The network filter that passes a connection on to a cluster."""
    return extension(
        "envoy.filters.network.tcp_proxy",
        _PROXY,
        {"stat_prefix": stat_prefix, "cluster": cluster, "idle_timeout": _IDLE_TIMEOUT, "access_log": log},
    )
