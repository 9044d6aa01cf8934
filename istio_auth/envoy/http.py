"""HTTP as a sidecar treats it: requests pass unchanged, except that nobody but the sidecar says who the caller is.

An inbound sidecar replaces `x-forwarded-client-cert` by what the handshake proved (SANITIZE_SET), and removes it if
nothing was proven. Frameworks that map headers to variables make no difference between '_' and '-', so spellings with
'_' are removed too.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from istio_auth.bundle import JSON
from istio_auth.envoy.access_log import inbound_log, outbound_log
from istio_auth.envoy.extension import extension, seconds
from istio_auth.envoy.jwt_authn import token_filters
from istio_auth.envoy.spec import Inbound, SidecarSpec, Upstream
from istio_auth.envoy.token_checks import refusal_reply

_FILTERS = "envoy.extensions.filters.http"
_MANAGER = "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager"
_HEADER_TIMEOUT = "10s"  # from the first byte of a request to the end of its headers
_IDLE_TIMEOUT = "3600s"  # gRPC streams may be silent for long
_PROOF_WORDS = ("x", "forwarded", "client", "cert")
# Failures after which the upstream can not have seen the request: safe to repeat, whatever the method.
_RETRY_ON = "connect-failure,refused-stream,reset-before-request"


def inbound_http(spec: SidecarSpec, inbound: Inbound, cluster: str) -> dict[str, JSON]:
    """The network filter that passes requests to the application and tells it who sent them."""
    return _manager(
        inbound.label,
        {
            "forward_client_cert_details": "SANITIZE_SET",
            "set_current_client_cert_details": {"subject": True, "uri": True, "dns": True},
            "use_remote_address": True,
            "common_http_protocol_options": {
                "idle_timeout": _IDLE_TIMEOUT,
                "max_connection_duration": seconds(spec.max_connection_age),
            },
            # HTTP/1.1 can not announce a close: so the connection is closed with a response, and not between two.
            "http1_safe_max_connection_duration": True,
            "route_config": _routes(inbound.label, {"cluster": cluster, "timeout": "0s"}),
            "access_log": inbound_log(inbound),
            **({"local_reply_config": refusal_reply()} if spec.tokens else {}),
        },
        token_filters(spec.tokens, required=inbound.require_token) if spec.tokens else [],
    )


def outbound_http(upstream: Upstream) -> dict[str, JSON]:
    """The network filter that takes requests of the application to an upstream."""
    retry: dict[str, JSON] = {"retry_on": _RETRY_ON, "num_retries": 2}
    return _manager(
        upstream.label,
        {
            "forward_client_cert_details": "SANITIZE",
            "common_http_protocol_options": {"idle_timeout": _IDLE_TIMEOUT},
            "route_config": _routes(
                upstream.label, {"cluster": upstream.label, "timeout": "0s", "retry_policy": retry}
            ),
            "access_log": outbound_log(upstream),
        },
    )


def _manager(stat_prefix: str, fields: dict[str, JSON], filters: Sequence[JSON] = ()) -> dict[str, JSON]:
    router = extension("envoy.filters.http.router", f"{_FILTERS}.router.v3.Router", {"suppress_envoy_headers": True})
    return extension(
        "envoy.filters.network.http_connection_manager",
        _MANAGER,
        {
            "stat_prefix": stat_prefix,
            "codec_type": "AUTO",
            "normalize_path": True,  # RFC 3986 6.2.2, so that a policy and the application see one path
            "server_header_transformation": "PASS_THROUGH",
            "preserve_external_request_id": True,
            "request_headers_timeout": _HEADER_TIMEOUT,
            "stream_idle_timeout": _IDLE_TIMEOUT,
            "http2_protocol_options": {"allow_connect": True},
            "upgrade_configs": [{"upgrade_type": "websocket"}],
            "http_filters": [*filters, router],
            **fields,
        },
    )


def _routes(name: str, action: dict[str, JSON]) -> dict[str, JSON]:
    return {
        "name": name,
        "request_headers_to_remove": _misspelled_proofs(),
        "virtual_hosts": [
            {"name": name, "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": action}]},
        ],
    }


def _misspelled_proofs() -> list[JSON]:
    x, forwarded, client, cert = _PROOF_WORDS
    spellings = [f"{x}{a}{forwarded}{b}{client}{c}{cert}" for a, b, c in itertools.product("-_", repeat=3)]
    return [name for name in spellings if "_" in name]
