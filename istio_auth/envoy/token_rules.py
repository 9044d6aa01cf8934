"""What a sidecar asks of the tokens of requests: the rules of its RequestAuthentication policies, and their keys."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta

from istio_auth.errors import ConfigurationError
from istio_auth.policy.jwt_rule import JWTRule, parse_key_uri, plain_header

DEFAULT_REFRESH = timedelta(minutes=5)  # as Istio has Envoy do it


@dataclass(frozen=True, slots=True)
class TokenRules:
    """Whose tokens are taken, and how their keys are fetched.

    Args:
        rules: the issuers. A rule with neither key set nor URI stands for an issuer whose keys could not be found: none
            of its tokens is accepted.
        ca_file: a file with the authorities of the servers from which key sets are fetched by https.
        refresh: how often key sets are fetched again. If a key set can not be fetched, the last one stays.

    Raises:
        ConfigurationError: the parts do not fit together.
    """

    rules: tuple[JWTRule, ...]
    ca_file: str = ""
    refresh: timedelta = DEFAULT_REFRESH

    def __post_init__(self) -> None:
        if not self.rules:
            raise ConfigurationError("no rule says whose tokens are taken: add one to jwtRules")
        object.__setattr__(self, "rules", tuple(sorted(self.rules, key=lambda rule: rule.issuer)))
        if self.refresh < timedelta(seconds=1):
            raise ConfigurationError("key sets are fetched once a second at most")
        secure = [uri for uri in self.key_uris if parse_key_uri(uri, "jwksUri").scheme == "https"]
        if secure and not self.ca_file:
            raise ConfigurationError(f"say which authorities vouch for {secure[0]}")
        self._check_headers()

    @property
    def key_uris(self) -> tuple[str, ...]:
        """Where key sets are fetched."""
        return tuple(rule.jwks_uri for rule in self.rules if rule.jwks_uri)

    @property
    def output_headers(self) -> tuple[str, ...]:
        """The headers that only a verified token may set, each as `plain_header` spells it."""
        return tuple(sorted({plain_header(header) for rule in self.rules for header in rule.output_headers}))

    def _check_headers(self) -> None:
        # What an output header holds is taken out of each request before tokens are looked for.
        places = {plain_header(header.name) for rule in self.rules for header in rule.places.headers}
        places |= {"cookie"} if any(rule.places.cookies for rule in self.rules) else set()
        if both := sorted(places & set(self.output_headers)):
            raise ConfigurationError(f"{both[0]} is where a token is looked for: give the claims another header")
