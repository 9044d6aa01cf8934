"""The parts of a bootstrap on which security stands, by content; that Envoy takes them is tested with Envoy."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from istio_auth.bundle import JSON
from istio_auth.envoy.bootstrap import sidecar_bootstrap
from istio_auth.envoy.spec import Mode, Protocol, SidecarSpec
from istio_auth.spiffe_id import SpiffeID
from tests.unit.envoy.test_spec import INBOUND, PEER, SPEC, UPSTREAM

MESH = ["istio-http/1.0", "istio-http/1.1", "istio-h2", "istio-peer-exchange", "istio"]


def found(tree: JSON, name: str) -> Iterator[JSON]:
    """Every value under a name, at any depth."""
    if isinstance(tree, dict):
        for key, value in tree.items():
            if key == name:
                yield value
            yield from found(value, name)
    elif isinstance(tree, list):
        for value in tree:
            yield from found(value, name)


def guarded(mode: Mode = Mode.STRICT, protocol: Protocol = Protocol.HTTP, *allow: SpiffeID) -> SidecarSpec:
    return replace(SPEC, inbound=(replace(INBOUND, mode=mode, protocol=protocol, allow=allow),), upstreams=())


@pytest.mark.parametrize(
    ("mode", "protocol", "chains"),
    [
        (Mode.STRICT, Protocol.HTTP, [({"transport_protocol": "tls"}, True)]),
        (Mode.STRICT, Protocol.TCP, [({"transport_protocol": "tls"}, True)]),
        (
            Mode.PERMISSIVE,
            Protocol.HTTP,
            [
                ({"transport_protocol": "tls", "application_protocols": MESH}, True),
                ({"transport_protocol": "raw_buffer"}, False),
            ],
        ),
        (
            Mode.PERMISSIVE,
            Protocol.TCP,
            [
                ({"transport_protocol": "tls", "application_protocols": MESH}, True),
                ({"transport_protocol": "tls"}, False),
                ({"transport_protocol": "raw_buffer"}, False),
            ],
        ),
        (Mode.DISABLE, Protocol.HTTP, [({"transport_protocol": "raw_buffer"}, False)]),
        (Mode.DISABLE, Protocol.TCP, [({"transport_protocol": "raw_buffer"}, False)]),
    ],
)
def test_filter_chains_are_those_of_the_mode(
    mode: Mode, protocol: Protocol, chains: list[tuple[dict[str, JSON], bool]]
) -> None:
    (built,) = found(sidecar_bootstrap(guarded(mode, protocol)), "filter_chains")
    assert isinstance(built, list)
    assert [(one["filter_chain_match"], "transport_socket" in one) for one in built if isinstance(one, dict)] == chains


@pytest.mark.parametrize(("mode", "protocol"), list(itertools.product((Mode.STRICT, Mode.PERMISSIVE), Protocol)))
def test_no_list_of_callers_is_ever_empty_for_envoy(mode: Mode, protocol: Protocol) -> None:
    for spec in (guarded(mode, protocol), guarded(mode, protocol, PEER), SPEC):
        lists = list(found(sidecar_bootstrap(spec), "match_typed_subject_alt_names"))
        assert lists
        assert all(lists)


def test_callers_are_compared_as_whole_uris() -> None:
    (matchers,) = found(sidecar_bootstrap(guarded(Mode.STRICT, Protocol.HTTP, PEER)), "match_typed_subject_alt_names")
    assert matchers == [{"san_type": "URI", "matcher": {"exact": str(PEER)}}]


def test_a_trust_domain_matches_up_to_its_slash() -> None:
    spec = guarded(Mode.STRICT, Protocol.HTTP, PEER.trust_domain.id)
    (matchers,) = found(sidecar_bootstrap(spec), "match_typed_subject_alt_names")
    assert matchers == [{"san_type": "URI", "matcher": {"prefix": "spiffe://cluster.local/"}}]


def test_each_tls_context_demands_and_forgets() -> None:
    bootstrap = sidecar_bootstrap(SPEC)
    assert list(found(bootstrap, "require_client_certificate")) == [True]
    assert list(found(bootstrap, "disable_stateless_session_resumption")) == [True]
    assert list(found(bootstrap, "disable_stateful_session_resumption")) == [True]
    assert list(found(bootstrap, "max_session_keys")) == [0]
    assert list(found(bootstrap, "initial_fetch_timeout")) == ["0s"] * 4
    assert [
        curves for curves in found(bootstrap, "ecdh_curves") if curves != ["X25519MLKEM768", "X25519", "P-256"]
    ] == []


def test_alpn_is_that_of_the_mesh() -> None:
    http = sidecar_bootstrap(replace(SPEC, upstreams=(replace(UPSTREAM, protocol=Protocol.HTTP),)))
    tcp = sidecar_bootstrap(replace(SPEC, inbound=(replace(INBOUND, protocol=Protocol.TCP),)))
    assert list(found(http, "alpn_protocols")) == [["h2", "http/1.1"], ["istio-h2", "istio", "h2", "http/1.1"]]
    assert list(found(tcp, "alpn_protocols")) == [
        ["istio-peer-exchange", "h2", "http/1.1"],
        ["istio-peer-exchange", "istio"],
    ]
    assert list(found(tcp, "sni")) == ["outbound_.8443_._.db"]


def test_roots_of_other_trust_domains_are_asked_for_only_where_a_peer_has_one() -> None:
    partner = SpiffeID.parse("spiffe://partner.test/shop")
    for allow, roots in (((PEER,), "ROOTCA"), ((PEER, partner), "ALL")):
        spec = guarded(Mode.STRICT, Protocol.HTTP, *allow)
        (config,) = found(sidecar_bootstrap(spec), "validation_context_sds_secret_config")
        assert isinstance(config, dict)
        assert config["name"] == roots


def test_only_a_sidecar_says_who_the_caller_is() -> None:
    bootstrap = sidecar_bootstrap(replace(SPEC, upstreams=(replace(UPSTREAM, protocol=Protocol.HTTP),)))
    assert list(found(bootstrap, "forward_client_cert_details")) == ["SANITIZE_SET", "SANITIZE"]
    for removed in found(bootstrap, "request_headers_to_remove"):
        assert isinstance(removed, list)
        assert len(removed) == 7
        assert "x_forwarded_client_cert" in removed
        assert "x-forwarded-client-cert" not in removed


def test_administration_is_off_unless_asked_for() -> None:
    assert "admin" not in sidecar_bootstrap(replace(SPEC, admin=None))
    assert "admin" in sidecar_bootstrap(SPEC)


def test_a_bootstrap_is_plain_json_and_the_same_each_time() -> None:
    assert json.loads(json.dumps(sidecar_bootstrap(SPEC))) == sidecar_bootstrap(SPEC)
