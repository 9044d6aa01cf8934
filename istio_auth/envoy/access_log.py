"""One line of JSON on stdout for each request, each TCP connection, and each connection that was refused.

A line has the peer's SPIFFE ID and serial number, and the reason of a refusal in Envoy's words. The query of a path is
left out: it may hold secrets.
"""

from __future__ import annotations

from istio_auth.bundle import JSON
from istio_auth.envoy.extension import extension
from istio_auth.envoy.spec import Inbound, Upstream

_STDOUT = "envoy.access_loggers.stdout"
_MESSAGE = "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog"

_CONNECTION: dict[str, str] = {
    "time": "%START_TIME%",
    "connection": "%CONNECTION_ID%",
    "source": "%DOWNSTREAM_REMOTE_ADDRESS%",
    "flags": "%RESPONSE_FLAGS%",
    "details": "%CONNECTION_TERMINATION_DETAILS%",
    "duration_ms": "%DURATION%",
    "bytes_received": "%BYTES_RECEIVED%",
    "bytes_sent": "%BYTES_SENT%",
}
_REQUEST: dict[str, str] = {
    "method": "%REQ(:METHOD)%",
    "path": "%PATH(NQ)%",
    "protocol": "%PROTOCOL%",
    "status": "%RESPONSE_CODE%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "request_id": "%REQ(X-REQUEST-ID)%",
}
_CALLER: dict[str, str] = {
    "peer": "%DOWNSTREAM_PEER_URI_SAN%",
    "peer_serial": "%DOWNSTREAM_PEER_SERIAL%",
    "peer_not_after": "%DOWNSTREAM_PEER_CERT_V_END%",
    "tls": "%DOWNSTREAM_TLS_VERSION%",
    "tls_group": "%DOWNSTREAM_TLS_GROUP%",
}
_CLAIMS: dict[str, str] = {  # of a caller that was refused
    "claimed_peer": "%DOWNSTREAM_PEER_URI_SAN%",
    "claimed_serial": "%DOWNSTREAM_PEER_SERIAL%",
    "tls": "%DOWNSTREAM_TLS_VERSION%",
}
_SERVER: dict[str, str] = {
    "peer": "%UPSTREAM_PEER_URI_SAN%",
    "peer_not_before": "%UPSTREAM_PEER_CERT_V_START%",
    "peer_not_after": "%UPSTREAM_PEER_CERT_V_END%",
    "tls": "%UPSTREAM_TLS_VERSION%",
    "tls_group": "%UPSTREAM_TLS_GROUP%",
    "upstream": "%UPSTREAM_REMOTE_ADDRESS%",
    "failure": "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
}


def inbound_log(inbound: Inbound) -> list[JSON]:
    """Logs what was let in: HTTP requests, or TCP connections."""
    return [_logger({"listener": inbound.label, **_of(inbound.protocol.is_http), **_CALLER})]


def outbound_log(upstream: Upstream) -> list[JSON]:
    """Logs what the workload sent to an upstream, and why that failed if it did."""
    return [_logger({"listener": upstream.label, **_of(upstream.protocol.is_http), **_SERVER})]


def refusal_log(inbound: Inbound) -> list[JSON]:
    """Logs the connections that were refused: no filter chain matched, or the handshake failed."""
    line = {"listener": inbound.label, **_CONNECTION, **_CLAIMS, "failure": "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%"}
    handshake_failed: JSON = {
        "extension_filter": extension(
            "envoy.access_loggers.extension_filters.cel",
            "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
            {"expression": "connection.transport_failure_reason != ''"},
        )
    }
    not_for_anybody: JSON = {"response_flag_filter": {"flags": ["NR"]}}
    return [{**_logger(line), "filter": {"or_filter": {"filters": [handshake_failed, not_for_anybody]}}}]


def _of(is_http: bool) -> dict[str, str]:
    return {**_CONNECTION, **_REQUEST} if is_http else _CONNECTION


def _logger(line: dict[str, str]) -> dict[str, JSON]:
    fields: dict[str, JSON] = dict(line)
    return extension(_STDOUT, _MESSAGE, {"log_format": {"json_format": fields, "omit_empty_values": True}})
