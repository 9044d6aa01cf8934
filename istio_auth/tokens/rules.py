"""TokenRule: which tokens of one issuer are accepted, and where they may be (Istio's `JWTRule`, but stricter).

Everything that a token must not decide is decided here: which algorithms, whose keys, for whom, for how long.
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
        issuer: what `iss` must be, exactly.
        audiences: `aud` must have one of these. None accepts tokens for anybody; then every other service that gets
            such a token can use it here in the name of its owner.
        keys: where the issuer's keys come from; by default its own discovery document.
        algorithms: the algorithms that a token may be signed with; never one with a shared secret.
        locations: where a token may be; by default `Authorization: Bearer` and the query parameter `access_token`.
        leeway: how much our clock and the issuer's may differ; 5 minutes at most.
        longest_life: a token may end at most this long after its `iat`, or after now if it has none; 366 days at most.
        required: names of claims that must be there, besides `iss` and `exp`, and `aud` if there are audiences.

    Raises:
        ConfigurationError: a value is out of bounds or of the wrong type, or no token could ever be accepted.
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
