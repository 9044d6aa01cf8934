"""Listeners of a sidecar: which connections are let in, and what is done with each.

Inbound filter chains are those of Istio's sidecars. The mode and the first bytes of a connection choose the chain:

    STRICT             TLS: mutual TLS; nothing else matches, so plaintext is closed
    PERMISSIVE, HTTP   TLS with a mesh ALPN: mutual TLS; plaintext: passed
    PERMISSIVE, TCP    the same, and TLS without a mesh ALPN is the application's own: passed untouched
    DISABLE            plaintext: passed; nothing is sniffed
"""

from __future__ import annotations

from istio_auth.bundle import JSON
from istio_auth.envoy.access_log import inbound_log, outbound_log, refusal_log
from istio_auth.envoy.clusters import application_name
from istio_auth.envoy.endpoint import listen_address
from istio_auth.envoy.extension import extension
from istio_auth.envoy.http import inbound_http, outbound_http
from istio_auth.envoy.spec import Inbound, Mode, Protocol, SidecarSpec, Upstream
from istio_auth.envoy.tcp import tcp_proxy
from istio_auth.envoy.tls_context import MESH_ALPN, server_socket

_HANDSHAKE_TIMEOUT = "10s"
_SNIFF_TIMEOUT = "5s"


def inbound_listener(spec: SidecarSpec, inbound: Inbound) -> dict[str, JSON]:
    """The listener on which others reach the workload."""
    return {
        "name": inbound.label,
        "stat_prefix": inbound.label,
        "traffic_direction": "INBOUND",
        "address": listen_address(inbound.listen),
        "listener_filters": [] if inbound.mode is Mode.DISABLE else [_tls_inspector()],
        "listener_filters_timeout": _SNIFF_TIMEOUT,
        # If the protocol has the server speak first, the client is silent: take it for plaintext if that is allowed.
        "continue_on_listener_filters_timeout": inbound.mode is Mode.PERMISSIVE and inbound.protocol is Protocol.TCP,
        "filter_chains": _inbound_chains(spec, inbound),
        "access_log": refusal_log(inbound),
    }


def outbound_listener(upstream: Upstream) -> dict[str, JSON]:
    """The listener at which the application finds an upstream, in plaintext."""
    if upstream.protocol.is_http:
        network_filter = outbound_http(upstream)
    else:
        network_filter = tcp_proxy(upstream.label, upstream.label, outbound_log(upstream))
    return {
        "name": upstream.label,
        "stat_prefix": upstream.label,
        "traffic_direction": "OUTBOUND",
        "address": listen_address(upstream.listen),
        "filter_chains": [{"filters": [network_filter]}],
    }


def _inbound_chains(spec: SidecarSpec, inbound: Inbound) -> list[JSON]:
    filters: list[JSON] = [_inbound_filter(spec, inbound)]
    mutual: dict[str, JSON] = {
        "filters": filters,
        "transport_socket": server_socket(spec, inbound),
        "transport_socket_connect_timeout": _HANDSHAKE_TIMEOUT,
    }
    plaintext = _chain("plaintext", {"transport_protocol": "raw_buffer"}, {"filters": filters})
    if inbound.mode is Mode.DISABLE:
        return [plaintext]
    if inbound.mode is Mode.STRICT:
        return [_chain("mutual_tls", {"transport_protocol": "tls"}, mutual)]
    mesh: dict[str, JSON] = {"transport_protocol": "tls", "application_protocols": list(MESH_ALPN)}
    chains = [_chain("mutual_tls", mesh, mutual)]
    if inbound.protocol is Protocol.TCP:
        chains.append(_chain("foreign_tls", {"transport_protocol": "tls"}, {"filters": filters}))
    return [*chains, plaintext]


def _chain(name: str, match: dict[str, JSON], treatment: dict[str, JSON]) -> JSON:
    return {"name": name, "filter_chain_match": match, **treatment}


def _inbound_filter(spec: SidecarSpec, inbound: Inbound) -> dict[str, JSON]:
    cluster = application_name(inbound)
    if inbound.protocol.is_http:
        return inbound_http(spec, inbound, cluster)
    return tcp_proxy(inbound.label, cluster, inbound_log(inbound))


def _tls_inspector() -> JSON:
    return extension(
        "envoy.filters.listener.tls_inspector", "envoy.extensions.filters.listener.tls_inspector.v3.TlsInspector"
    )
