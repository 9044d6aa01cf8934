"""Request authentication in a bootstrap: the parts on which security stands. Envoy does them in `tests/interop`."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from istio_auth.bundle import JSON
from istio_auth.envoy.bootstrap import sidecar_bootstrap
from istio_auth.envoy.jwt_authn import token_filters
from istio_auth.envoy.key_sets import key_clusters, usable_keys
from istio_auth.envoy.spec import Mode, Protocol, SidecarSpec
from istio_auth.envoy.token_rules import TokenRules
from istio_auth.errors import ConfigurationError
from istio_auth.policy.jwt_rule import ClaimToHeader, JWTHeader, JWTRule
from tests.fakes.token_issuer import TokenIssuer
from tests.unit.envoy.test_bootstrap import found
from tests.unit.envoy.test_spec import INBOUND, SPEC

A, B, C = (JWTRule(issuer=f"https://{name}.test", jwks_uri=f"https://{name}.test/keys") for name in "abc")
P0: JSON = {"provider_name": "origins-0"}
P1: JSON = {"provider_name": "origins-1"}
MISSING: JSON = {"allow_missing": {}}
CA = "/etc/ssl/ca.pem"


def filters(*rules: JWTRule, required: bool = False) -> JSON:
    return token_filters(TokenRules(rules, CA), required=required)


def any_of(*requirements: JSON) -> JSON:
    return {"requires_any": {"requirements": list(requirements)}}


@pytest.mark.parametrize(
    ("rules", "required", "expected"),
    [
        ((A,), False, any_of(P0, MISSING)),
        ((A,), True, P0),
        ((A, B), True, any_of(P0, P1)),
        (
            (A, B),
            False,
            any_of(P0, P1, {"requires_all": {"requirements": [any_of(P0, MISSING), any_of(P1, MISSING)]}}),
        ),
    ],
)
def test_what_is_required_is_what_istio_makes_of_it(rules: tuple[JWTRule, ...], required: bool, expected: JSON) -> None:
    asked: JSON = [{"match": {"prefix": "/"}, "requires": expected}]
    assert asked in list(found(filters(*rules, required=required), "rules"))


def test_providers_are_numbered_in_the_order_of_their_issuers() -> None:
    (providers,) = found(filters(C, A, B), "providers")
    assert isinstance(providers, dict)
    issuers = {name: list(found(provider, "issuer")) for name, provider in providers.items()}
    assert issuers == {"origins-0": [A.issuer], "origins-1": [B.issuer], "origins-2": [C.issuer]}


def test_a_token_without_end_is_never_taken_and_preflights_are_not_asked_for_one() -> None:
    assert list(found(filters(A, B), "require_expiration")) == [True, True]
    assert list(found(filters(A, B), "bypass_cors_preflight")) == [True]


def test_a_rule_is_told_to_envoy_in_full() -> None:
    rule = JWTRule(
        issuer="https://a.test",
        audiences=("web",),
        jwks_uri="https://a.test/keys",
        from_headers=(JWTHeader("X-Token", "Token "),),
        from_params=("token",),
        from_cookies=("session",),
        forward_original_token=True,
        output_payload_to_header="x-payload",
        output_claim_to_headers=(ClaimToHeader("x-team", "org.team"),),
        space_delimited_claims=("roles",),
        timeout=timedelta(seconds=2),
    )
    (providers,) = found(token_filters(TokenRules((rule,), CA, timedelta(minutes=1)), required=False), "providers")
    assert providers == {
        "origins-0": {
            "issuer": "https://a.test",
            "audiences": ["web"],
            "require_expiration": True,
            "clock_skew_seconds": 60,
            "forward": True,
            "from_headers": [{"name": "X-Token", "value_prefix": "Token "}],
            "from_params": ["token"],
            "from_cookies": ["session"],
            "forward_payload_header": "x-payload",
            "claim_to_headers": [{"header_name": "x-team", "claim_name": "org.team"}],
            "header_in_metadata": "header",
            "payload_in_metadata": "payload",
            "normalize_payload_in_metadata": {"space_delimited_claims": ["permission", "roles", "scope"]},
            "remote_jwks": {
                "http_uri": {"uri": "https://a.test/keys", "cluster": "keys_https_a.test_443", "timeout": "2.000s"},
                "cache_duration": "60.000s",
                "async_fetch": {"fast_listener": True, "failed_refetch_duration": "5.000s"},
            },
        }
    }


def test_the_server_of_keys_is_verified_by_its_name() -> None:
    address = JWTRule(issuer="https://d.test", jwks_uri="https://[::1]:8443/keys")
    plain = JWTRule(issuer="https://e.test", jwks_uri="http://e.test/keys")
    again = replace(A, issuer="https://f.test")
    clusters = {str(one["name"]): one for one in key_clusters(TokenRules((A, address, plain, again), CA))}
    assert list(clusters) == ["keys_http_e.test_80", "keys_https_::1_8443", "keys_https_a.test_443"]
    assert "transport_socket" not in clusters["keys_http_e.test_80"]
    named = clusters["keys_https_a.test_443"]
    assert list(found(named, "match_typed_subject_alt_names")) == [
        [{"san_type": "DNS", "matcher": {"exact": "a.test"}}]
    ]
    assert list(found(named, "sni")) == ["a.test"]
    by_address = clusters["keys_https_::1_8443"]
    assert list(found(by_address, "match_typed_subject_alt_names")) == [
        [{"san_type": "IP_ADDRESS", "matcher": {"exact": "::1"}}]
    ]
    assert list(found([named, by_address], "filename")) == [CA, CA]


def test_only_keys_that_our_own_engine_uses_are_given_to_envoy() -> None:
    good = TokenIssuer(place=7).jwk()
    entries: list[JSON] = [{"kty": "oct", "k": "c2VjcmV0"}, good, {"kty": "new"}, {**good, "use": "enc"}, 7]
    assert json.loads(usable_keys(json.dumps({"keys": entries}))) == {"keys": [good]}


def test_an_issuer_whose_keys_could_not_be_had_has_a_key_that_nobody_has() -> None:
    (key,) = json.loads(usable_keys(""))["keys"]
    x, y = (int.from_bytes(base64.urlsafe_b64decode(key[name] + "="), "big") for name in "xy")
    assert x.to_bytes(32, "big") == hashlib.sha256(b"nobody's key 0").digest()
    assert ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    inline = list(found(filters(JWTRule(issuer="https://a.test")), "inline_string"))
    assert inline == [usable_keys("")]


@pytest.mark.parametrize(
    ("rules", "ca_file", "refresh", "told"),
    [
        ((), CA, 60, "no rule"),
        ((A,), "", 60, "which authorities"),
        ((A,), CA, 0.5, "once a second"),
        ((replace(A, output_payload_to_header="authorization"),), CA, 60, "is where a token is looked for"),
        (
            (replace(A, from_headers=(JWTHeader("X-Token"),)), replace(B, output_payload_to_header="x_token")),
            CA,
            60,
            "x-token is where a token is looked for",
        ),
        ((replace(A, from_cookies=("a",), output_payload_to_header="cookie"),), CA, 60, "cookie is where"),
    ],
)
def test_rules_that_do_not_fit_together_are_refused(
    rules: tuple[JWTRule, ...], ca_file: str, refresh: float, told: str
) -> None:
    with pytest.raises(ConfigurationError, match=told):
        TokenRules(rules, ca_file, timedelta(seconds=refresh))
    TokenRules((A, B), CA, timedelta(seconds=60))


def guarded(mode: Mode, protocol: Protocol = Protocol.HTTP) -> SidecarSpec:
    return replace(
        SPEC, inbound=(replace(INBOUND, mode=mode, protocol=protocol, allow=()),), tokens=TokenRules((A,), CA)
    )


@pytest.mark.parametrize("mode", Mode)
def test_no_way_in_leads_past_the_tokens(mode: Mode) -> None:
    bootstrap = sidecar_bootstrap(replace(guarded(mode), upstreams=()))
    ways = list(found(bootstrap, "http_filters"))
    assert len(ways) == (2 if mode is Mode.PERMISSIVE else 1)
    for way in ways:
        assert [name for name in found(way, "name") if str(name).startswith("envoy.filters.http")] == [
            "envoy.filters.http.rbac",
            "envoy.filters.http.jwt_authn",
            "envoy.filters.http.rbac",
            "envoy.filters.http.router",
        ]


def test_tokens_are_not_looked_for_on_the_way_out_or_where_nobody_asked() -> None:
    assert "jwt_authn" not in json.dumps(sidecar_bootstrap(SPEC))
    assert json.dumps(sidecar_bootstrap(guarded(Mode.STRICT))).count('"name": "envoy.filters.http.jwt_authn"') == 1


def test_a_token_is_required_of_http_with_rules_only() -> None:
    with pytest.raises(ConfigurationError, match="TCP has no place"):
        replace(INBOUND, protocol=Protocol.TCP, require_token=True)
    with pytest.raises(ConfigurationError, match="say whose"):
        replace(SPEC, inbound=(replace(INBOUND, protocol=Protocol.HTTP, require_token=True),))
    with pytest.raises(ConfigurationError, match="no inbound listener takes any"):
        guarded(Mode.STRICT, Protocol.TCP)
    tree = sidecar_bootstrap(
        replace(guarded(Mode.STRICT), inbound=(replace(INBOUND, protocol=Protocol.HTTP, require_token=True),))
    )
    assert "allow_missing" not in json.dumps(tree)


def test_cookies_with_tokens_are_taken_out_unless_some_rule_forwards_them() -> None:
    own, forwarded = replace(A, from_cookies=("a", "b")), replace(B, from_cookies=("b",), forward_original_token=True)
    (source,) = found(filters(own, forwarded), "inline_string")
    assert 'local taken = {["a"] = true}\n' in str(source)
    assert list(found(filters(forwarded), "inline_string")) == list(found(filters(A), "inline_string")) == []
