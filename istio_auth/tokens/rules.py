"""TokenRule: which tokens of one issuer are accepted, and where they may stand (Istio's `JWTRule`, and stricter).

Everything that a token must not decide is decided here: its algorithms, whose keys, for whom, for how long.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import KW_ONLY, dataclass, field
from datetime import timedelta

from istio_auth.errors import ConfigurationError
from istio_auth.jwks import EVERY_ALGORITHM
from istio_auth.tokens.key_sources import DiscoveredKeys, KeySource, discovery_url
from istio_auth.tokens.locations import DEFAULT_LOCATIONS, TokenLocation
from istio_auth.tokens.verify import DEFAULT_LEEWAY

DEFAULT_LIFE = timedelta(days=1)
_MAX_LEEWAY = timedelta(minutes=5)
_MAX_LIFE = timedelta(days=366)


@dataclass(frozen=True, slots=True)
class TokenRule:
    """What is accepted of one issuer.

    Args:
        issuer: what `iss` must be, letter by letter.
        audiences: `aud` must have one of these; None if tokens for anybody are welcome, which lets every other service
            that gets one of them speak for its owner here.
        keys: where the issuer's keys come from; by default its own discovery document.
        algorithms: those of which one must have signed; never one with a shared secret.
        locations: where a token may stand; by default `Authorization: Bearer` and the query parameter `access_token`.
        leeway: by how much our clock and the issuer's may differ; 5 minutes at most.
        longest_life: how long after it was made, or from now, a token may end at the latest; 366 days at most.
        required: names of claims that must be there, besides `iss`, `exp` and `aud`.

    Raises:
        ConfigurationError: a rule that lets nobody in, or more than it should.
    """

    issuer: str
    audiences: Collection[str] | None
    _: KW_ONLY
    keys: KeySource = field(default_factory=DiscoveredKeys)
    algorithms: Collection[str] = EVERY_ALGORITHM
    locations: Collection[TokenLocation] = DEFAULT_LOCATIONS
    leeway: timedelta = DEFAULT_LEEWAY
    longest_life: timedelta = DEFAULT_LIFE
    required: Collection[str] = ()

    def __post_init__(self) -> None:
        if not self.issuer:
            raise ConfigurationError("a rule for tokens names their issuer")
        _check_no_text("a KeySet, RemoteKeys or DiscoveredKeys", keys=self.keys)
        _check_no_text("a collection", audiences=self.audiences, algorithms=self.algorithms, required=self.required)
        self._check_audiences()
        if others := sorted(set(self.algorithms) - EVERY_ALGORITHM):
            raise ConfigurationError(
                f"{others[0][:40]!a} is no public-key signature: {', '.join(sorted(EVERY_ALGORITHM))}"
            )
        if not self.algorithms or not self.locations:
            raise ConfigurationError(f"the rule for {self.issuer} has no algorithm or no location: no token fits")
        if not timedelta() <= self.leeway <= _MAX_LEEWAY:
            raise ConfigurationError(f"clocks may differ by nothing up to {_MAX_LEEWAY}, not by {self.leeway}")
        if not timedelta() < self.longest_life <= _MAX_LIFE:
            raise ConfigurationError(f"the longest life of a token is at most {_MAX_LIFE.days} days")
        if isinstance(self.keys, DiscoveredKeys):
            discovery_url(self.issuer)
        for name in ("algorithms", "locations", "required"):
            object.__setattr__(self, name, frozenset(getattr(self, name)))

    def _check_audiences(self) -> None:
        if self.audiences is None:
            return
        if not self.audiences or not all(self.audiences):
            raise ConfigurationError(
                f"the rule for {self.issuer} has no audience, or an empty one: None is for anybody"
            )
        object.__setattr__(self, "audiences", frozenset(self.audiences))


def _check_no_text(wanted: str, **settings: object) -> None:
    for name, value in settings.items():
        if isinstance(value, str):
            raise ConfigurationError(f"{name} of a rule for tokens takes {wanted}, and not one text: {value[:100]!a}")
