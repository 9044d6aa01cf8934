"""Envoy's jwt_authn filter, configured as Istio does for RequestAuthentication, except that a token must have `exp`.

A request without a token passes, without an end user. A request is refused with 401 if its token is not valid, and
with 403 if the token is for another audience. With several issuers one valid token is enough. If a token is required,
a request without one is refused here with 401, because there is no AuthorizationPolicy that could demand it. Later
filters find the payload of a valid token in this filter's metadata, as `payload`. CORS preflights pass: they never
carry a token.

`exp` is required, unlike in Istio, because a token that never ends can be replayed for ever.
"""

from __future__ import annotations

from istio_auth.bundle import JSON
from istio_auth.envoy.cookie_remover import token_cookie_remover
from istio_auth.envoy.extension import extension
from istio_auth.envoy.key_sets import key_source
from istio_auth.envoy.token_checks import (
    HEADER_METADATA,
    claim_header_remover,
    one_token_filter,
    token_header_filter,
)
from istio_auth.envoy.token_rules import TokenRules
from istio_auth.policy.jwt_rule import JWTRule

_MESSAGE = "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication"
_CLOCK_SKEW = 60  # seconds
_WORDS = ("permission", "scope")  # claims that are lists of words with spaces between (RFC 8693 4.2)
_ALLOW_MISSING: dict[str, JSON] = {"allow_missing": {}}


def token_filters(rules: TokenRules, *, required: bool) -> list[JSON]:
    """The HTTP filters of a listener, in their order.

    Args:
        rules: whose tokens are taken.
        required: whether a request without a token is refused.
    """
    providers = {f"origins-{place}": _provider(rule, rules) for place, rule in enumerate(rules.rules)}
    requirement = _requirement(list(providers), required=required)
    jwt_authn = extension(
        "envoy.filters.http.jwt_authn",
        _MESSAGE,
        {
            "providers": {**providers},
            "rules": [{"match": {"prefix": "/"}, "requires": requirement}],
            "bypass_cors_preflight": True,
        },
    )
    return [
        *claim_header_remover(rules),
        one_token_filter(rules),
        jwt_authn,
        token_header_filter(),
        *token_cookie_remover(rules),
    ]


def _provider(rule: JWTRule, rules: TokenRules) -> dict[str, JSON]:
    places = rule.places
    fields: dict[str, JSON] = {
        "issuer": rule.issuer,
        "audiences": [*rule.audiences],
        "require_expiration": True,
        "clock_skew_seconds": _CLOCK_SKEW,
        "forward": rule.forward_original_token,
        "from_headers": [{"name": header.name, "value_prefix": header.prefix} for header in places.headers],
        "from_params": [*places.params],
        "from_cookies": [*places.cookies],
        "forward_payload_header": rule.output_payload_to_header,
        "claim_to_headers": [
            {"header_name": output.header, "claim_name": output.claim} for output in rule.output_claim_to_headers
        ],
        "header_in_metadata": HEADER_METADATA,
        "payload_in_metadata": "payload",
        "normalize_payload_in_metadata": {
            "space_delimited_claims": [*sorted({*_WORDS, *rule.space_delimited_claims})],
        },
    }
    return {name: value for name, value in fields.items() if value} | key_source(rule, rules)


def _requirement(providers: list[str], *, required: bool) -> dict[str, JSON]:
    """The requirement as in Istio, for one provider or several; without `allow_missing` if a token is required."""
    named: list[dict[str, JSON]] = [{"provider_name": provider} for provider in providers]
    if required:
        return named[0] if len(named) == 1 else _any(named)
    optional = [_any([one, _ALLOW_MISSING]) for one in named]
    if len(optional) == 1:
        return optional[0]
    each: dict[str, JSON] = {"requires_all": {"requirements": [*optional]}}
    return _any([*named, each])


def _any(requirements: list[dict[str, JSON]]) -> dict[str, JSON]:
    return {"requires_any": {"requirements": [*requirements]}}
