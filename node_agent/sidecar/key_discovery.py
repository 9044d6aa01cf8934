"""Asks token issuers where their keys are (OpenID Connect Discovery 1.0), all at once, each with its own patience."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from istio_auth.errors import ConfigurationError, MalformedError, NotReady
from istio_auth.policy.jwt_rule import JWTRule, parse_key_uri
from istio_auth.tokens.fetch import KeyFetcher
from istio_auth.tokens.key_sources import DiscoveredKeys, TLSFiles

_TIMEOUT = timedelta(seconds=5)


def with_key_uris(
    rules: Sequence[JWTRule], authorities: Path | None, tell: Callable[[str], None]
) -> tuple[JWTRule, ...]:
    """The rules, with the URI of the keys where the issuer had to be asked for it. It blocks.

    Args:
        rules: the rules.
        authorities: a file with those that vouch for the issuers' servers; None for those of the system.
        tell: hears which issuer did not tell, and why. Its rule stays without keys.
    """
    source = DiscoveredKeys(TLSFiles(authorities), allow_loopback=True)

    async def every_one() -> list[JWTRule]:
        return await asyncio.gather(*(_with_uri(rule, source, tell) for rule in rules))

    return tuple(asyncio.run(every_one()))


async def _with_uri(rule: JWTRule, source: DiscoveredKeys, tell: Callable[[str], None]) -> JWTRule:
    if rule.jwks or rule.jwks_uri:
        return rule
    fetcher = KeyFetcher(rule.issuer, source)
    try:
        async with asyncio.timeout((rule.timeout or _TIMEOUT).total_seconds()):
            uri = await fetcher.key_url()
        parse_key_uri(uri, "its jwks_uri")
    except (NotReady, MalformedError, ConfigurationError, TimeoutError) as error:
        reason = str(error) or "it did not answer in time"
        tell(f"no token of {rule.issuer} is taken, for it did not tell where its keys are: {reason}; or set jwksUri")
        return rule
    finally:
        await fetcher.settle()
        fetcher.close()
    return replace(rule, jwks_uri=uri)
