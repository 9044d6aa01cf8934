"""TokenVerifier: on whose behalf a request is made, by the token that it carries.

The rule is chosen by the issuer that the token claims, which proves nothing yet; from there on the rule decides and the
token is judged. A token of an issuer without a rule, or at a place that its rule does not name, is refused: whoever
sends a token wants it to count. Whether a request without any may pass is not decided here.

    rule = TokenRule("https://issuer.test", {"web"})
    async with TokenVerifier([rule]) as verifier:
        claims = await verifier.verify(scope["headers"], scope["query_string"])
"""

from __future__ import annotations

from collections.abc import Collection
from types import TracebackType
from typing import Self

from istio_auth.clock import Clock
from istio_auth.errors import ConfigurationError
from istio_auth.strict_json import JSON
from istio_auth.system_clock import SystemClock
from istio_auth.tokens.claims import Claims
from istio_auth.tokens.compact import CompactToken, take_apart
from istio_auth.tokens.fault import TokenFault, TokenRefused
from istio_auth.tokens.issuer_keys import IssuerStatus, KeySetTimes
from istio_auth.tokens.key_sets import KeySets
from istio_auth.tokens.locations import Headers, TokenLocation, find_token
from istio_auth.tokens.rules import TokenRule
from istio_auth.tokens.verify import check_claims, check_signature, check_times


class TokenVerifier:
    """Verifies the tokens of requests. Lives on one event loop, from entering to leaving.

    Without rules whose keys are fetched there is nothing to enter.

    Args:
        rules: one for each issuer.
        clock: tells when a token must be valid; the machine's by default.
        times: how often keys are fetched, and for how long they count.

    Raises:
        ConfigurationError: there is no rule, or an issuer has two.
    """

    def __init__(
        self, rules: Collection[TokenRule], *, clock: Clock | None = None, times: KeySetTimes | None = None
    ) -> None:
        self._rules = {rule.issuer: rule for rule in rules}
        if not rules or len(self._rules) != len(rules):
            raise ConfigurationError("tokens are verified by one rule for each issuer, and by one at least")
        self._clock = clock or SystemClock()
        self._locations = frozenset(location for rule in rules for location in rule.locations)
        self._key_sets = KeySets({rule.issuer: rule.keys for rule in rules}, clock=self._clock, times=times)

    async def __aenter__(self) -> Self:
        """Begin to fetch keys; nobody is waited for."""
        await self._key_sets.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._key_sets.__aexit__(kind, error, traceback)

    async def verify(self, headers: Headers, query: str | bytes = "") -> Claims | None:
        """What the token of a request says, once it is proven.

        Args:
            headers: names and values of all headers, as ASGI's `scope["headers"]` or the items of any mapping.
            query: what stands after the question mark, still in its encoding, as ASGI's `scope["query_string"]`.

        Returns:
            its claims; None if there is no token at any of the rules' locations.

        Raises:
            TokenRefused: it proves nothing, or there are several: answer 401; `fault` says why, for the log.
            NotReady: the keys of its issuer could not be fetched so far: answer 503, and `retry_after` says when to
                try again.
        """
        found = find_token(self._locations, headers, query)
        return None if found is None else await self._verified(found.token, found.locations)

    async def verify_token(self, token: str) -> Claims:
        """What a token says that is at hand, wherever it came from (see `verify`)."""
        return await self._verified(token, self._locations)

    def status(self) -> tuple[IssuerStatus, ...]:
        """How it stands with the keys of each issuer, in the order of the rules."""
        return self._key_sets.status()

    async def _verified(self, token: str, places: Collection[TokenLocation]) -> Claims:
        parts = take_apart(token)
        payload = parts.document()
        rule = self._rule(payload.get("iss"), places)
        await self._check_signature(parts, rule)
        claims = check_claims(payload, issuer=rule.issuer, audiences=rule.audiences, required=rule.required)
        check_times(claims, self._clock.now(), leeway=rule.leeway, longest_life=rule.longest_life)
        return claims

    def _rule(self, issuer: JSON, places: Collection[TokenLocation]) -> TokenRule:
        """The rule for tokens that claim to be of an issuer, and stand at these places."""
        if not isinstance(issuer, str):
            raise TokenRefused(TokenFault.CLAIM, "it does not say its iss")
        if (rule := self._rules.get(issuer)) is None:
            raise TokenRefused(TokenFault.ISSUER, f"no rule is about tokens of {issuer[:200]!a}")
        if not set(rule.locations) & set(places):
            shown = ", ".join(sorted(str(place) for place in places))
            raise TokenRefused(TokenFault.LOCATION, f"a token of {issuer} does not belong there: {shown}")
        return rule

    async def _check_signature(self, parts: CompactToken, rule: TokenRule) -> None:
        """Find the key that signed it, among newer keys if it is not among those at hand."""
        keys = await self._key_sets.keys(rule.issuer)
        try:
            check_signature(parts, keys, rule.algorithms)
        except TokenRefused as refused:
            if refused.fault is not TokenFault.UNKNOWN_KEY:
                raise
            if (newer := await self._key_sets.newer(rule.issuer, keys)) is None:
                raise
            check_signature(parts, newer, rule.algorithms)
