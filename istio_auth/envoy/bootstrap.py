"""The file that a sidecar's Envoy starts with (envoy.config.bootstrap.v3.Bootstrap), as plain JSON.

It holds no secret: keys and certificates come from the node agent, or from mounted files, while Envoy runs.
"""

from __future__ import annotations

from istio_auth.bundle import JSON
from istio_auth.envoy.clusters import MAX_CONNECTIONS, agent_cluster, application_cluster, upstream_cluster
from istio_auth.envoy.endpoint import listen_address
from istio_auth.envoy.extension import extension
from istio_auth.envoy.key_sets import key_clusters
from istio_auth.envoy.listeners import inbound_listener, outbound_listener
from istio_auth.envoy.spec import SidecarSpec


def sidecar_bootstrap(spec: SidecarSpec) -> dict[str, JSON]:
    """The bootstrap of a workload's sidecar, the same for the same spec."""
    listeners = [inbound_listener(spec, inbound) for inbound in spec.inbound]
    listeners += [outbound_listener(upstream) for upstream in spec.upstreams]
    clusters = [agent_cluster(spec.agent_socket)] if spec.agent_socket else []
    clusters += [application_cluster(inbound) for inbound in spec.inbound]
    clusters += [upstream_cluster(spec, upstream) for upstream in spec.upstreams]
    clusters += key_clusters(spec.tokens) if spec.tokens else []
    return {
        "node": {"id": str(spec.id), "cluster": spec.id.trust_domain.name},
        **({"admin": {"address": listen_address(spec.admin)}} if spec.admin else {}),
        "static_resources": {"listeners": [*listeners], "clusters": [*clusters]},
        "stats_config": {"stats_tags": _stats_tags(spec)},
        "overload_manager": {"resource_monitors": [_connection_limit()]},
    }


def _stats_tags(spec: SidecarSpec) -> list[JSON]:
    return [
        {"tag_name": "spiffe_id", "fixed_value": str(spec.id)},
        {"tag_name": "listener", "regex": r"^(?:listener|http|tcp)\.(((?:in|out)bound_[a-z0-9_-]+)\.)"},
    ]


def _connection_limit() -> JSON:
    return extension(
        "envoy.resource_monitors.global_downstream_max_connections",
        "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
        {"max_active_downstream_connections": MAX_CONNECTIONS},
    )
