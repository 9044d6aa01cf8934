"""TokenVerifier: verifies the token of a request, which says on whose behalf the request is made.

The issuer that the token claims only chooses the rule; the token is then verified by that rule. A token of an issuer
without a rule, or at a place that its rule does not name, is refused, because a caller that sends a token wants it to
count. Whether a request without a token may pass is for the caller of the verifier to decide.

The same token comes with many requests. One that was verified is recognized by its hash, for as long as its issuer has
the same keys; its times are checked each time.

    rule = TokenRule("https://issuer.test", {"web"})
    async with TokenVerifier([rule]) as verifier:
        claims = await verifier.verify(scope["headers"], scope["query_string"])
"""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Collection
from types import TracebackType
from typing import NamedTuple, Self

from istio_auth.clock import Clock
from istio_auth.errors import ConfigurationError
from istio_auth.jwks import KeySet
from istio_auth.strict_json import JSON
from istio_auth.system_clock import SystemClock
from istio_auth.tokens.claims import Claims
from istio_auth.tokens.compact import MAX_TOKEN, CompactToken, take_apart
from istio_auth.tokens.fault import TokenFault, TokenRefused
from istio_auth.tokens.issuer_keys import IssuerStatus, KeySetTimes
from istio_auth.tokens.key_sets import KeySets
from istio_auth.tokens.locations import Headers, TokenLocation, find_token
from istio_auth.tokens.rules import TokenRule
from istio_auth.tokens.verify import check_claims, check_signature, check_times

DEFAULT_REMEMBERED = 1_000


class TokenVerifier:
    """Verifies the tokens of requests, inside its `async with` block and on one event loop. It can be entered again.

    If the keys of all rules are given inline (as a `KeySet`), it need not be entered.

    Args:
        rules: one for each issuer.
        clock: tells when a token must be valid; the machine's by default.
        times: how often keys are fetched, and how long they count.
        remembered: how many verified tokens are recognized without another signature check; 0 for none.

    Raises:
        ConfigurationError: there is no rule, or an issuer has two.
    """

    def __init__(
        self,
        rules: Collection[TokenRule],
        *,
        clock: Clock | None = None,
        times: KeySetTimes | None = None,
        remembered: int = DEFAULT_REMEMBERED,
    ) -> None:
        self._rules = {rule.issuer: rule for rule in rules}
        if not rules or len(self._rules) != len(rules):
            raise ConfigurationError("tokens are verified by one rule for each issuer, and by one at least")
        self._clock = clock or SystemClock()
        self._remembered = remembered
        self._verified_before: OrderedDict[bytes, _Verified] = OrderedDict()  # by hash, the least recently used first
        self._locations = frozenset(location for rule in rules for location in rule.locations)
        self._key_sets = KeySets({rule.issuer: rule.keys for rule in rules}, clock=self._clock, times=times)

    async def __aenter__(self) -> Self:
        """Begin to fetch keys, without waiting for the first ones.

        Raises:
            ConfigurationError: it is entered already.
        """
        await self._key_sets.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._key_sets.__aexit__(kind, error, traceback)

    async def verify(self, headers: Headers, query: str | bytes = "") -> Claims | None:
        """Find and verify the token of a request.

        Args:
            headers: names and values of all headers, as ASGI's `scope["headers"]` or the items of any mapping.
            query: the query string without `?`, not decoded, as ASGI's `scope["query_string"]`.

        Returns:
            its claims; None if there is no token at any of the rules' locations.

        Raises:
            TokenRefused: it proves nothing, or there are several: answer 401; `fault` says why, for the log.
            NotReady: the keys of its issuer could not be fetched so far, or are too old: answer 503; `retry_after` says
                when to try again.
        """
        found = find_token(self._locations, headers, query)
        return None if found is None else await self._verified(found.token, found.location)

    async def verify_token(self, token: str) -> Claims:
        """Verify one token, wherever it came from: the locations of the rules do not matter (see `verify`)."""
        return await self._verified(token, None)

    def status(self) -> tuple[IssuerStatus, ...]:
        """The status of each issuer's keys, in the order of the rules."""
        return self._key_sets.status()

    async def _verified(self, token: str, location: TokenLocation | None) -> Claims:
        if len(token) > MAX_TOKEN:  # refused before anything is done with it, even before it is hashed
            take_apart(token)
        name = hashlib.sha256(token.encode(errors="surrogatepass")).digest()
        if (claims := await self._recalled(name, location)) is not None:
            return claims
        parts = take_apart(token)
        payload = parts.document()
        rule = self._rule(payload.get("iss"), location)
        keys = await self._signed_by(parts, rule)
        claims = check_claims(payload, issuer=rule.issuer, audiences=rule.audiences, required=rule.required)
        self._check_times(claims, rule)
        self._remember(name, _Verified(claims, keys))
        return claims

    async def _recalled(self, name: bytes, location: TokenLocation | None) -> Claims | None:
        """The claims of a token that was verified before, with the same keys; its times and place are checked again.

        All other checks would give the same result, because rules never change.
        """
        if (verified := self._verified_before.get(name)) is None:
            return None
        rule = self._rule(verified.claims.issuer, location)
        if await self._key_sets.keys(rule.issuer) is not verified.keys:
            self._verified_before.pop(name, None)
            return None
        self._check_times(verified.claims, rule)
        self._remember(name, verified)
        return verified.claims

    def _remember(self, name: bytes, verified: _Verified) -> None:
        self._verified_before[name] = verified
        self._verified_before.move_to_end(name)
        while len(self._verified_before) > self._remembered:
            self._verified_before.popitem(last=False)

    def _check_times(self, claims: Claims, rule: TokenRule) -> None:
        check_times(claims, self._clock.now(), leeway=rule.leeway, longest_life=rule.longest_life)

    def _rule(self, issuer: JSON, location: TokenLocation | None) -> TokenRule:
        """The rule for tokens that claim this issuer. If the place of the token is known, the rule must allow it."""
        if not isinstance(issuer, str):
            raise TokenRefused(TokenFault.CLAIM, "it does not say its iss")
        if (rule := self._rules.get(issuer)) is None:
            raise TokenRefused(TokenFault.ISSUER, f"no rule is about tokens of {issuer[:200]!a}")
        if location is not None and location not in rule.locations:
            raise TokenRefused(TokenFault.LOCATION, f"a token of {issuer} does not belong in the {location}")
        return rule

    async def _signed_by(self, parts: CompactToken, rule: TokenRule) -> KeySet:
        """The key set with the key that signed the token; newer keys are fetched if the present ones do not have it."""
        keys = await self._key_sets.keys(rule.issuer)
        try:
            check_signature(parts, keys, rule.algorithms)
        except TokenRefused as refused:
            if refused.fault is not TokenFault.UNKNOWN_KEY:
                raise
            if (newer := await self._key_sets.newer(rule.issuer, keys)) is None:
                raise
            check_signature(parts, newer, rule.algorithms)
            return newer
        return keys


class _Verified(NamedTuple):
    claims: Claims
    keys: KeySet  # with which it was verified
