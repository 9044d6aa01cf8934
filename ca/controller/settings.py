"""What an operator decides about the secrets of service accounts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta

from ca.controller.label_selector import is_label_value
from ca.controller.namespaces import NamespaceRules
from ca.controller.renewal import RenewalRule
from ca.controller.snapshot import MARK_LABEL, AccountKey
from istio_auth.errors import ConfigurationError


@dataclass(frozen=True, slots=True)
class Settings:
    """What an operator decides about the secrets.

    Args:
        mark: the name of this CA, in the label `MARK_LABEL` of all it made.
        namespaces: which namespaces are managed.
        ttl: the lifetime that is asked of the issuer.
        rule: when a certificate is renewed.
        dns_names: the names to put beside the SPIFFE IDs of some service accounts.
        skew: how far ahead of our clock a certificate may begin; one that begins later is replaced.

    Raises:
        ConfigurationError: the mark can be no value of a label, or the lifetime is not longer than zero.
    """

    mark: str
    namespaces: NamespaceRules
    ttl: timedelta = timedelta(hours=24)
    rule: RenewalRule = field(default_factory=RenewalRule)
    dns_names: Mapping[AccountKey, tuple[str, ...]] = field(default_factory=dict)
    skew: timedelta = timedelta(minutes=5)

    def __post_init__(self) -> None:
        if not self.mark or not is_label_value(self.mark):
            raise ConfigurationError(f"{self.mark[:100]!r} can be no value of the label {MARK_LABEL}")
        if self.ttl <= timedelta():
            raise ConfigurationError("the lifetime of certificates must be longer than nothing")
