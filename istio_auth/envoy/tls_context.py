"""TLS contexts of a sidecar, as Istio configures them: certificates and roots by SDS, every peer by its SPIFFE ID.

The secrets come from the agent, or from mounted files (`istio_auth.envoy.mounted_secrets`); all else is the same.

Both sides speak TLS 1.2 or 1.3 and prefer the hybrid key exchange X25519MLKEM768. No session is ever resumed: otherwise
what a handshake verified would outlive the certificates and the allow list. Envoy's type-safe matcher compares URI
names: a workload's SPIFFE ID exactly, a trust domain's as a prefix. A list that allows nobody becomes a matcher that
matches nothing, because for Envoy an empty list means "no check". The roots are those of the workload's own trust
domain. If a peer may be of another one, they are those of every trusted domain, each for its own names (Envoy's SPIFFE
validator), and never pooled.
"""

from __future__ import annotations

from collections.abc import Sequence

from istio_auth.bundle import JSON
from istio_auth.envoy.endpoint import HostPort
from istio_auth.envoy.extension import extension
from istio_auth.envoy.spec import Inbound, Protocol, SidecarSpec, Upstream
from istio_auth.spiffe_id import SpiffeID

SDS_CLUSTER = "sds-grpc"
_OWN_ROOTS = "ROOTCA"
_ALL_ROOTS = "ALL"
_TLS = "envoy.extensions.transport_sockets.tls.v3"
_SOCKET = "envoy.transport_sockets.tls"

# What a peer of the mesh offers, so that a PERMISSIVE listener can tell its TLS from the application's own TLS.
MESH_ALPN = ("istio-http/1.0", "istio-http/1.1", "istio-h2", "istio-peer-exchange", "istio")
_SERVER_ALPN_HTTP = ("h2", "http/1.1")
_SERVER_ALPN_TCP = ("istio-peer-exchange", "h2", "http/1.1")
_CLIENT_ALPN_HTTP = ("istio-h2", "istio", "h2", "http/1.1")
_CLIENT_ALPN_TCP = ("istio-peer-exchange", "istio")

_CIPHER_SUITES = (  # of TLS 1.2; those of 1.3 are fixed
    "ECDHE-ECDSA-AES256-GCM-SHA384",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-ECDSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES128-GCM-SHA256",
    "AES256-GCM-SHA384",
    "AES128-GCM-SHA256",
)
_KEY_EXCHANGE = ("X25519MLKEM768", "X25519", "P-256")
_NOTHING = r"[^\s\S]"  # one character that is neither space nor anything else: there is none


def server_socket(spec: SidecarSpec, inbound: Inbound) -> dict[str, JSON]:
    """The transport socket of an inbound listener: callers must present a certificate with an allowed SPIFFE ID."""
    alpn = _SERVER_ALPN_HTTP if inbound.protocol.is_http else _SERVER_ALPN_TCP
    return extension(
        _SOCKET,
        f"{_TLS}.DownstreamTlsContext",
        {
            "common_tls_context": _common(spec, inbound.allow, alpn),
            "require_client_certificate": True,
            "disable_stateless_session_resumption": True,
            "disable_stateful_session_resumption": True,
        },
    )


def client_socket(spec: SidecarSpec, upstream: Upstream) -> dict[str, JSON]:
    """The transport socket towards an upstream, which must have one of the expected SPIFFE IDs."""
    alpn = _CLIENT_ALPN_TCP if upstream.protocol is Protocol.TCP else _CLIENT_ALPN_HTTP
    return extension(
        _SOCKET,
        f"{_TLS}.UpstreamTlsContext",
        {
            "common_tls_context": _common(spec, upstream.expect, alpn),
            "sni": _server_name(upstream),
            "max_session_keys": 0,
        },
    )


def peer_matchers(peers: Sequence[SpiffeID]) -> list[JSON]:
    """Matchers that accept these peers (for a trust domain, all its workloads) and nobody else; nobody if empty."""
    return [_matcher(peer) for peer in peers] or [_uri({"safe_regex": {"regex": _NOTHING}})]


def agent_source() -> dict[str, JSON]:
    """The configuration source of an agent's secrets. Envoy waits for them without limit; a listener stays closed."""
    grpc: dict[str, JSON] = {
        "envoy_grpc": {
            "cluster_name": SDS_CLUSTER,
            # An agent that comes back after a restart is found within seconds.
            "retry_policy": {"retry_back_off": {"base_interval": "0.250s", "max_interval": "5s"}},
        }
    }
    return {
        "resource_api_version": "V3",
        "initial_fetch_timeout": "0s",
        "api_config_source": {
            "api_type": "GRPC",
            "transport_api_version": "V3",
            "set_node_on_first_message_only": True,
            "grpc_services": [grpc],
        },
    }


def _common(spec: SidecarSpec, peers: Sequence[SpiffeID], alpn: Sequence[str]) -> dict[str, JSON]:
    return {
        "tls_params": {
            "tls_minimum_protocol_version": "TLSv1_2",
            "tls_maximum_protocol_version": "TLSv1_3",
            "cipher_suites": list(_CIPHER_SUITES),
            "ecdh_curves": list(_KEY_EXCHANGE),
        },
        "alpn_protocols": list(alpn),
        "tls_certificate_sds_secret_configs": [_secret(spec, spec.certificate)],
        "combined_validation_context": {
            "default_validation_context": {"match_typed_subject_alt_names": peer_matchers(peers)},
            "validation_context_sds_secret_config": _secret(spec, _roots(spec, peers)),
        },
    }


def _secret(spec: SidecarSpec, name: str) -> JSON:
    return {"name": name, "sds_config": spec.mounted.source(name) if spec.mounted else agent_source()}


def _roots(spec: SidecarSpec, peers: Sequence[SpiffeID]) -> str:
    return _OWN_ROOTS if all(peer.trust_domain == spec.id.trust_domain for peer in peers) else _ALL_ROOTS


def _matcher(peer: SpiffeID) -> dict[str, JSON]:
    return _uri({"exact": str(peer)} if peer.path else {"prefix": f"{peer}/"})


def _uri(matcher: dict[str, JSON]) -> dict[str, JSON]:
    return {"san_type": "URI", "matcher": matcher}


def _server_name(upstream: Upstream) -> str:
    port = upstream.connect.port if isinstance(upstream.connect, HostPort) else 0
    return f"outbound_.{port}_._.{upstream.name}"
