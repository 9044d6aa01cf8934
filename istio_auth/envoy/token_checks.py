"""What is checked of a request with a token, beside the checks of Envoy's jwt_authn filter.

- There is one token, in one place. The filter would take several, and then nobody could say on whose behalf the request
  is made (see Istio's API). The filter also finds a token in the middle of a header's value, and it does not find one
  after `bearer` in small letters, where applications do: so a value that only resembles a token is refused.
- The token's header has nothing that the filter would ignore: extensions that must be understood (RFC 7515 4.1.11), or
  a key of the token's own.
- Only a verified token sets the headers that claims are copied to. They are removed from each request first, in every
  spelling ('_' for '-'), also if no token is looked for.

A refusal is 401, as for a token that is not valid.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from istio_auth.bundle import JSON
from istio_auth.envoy.extension import extension
from istio_auth.envoy.token_rules import TokenRules
from istio_auth.tokens.compact import EXTENSIONS, OWN_KEYS

_RBAC = "envoy.extensions.filters.http.rbac.v3.RBAC"
_MUTATION = "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation"
_SEVERAL, _MALFORMED, _HEADER = "several-tokens", "malformed-token", "token-header"
HEADER_METADATA = "header"  # where the filter jwt_authn leaves the header of a valid token
_CHARACTERS = "[A-Za-z0-9_.-]*"  # of a token in compact form (RFC 7515 7.1)


def claim_header_remover(rules: TokenRules) -> list[JSON]:
    """The filter that removes the headers that only a verified token may set; an empty list if there are none."""
    spellings = [header.replace("-", "[-_]") for header in rules.output_headers]
    removed: list[JSON] = [{"remove_on_match": {"key_matcher": {"safe_regex": {"regex": one}}}} for one in spellings]
    if not removed:
        return []
    return [extension("envoy.filters.http.header_mutation", _MUTATION, {"mutations": {"request_mutations": removed}})]


def one_token_filter(rules: TokenRules) -> JSON:
    """The filter that refuses more than one token, and a value that only resembles a token."""
    headers = _headers(rules)
    params = sorted({param for rule in rules.rules for param in rule.places.params})
    cookies = sorted({cookie for rule in rules.rules for cookie in rule.places.cookies})
    filled = [_filled(name, prefixes) for name, prefixes in headers.items()]
    filled += [_header(":path", _regex(_param(param))) for param in params]
    filled += [_header("cookie", _regex(_cookie(cookie))) for cookie in cookies]
    several = [_all(one, _any(filled[place:])) for place, one in enumerate(filled[:-1], 1)]
    several += [_header(":path", _regex(_param(param, twice=True))) for param in params]
    several += [_header("cookie", _regex(_cookie(cookie, twice=True))) for cookie in cookies]
    malformed = [
        _all(_filled(name, prefixes), {"not_matcher": _any([_whole(name, prefix) for prefix in prefixes])})
        for name, prefixes in headers.items()
    ]
    # Not RBAC permissions: those look at each value of a header by itself, and not at how many values there are.
    matchers: list[JSON] = [
        {"predicate": _any(refused), "on_match": _action(name, "DENY")}
        for name, refused in ((_SEVERAL, several), (_MALFORMED, malformed))
        if refused
    ]
    tree: JSON = {"matcher_list": {"matchers": matchers}, "on_no_match": _action("one-token", "ALLOW")}
    return extension("envoy.filters.http.rbac", _RBAC, {"matcher": tree, "rules_stat_prefix": "token"})


def token_header_filter() -> JSON:
    """The filter, after jwt_authn, that refuses a token whose header has something that jwt_authn ignores."""
    permissions: list[JSON] = [_in_token_header(name) for name in sorted(EXTENSIONS | OWN_KEYS)]
    policy: JSON = {"permissions": permissions, "principals": [{"any": True}]}
    rules: JSON = {"action": "DENY", "policies": {_HEADER: policy}}
    return extension("envoy.filters.http.rbac", _RBAC, {"rules": rules, "rules_stat_prefix": "token"})


def refusal_reply() -> dict[str, JSON]:
    """Turns these refusals into 401 for the caller: the filters themselves would answer 403."""
    details = [f"'rbac_access_denied_matched_policy[{name}]'" for name in (_SEVERAL, _MALFORMED, _HEADER)]
    refused = extension(
        "envoy.access_loggers.extension_filters.cel",
        "envoy.extensions.access_loggers.filters.cel.v3.ExpressionFilter",
        {"expression": f"response.code_details in [{', '.join(details)}]"},
    )
    challenge: JSON = {"header": {"key": "www-authenticate", "value": 'Bearer error="invalid_request"'}}  # RFC 6750 3.1
    return {
        "mappers": [
            {
                "filter": {"extension_filter": refused},
                "status_code": 401,
                "body": {"inline_string": "a request carries one token, in one place, without extensions"},
                "headers_to_add": [challenge],
            }
        ]
    }


def _in_token_header(name: str) -> dict[str, JSON]:
    path: list[JSON] = [{"key": HEADER_METADATA}, {"key": name}]
    matcher: JSON = {"filter": "envoy.filters.http.jwt_authn", "path": path, "value": {"present_match": True}}
    return {"sourced_metadata": {"metadata_matcher": matcher}}


def _headers(rules: TokenRules) -> dict[str, list[str]]:
    """For each header that may hold a token, the prefixes that may stand before it."""
    found: dict[str, set[str]] = {}
    for rule in rules.rules:
        for header in rule.places.headers:
            found.setdefault(header.name.lower(), set()).add(header.prefix)
    return {name: sorted(prefixes) for name, prefixes in sorted(found.items())}


def _filled(name: str, prefixes: Sequence[str]) -> dict[str, JSON]:
    """Whether somebody could find a token in a header: the prefix is anywhere in it, in capital or small letters."""
    if "" in prefixes:
        return _header(name, _regex("(?s).*"))
    return _any([_header(name, {"contains": prefix, "ignore_case": True}) for prefix in prefixes])


def _whole(name: str, prefix: str) -> dict[str, JSON]:
    """Whether a header is a prefix and one token, and nothing else; so it has one value only."""
    return _header(name, _regex(re.escape(prefix) + (" *" if prefix else "") + _CHARACTERS))


def _param(name: str, *, twice: bool = False) -> str:
    """A path with a query parameter, whose name may be encoded (RFC 3986 2.1)."""
    spelled = "".join(map(_spellings, name.encode()))
    before = rf"[^?]*\?(?:.*&)?{spelled}"
    if twice:
        before += rf"(?:=[^&]*)?&(?:.*&)?{spelled}"
    return before + "(?:[=&].*)?"


def _spellings(octet: int) -> str:
    encoded = f"%(?i:{octet:02x})"
    return f"(?:{re.escape(chr(octet))}|{encoded})" if octet < 128 else encoded


def _cookie(name: str, *, twice: bool = False) -> str:
    """Cookies with one of this name (RFC 6265 4.2.1); several headers are read as one, with commas between."""
    one = rf"\s*{re.escape(name)}=.*"
    return rf"(?:.*[;,])?{one}" + (f"[;,]{one}" if twice else "")


def _header(name: str, matcher: dict[str, JSON]) -> dict[str, JSON]:
    read = extension("header", "envoy.type.matcher.v3.HttpRequestHeaderMatchInput", {"header_name": name})
    return {"single_predicate": {"input": read, "value_match": matcher}}


def _regex(pattern: str) -> dict[str, JSON]:
    return {"safe_regex": {"google_re2": {}, "regex": pattern}}


def _all(*predicates: dict[str, JSON]) -> dict[str, JSON]:
    return {"and_matcher": {"predicate": [*predicates]}}


def _any(predicates: Sequence[dict[str, JSON]]) -> dict[str, JSON]:
    return {"or_matcher": {"predicate": [*predicates]}} if len(predicates) > 1 else predicates[0]


def _action(name: str, action: str) -> JSON:
    return {"action": extension("action", "envoy.config.rbac.v3.Action", {"name": name, "action": action})}
