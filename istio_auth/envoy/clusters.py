"""Where a sidecar connects: the application beside it, upstreams of the mesh, and the node agent."""

from __future__ import annotations

from istio_auth.bundle import JSON
from istio_auth.envoy.endpoint import Endpoint, HostPort, UnixPath, dial_address
from istio_auth.envoy.extension import seconds, typed
from istio_auth.envoy.spec import Inbound, Protocol, SidecarSpec, Upstream
from istio_auth.envoy.tls_context import SDS_CLUSTER, client_socket

MAX_CONNECTIONS = 10_000
_CONNECT_TIMEOUT = "5s"
_IDLE_TIMEOUT = "3600s"
# Servers commonly close idle connections after 2 to 5 s, and a request sent at that moment is lost: close earlier.
_APPLICATION_IDLE_TIMEOUT = "1s"
_HTTP_OPTIONS = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
_KEEPALIVE: dict[str, JSON] = {"connection_keepalive": {"interval": "30s", "timeout": "10s"}}


def application_name(inbound: Inbound) -> str:
    """What Envoy calls the cluster of the application behind an inbound listener."""
    return f"application_{inbound.name}"


def application_cluster(inbound: Inbound) -> dict[str, JSON]:
    """The application behind an inbound listener, in plaintext."""
    cluster = plain_cluster(application_name(inbound), inbound.forward)
    if inbound.protocol is Protocol.TCP:
        return cluster
    spoken: dict[str, JSON] = {"http_protocol_options": {}}
    if inbound.protocol is Protocol.HTTP2:
        spoken = {"http2_protocol_options": {"allow_connect": True}}
    idle: dict[str, JSON] = {"idle_timeout": _APPLICATION_IDLE_TIMEOUT}
    return cluster | _http({"common_http_protocol_options": idle, "explicit_http_config": spoken})


def upstream_cluster(spec: SidecarSpec, upstream: Upstream) -> dict[str, JSON]:
    """Another workload, over mutual TLS; for HTTP, ALPN tells whether it speaks HTTP/2."""
    cluster = plain_cluster(upstream.label, upstream.connect)
    cluster["transport_socket"] = client_socket(spec, upstream)
    cluster["upstream_connection_options"] = {"tcp_keepalive": {"keepalive_time": 60, "keepalive_interval": 20}}
    if upstream.protocol is not Protocol.TCP:
        age: dict[str, JSON] = {
            "idle_timeout": _IDLE_TIMEOUT,
            "max_connection_duration": seconds(spec.max_connection_age),
        }
        by_alpn: dict[str, JSON] = {"http2_protocol_options": {"allow_connect": True, **_KEEPALIVE}}
        cluster |= _http({"common_http_protocol_options": age, "auto_config": by_alpn})
    return cluster


def agent_cluster(socket: UnixPath) -> dict[str, JSON]:
    """The node agent, which serves the secrets over its Unix socket."""
    options: dict[str, JSON] = {"explicit_http_config": {"http2_protocol_options": _KEEPALIVE}}
    return plain_cluster(SDS_CLUSTER, socket) | _http(options)


def plain_cluster(name: str, endpoint: Endpoint) -> dict[str, JSON]:
    """A cluster of one endpoint without TLS; callers add what protocols need."""
    by_name = isinstance(endpoint, HostPort) and not endpoint.is_address
    return {
        "name": name,
        "type": "STRICT_DNS" if by_name else "STATIC",
        "connect_timeout": _CONNECT_TIMEOUT,
        "circuit_breakers": {"thresholds": [_limits()]},
        "load_assignment": {
            "cluster_name": name,
            "endpoints": [{"lb_endpoints": [{"endpoint": {"address": dial_address(endpoint)}}]}],
        },
    }


def _limits() -> dict[str, JSON]:
    kinds = ("max_connections", "max_pending_requests", "max_requests")
    return {"priority": "DEFAULT", **dict.fromkeys(kinds, MAX_CONNECTIONS)}


def _http(options: dict[str, JSON]) -> dict[str, JSON]:
    return {"typed_extension_protocol_options": {_HTTP_OPTIONS: typed(_HTTP_OPTIONS, options)}}
