"""Issuers are asked where their keys are over real HTTPS; one that does not tell has no keys, and holds up nobody."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from istio_auth.policy.jwt_rule import JWTRule
from istio_auth.spiffe_id import SpiffeID
from istio_auth.tokens.key_sources import DISCOVERY
from node_agent.sidecar.key_discovery import with_key_uris
from node_agent.sidecar.token_policy import read_token_rules
from tests.fakes.key_server import Answer, KeyServer, says

WEB = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/web")
POLICY = """
apiVersion: security.istio.io/v1
kind: RequestAuthentication
spec:
  jwtRules:
  - issuer: {issuer}
"""


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[KeyServer]:
    async with KeyServer(tmp_path) as running:
        yield running


async def asked(server: KeyServer, *rules: JWTRule, ca: Path | None = None) -> tuple[list[str], list[str]]:
    """Where keys turned out to be, and what was told."""
    told: list[str] = []
    found = await asyncio.to_thread(with_key_uris, rules, ca or server.ca, told.append)
    return [rule.jwks_uri for rule in found], told


async def test_a_policy_without_keys_gets_them_from_its_issuer(server: KeyServer, tmp_path: Path) -> None:
    file, told = tmp_path / "tokens.yaml", list[str]()
    file.write_text(POLICY.format(issuer=server.tokens.issuer))
    rules = await asyncio.to_thread(read_token_rules, file, WEB, labels=(), ca_file=server.ca, tell=told.append)
    assert [rule.jwks_uri for rule in rules.rules] == [server.url]
    assert rules.ca_file == str(server.ca)
    assert server.asked == [DISCOVERY]
    assert told == []


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (says("{}", status=503), "status 503"),
        (says("<html>", content_type="text/html"), "HTML"),
        (says('{"issuer": "https://other.test", "jwks_uri": "https://other.test/keys"}'), "issuer"),
    ],
)
async def test_an_issuer_that_does_not_tell_has_no_keys_and_the_others_do(
    server: KeyServer, answer: Answer, reason: str
) -> None:
    mute = JWTRule(issuer=server.tokens.issuer)
    inline = JWTRule(issuer="https://inline.test", jwks=server.tokens.jwks())
    known = JWTRule(issuer="https://known.test", jwks_uri="https://known.test/keys")
    server.misbehave(answer, DISCOVERY)
    uris, told = await asked(server, mute, inline, known)
    assert uris == ["", "", "https://known.test/keys"]
    (line,) = told
    assert line.startswith(f"no token of {mute.issuer} is taken")
    assert reason in line
    server.behave()
    assert await asked(server, mute) == ([server.url], [])


async def test_an_issuer_that_is_silent_is_waited_for_no_longer_than_its_rule_says(server: KeyServer) -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        url = f"https://127.0.0.1:{mute.getsockname()[1]}"
        silent = JWTRule(issuer=url, timeout=timedelta(milliseconds=200))
        uris, (told,) = await asked(server, silent, JWTRule(issuer=server.tokens.issuer))
    assert uris == ["", server.url]
    assert "did not answer in time" in told


async def test_keys_where_none_may_be_are_not_fetched(server: KeyServer) -> None:
    rule = JWTRule(issuer=server.tokens.issuer)
    server.document["jwks_uri"] = "https://169.254.169.254/keys"
    uris, (told,) = await asked(server, rule)
    assert uris == [""]
    assert "link-local" in told


async def test_an_issuer_that_nobody_vouches_for_is_not_believed(server: KeyServer, tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.mkdir()
    uris, (told,) = await asked(server, JWTRule(issuer=server.tokens.issuer), ca=KeyServer(other).ca)
    assert uris == [""]
    assert "certificate" in told
    assert server.asked == []
