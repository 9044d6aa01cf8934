"""TokenRule and where keys come from: what can not be meant is refused when it is written, not when a token comes."""

from __future__ import annotations

import ssl
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from istio_auth.errors import ConfigurationError
from istio_auth.jwks import KeySet
from istio_auth.tokens.key_sources import DiscoveredKeys, RemoteKeys, TLSFiles, discovery_url
from istio_auth.tokens.locations import DEFAULT_LOCATIONS, InHeader
from istio_auth.tokens.rules import TokenRule

ISSUER = "https://issuer.test"


def rule(issuer: str = ISSUER, **changes: Any) -> TokenRule:
    usual: dict[str, Any] = {"audiences": {"web"}, "keys": KeySet()}
    return TokenRule(issuer, **(usual | changes))


def test_a_rule_has_the_defaults_of_istio() -> None:
    made = TokenRule(ISSUER, ["web"])
    assert made.locations == set(DEFAULT_LOCATIONS)
    assert made.keys == DiscoveredKeys()
    assert made.leeway == timedelta(minutes=1)
    assert (made.audiences, made.required) == ({"web"}, frozenset())
    assert not [name for name in made.algorithms if name.startswith("HS") or name == "none"]


def test_a_rule_is_the_same_whatever_is_done_to_what_it_was_made_of() -> None:
    audiences, places = ["web"], [InHeader("x-token")]
    made = rule(audiences=audiences, locations=places)
    audiences.append("other")
    places.clear()
    assert made == rule(audiences={"web"}, locations=(InHeader("X-Token"),))


@pytest.mark.parametrize("name", ["audiences", "algorithms", "required", "keys"])
def test_one_text_is_told_as_such(name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"{name} of a rule for tokens takes .*, and not one text: 'RS256'"):
        rule(**{name: "RS256"})


@pytest.mark.parametrize(
    "changes",
    [
        {"issuer": ""},
        {"audiences": ()},
        {"audiences": [""]},
        {"audiences": "web"},
        {"algorithms": ()},
        {"algorithms": {"none"}},
        {"algorithms": {"RS256", "HS256"}},
        {"algorithms": "RS256"},
        {"keys": "https://issuer.test/keys"},
        {"locations": ()},
        {"leeway": timedelta(seconds=-1)},
        {"leeway": timedelta(minutes=6)},
        {"longest_life": timedelta()},
        {"longest_life": timedelta(days=367)},
        {"required": "sub"},
        {"issuer": "issuer.test", "keys": DiscoveredKeys()},
        {"issuer": "http://issuer.test", "keys": DiscoveredKeys()},
        {"issuer": "https://issuer.test?a", "keys": DiscoveredKeys()},
    ],
)
def test_a_rule_that_can_not_be_meant_is_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        rule(**changes)
    rule(audiences=None, required=["sub"], leeway=timedelta(minutes=5), longest_life=timedelta(days=366))


def test_an_issuer_whose_keys_are_at_hand_may_have_any_name() -> None:
    assert rule("accounts@issuer.test").issuer == "accounts@issuer.test"


@pytest.mark.parametrize(
    "url",
    [
        "",
        "issuer.test/keys",
        "http://issuer.test/keys",
        "file:///etc/keys",
        "https://",
        "https:///keys",
        "https://user@issuer.test/keys",
        "https://user:word@issuer.test/keys",
        "https://issuer.test/keys#one",
        "https://issuer.test:x/keys",
        "https://issuer.test:99999/keys",
        "https://[::1/keys",
        "https://issuer.test/k eys",
        "https://issuer.test/keys\n",
        "https://issüer.test/keys",
    ],
)
def test_keys_come_over_https_and_from_a_host(url: str) -> None:
    with pytest.raises(ConfigurationError):
        RemoteKeys(url)
    assert RemoteKeys("https://issuer.test:8443/keys?format=jwk").url


@pytest.mark.parametrize(
    ("issuer", "url"),
    [
        ("https://issuer.test", "https://issuer.test/.well-known/openid-configuration"),
        ("https://issuer.test/", "https://issuer.test/.well-known/openid-configuration"),
        ("https://issuer.test:8443/realms/a", "https://issuer.test:8443/realms/a/.well-known/openid-configuration"),
    ],
)
def test_a_discovery_document_stands_below_its_issuer(issuer: str, url: str) -> None:
    assert discovery_url(issuer) == url


def test_the_machines_roots_are_loaded_once_and_ask_for_names_and_certificates() -> None:
    context = TLSFiles().context()
    assert context is TLSFiles().context()
    assert (context.check_hostname, context.verify_mode) == (True, ssl.CERT_REQUIRED)


def test_a_key_of_ours_has_a_certificate() -> None:
    with pytest.raises(ConfigurationError):
        TLSFiles(key=Path("tls.key"))
