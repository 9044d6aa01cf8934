"""Selector and Registration: which workload earns which identity.

An attestor observes the selectors of a caller (such as `unix:uid:1000`). A registration names selectors that must *all*
be observed.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import timedelta
from typing import Self

from istio_auth.errors import ConfigurationError
from istio_auth.spiffe_id import SpiffeID

_SELECTOR = re.compile(r"([a-z][a-z0-9-]*):([\x21-\x7e]{1,500})")
_DNS_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_SUBDOMAIN = rf"(?=[^/=]{{1,253}}(?:[/=]|\Z)){_DNS_LABEL}(?:\.{_DNS_LABEL})*"
_LABEL = r"[A-Za-z0-9](?:[A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"
# As the attestors write them: a selector that is spelled in another way would fit nobody.
_VALUES = {
    "unix": re.compile(r"(?:uid|gid|supplementary_gid):(?:0|[1-9][0-9]*)|path:/.*|sha256:[0-9a-f]{64}"),
    "systemd": re.compile(r"unit:[^/]+\.[a-z]+"),
    "cgroup": re.compile(r"path:/.+"),
    "k8s": re.compile(
        rf"(?:ns|container):{_DNS_LABEL}|(?:sa|node|pod):{_SUBDOMAIN}|pod-uid:[0-9A-Za-z-]{{1,128}}"
        rf"|label:(?:{_SUBDOMAIN}/)?{_LABEL}=(?:{_LABEL})?"
    ),
}
_SPELLINGS = {
    "unix": "unix:uid:NUMBER, unix:gid:NUMBER, unix:supplementary_gid:NUMBER, unix:path:/PATH or unix:sha256:HEX",
    "systemd": "systemd:unit:NAME.service",
    "cgroup": "cgroup:path:/PATH",
    "k8s": "k8s:ns:NAMESPACE, k8s:sa:SERVICE-ACCOUNT, k8s:node:NODE, k8s:pod:NAME, k8s:pod-uid:UID, "
    "k8s:container:NAME or k8s:label:KEY=VALUE",
}
_DNS_NAME = re.compile(r"(?=.{1,253}\Z)(?:[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True, slots=True, order=True)
class Selector:
    """One observed property of a workload.

    Args:
        type: which attestor observes it, for instance `unix`, `socket` or `k8s`.
        value: what was observed, for instance `uid:1000`.
    """

    type: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Self:
        """The selector in a text `type:value`.

        Raises:
            ConfigurationError: the text is no selector, or one that no attestor would observe.
        """
        if not (match := _SELECTOR.fullmatch(text)):
            raise ConfigurationError(f"{text[:100]!r} is no selector: write type:value, for instance unix:uid:1000")
        if (values := _VALUES.get(match[1])) is not None and not values.fullmatch(match[2]):
            raise ConfigurationError(f"{text[:100]!r} fits nobody: write {_SPELLINGS[match[1]]}")
        return cls(match[1], match[2])

    def __str__(self) -> str:
        return f"{self.type}:{self.value}"


@dataclass(frozen=True, slots=True)
class Registration:
    """The identity that a workload with these selectors earns.

    Args:
        spiffe_id: the identity.
        selectors: all of them must be observed; never empty.
        ttl: the lifetime of its SVIDs, or None for the CA's default.
        dns_names: names to put beside the SPIFFE ID in its certificates.
        hint: a name by which a workload with several identities picks this one.

    Raises:
        ConfigurationError: there is no selector, the identity is a trust domain's, or a name is no DNS name.
    """

    spiffe_id: SpiffeID
    selectors: frozenset[Selector]
    ttl: timedelta | None = None
    dns_names: tuple[str, ...] = ()
    hint: str = ""

    def __post_init__(self) -> None:
        if not self.selectors:
            raise ConfigurationError(f"the registration of {self.spiffe_id} has no selectors: it would fit everybody")
        if not self.spiffe_id.path:
            raise ConfigurationError(f"{self.spiffe_id} names a trust domain, not a workload")
        for name in self.dns_names:
            check_dns_name(name)

    def fits(self, observed: AbstractSet[Selector]) -> bool:
        """Whether a workload with these selectors earns this."""
        return self.selectors <= observed

    def missing(self, observed: AbstractSet[Selector]) -> frozenset[Selector]:
        """The selectors that a workload lacks to earn this."""
        return self.selectors - observed


def earned(registrations: Iterable[Registration], observed: AbstractSet[Selector]) -> list[Registration]:
    """The registrations that a workload with these selectors earns, in their order."""
    return [registration for registration in registrations if registration.fits(observed)]


def nearest(registrations: Iterable[Registration], observed: AbstractSet[Selector]) -> Registration | None:
    """The registration with the fewest missing selectors, to explain a refusal; None if there are no registrations."""
    return min(registrations, key=lambda registration: len(registration.missing(observed)), default=None)


def check_dns_name(name: str) -> None:
    """Check a DNS name for a certificate (RFC 1123 2.1): lower case, no wildcard, nothing that may be an IP address.

    Raises:
        ConfigurationError: it can not.
    """
    if not _DNS_NAME.fullmatch(name) or name.rpartition(".")[2].isdigit():
        raise ConfigurationError(f"{name[:100]!r} is no DNS name in lower case")
