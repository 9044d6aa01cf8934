"""Where Envoy gets the keys of a token's issuer: from its own configuration, or from the issuer by HTTP.

Over https the server must have a certificate for the host of the URI, from an authority in `TokenRules.ca_file`.
Redirects are not followed. The first fetch begins when Envoy starts, and delays nothing but a request whose token needs
these keys. Keys are fetched again at an interval; if that fails, the last good ones stay. Without keys no token is
accepted.
"""

from __future__ import annotations

import json
from datetime import timedelta

from istio_auth.bundle import JSON
from istio_auth.envoy.clusters import plain_cluster
from istio_auth.envoy.endpoint import HostPort
from istio_auth.envoy.extension import extension, seconds
from istio_auth.envoy.token_rules import TokenRules
from istio_auth.jwks import KeySet
from istio_auth.policy.jwt_rule import JWTRule, parse_key_uri

_TLS = "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext"
_TIMEOUT = timedelta(seconds=5)
_RETRY_AFTER = timedelta(seconds=5)
_PORTS = {"http": 80, "https": 443}
# Envoy refuses an empty set. The x of this point is the SHA-256 of "nobody's key 0": nobody knows the private half.
_NOBODYS_KEY: dict[str, JSON] = {
    "kty": "EC",
    "crv": "P-256",
    "kid": "nobody",
    "alg": "ES256",
    "x": "8AT8exLx3z28FrzboLV135iF0Xt4-fYGnAzPYCG-3Eo",
    "y": "TJpTrLn9cAY2t7XxvfasBgpZKB6JlH5GnNEg2GOV7qU",
}


def key_source(rule: JWTRule, rules: TokenRules) -> dict[str, JSON]:
    """The fields of a provider that say where its keys are."""
    if not rule.jwks_uri:
        return {"local_jwks": {"inline_string": usable_keys(rule.jwks)}}
    fetched: dict[str, JSON] = {
        "uri": rule.jwks_uri,
        "cluster": _cluster_name(rule.jwks_uri),
        "timeout": seconds(rule.timeout or _TIMEOUT),
    }
    background: dict[str, JSON] = {"fast_listener": True, "failed_refetch_duration": seconds(_RETRY_AFTER)}
    refresh = seconds(rules.refresh)
    return {"remote_jwks": {"http_uri": fetched, "cache_duration": refresh, "async_fetch": background}}


def key_clusters(rules: TokenRules) -> list[dict[str, JSON]]:
    """The servers from which key sets are fetched, each once."""
    clusters = {_cluster_name(uri): _cluster(uri, rules.ca_file) for uri in rules.key_uris}
    return [clusters[name] for name in sorted(clusters)]


def usable_keys(key_set: str) -> str:
    """The key set with only the entries that may be used: Envoy would take short keys and shared secrets too."""
    entries: list[JSON] = json.loads(key_set)["keys"] if key_set else []
    usable = [entry for entry in entries if KeySet.from_document({"keys": [entry]}).keys]
    return json.dumps({"keys": usable or [_NOBODYS_KEY]})


def _cluster(uri: str, ca_file: str) -> dict[str, JSON]:
    server = _server(uri)
    cluster = plain_cluster(_cluster_name(uri), server)
    if not server.is_address:
        # If the name has several addresses, the first that answers is used (RFC 8305).
        cluster |= {"type": "LOGICAL_DNS", "dns_lookup_family": "ALL", "wait_for_warm_on_init": False}
    if uri.startswith("https:"):
        cluster["transport_socket"] = extension("envoy.transport_sockets.tls", _TLS, _verified(server, ca_file))
    return cluster


def _verified(server: HostPort, ca_file: str) -> dict[str, JSON]:
    kind = "IP_ADDRESS" if server.is_address else "DNS"
    named: JSON = {"san_type": kind, "matcher": {"exact": server.host}}
    validation: JSON = {"trusted_ca": {"filename": ca_file}, "match_typed_subject_alt_names": [named]}
    versions: JSON = {"tls_minimum_protocol_version": "TLSv1_2", "tls_maximum_protocol_version": "TLSv1_3"}
    return {
        "common_tls_context": {"tls_params": versions, "validation_context": validation},
        **({} if server.is_address else {"sni": server.host}),
    }


def _cluster_name(uri: str) -> str:
    server, scheme = _server(uri), parse_key_uri(uri, "jwksUri").scheme
    return f"keys_{scheme}_{server.host}_{server.port}"


def _server(uri: str) -> HostPort:
    parts = parse_key_uri(uri, "jwksUri")
    return HostPort(parts.hostname or "", parts.port or _PORTS[parts.scheme])
