"""Which workloads this node serves: the registrations, as the CA's Sync sends them or as a local file says them.

The state is immutable. A delta that does not follow on what is held is refused whole, so that the agent asks for
everything again. An entry that is no registration, or one for a name that no workload may have, is left out and told;
it never takes the others with it.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TypeAlias

from istio_auth.clock import parse_duration
from istio_auth.errors import ConfigurationError, ConflictError, MalformedError
from istio_auth.registration import Registration, Selector
from istio_auth.spiffe_id import SpiffeID, TrustDomain

_KEYS = {"spiffe_id", "selectors", "ttl", "dns_names", "hint"}
Entry: TypeAlias = Registration | MalformedError


@dataclass(frozen=True, slots=True)
class Delta:
    """What changed.

    Args:
        epoch: of the CA's count of revisions.
        from_revision: what it follows on; zero makes it the whole state.
        to_revision: what it leads to.
        put: new and changed registrations by their key, or why one is none.
        removed: keys.
    """

    epoch: str
    from_revision: int
    to_revision: int
    put: Mapping[str, Entry] = field(default_factory=dict)
    removed: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Registrations:
    """What is registered for this node.

    Args:
        epoch: of the revision; empty before the first.
        revision: what the CA calls this state.
        by_key: in the order of their keys.
    """

    epoch: str = ""
    revision: int = 0
    by_key: Mapping[str, Registration] = field(default_factory=dict)

    def after(self, delta: Delta) -> Registrations:
        """The state that a delta leads to.

        Raises:
            ConflictError: the delta does not follow on this state.
        """
        if delta.from_revision and (delta.epoch, delta.from_revision) != (self.epoch, self.revision):
            raise ConflictError(
                f"a delta from revision {delta.from_revision} of {delta.epoch[:40]!a} does not follow on revision "
                f"{self.revision} of {self.epoch[:40]!a}"
            )
        kept = dict(self.by_key) if delta.from_revision else {}
        for key in (*delta.removed, *delta.put):
            kept.pop(key, None)
        kept |= {key: entry for key, entry in delta.put.items() if isinstance(entry, Registration)}
        return Registrations(delta.epoch, delta.to_revision, dict(sorted(kept.items())))

    def all(self) -> tuple[Registration, ...]:
        """The registrations in their order: a workload with several earns the first as its default identity."""
        return tuple(self.by_key.values())


@dataclass(frozen=True, slots=True)
class Want:
    """The SVID that a registered workload shall have; another lifetime or name calls for another SVID.

    Args:
        spiffe_id: the identity.
        ttl: the lifetime to ask for; None for the CA's default.
        dns_names: what the CA puts beside the SPIFFE ID.
    """

    spiffe_id: SpiffeID
    ttl: timedelta | None = None
    dns_names: frozenset[str] = frozenset()


def wants(registrations: Iterable[Registration]) -> dict[SpiffeID, Want]:
    """One SVID for each identity; of several registrations of one, the shortest lifetime counts."""
    found: dict[SpiffeID, Want] = {}
    for each in registrations:
        names = frozenset(each.dns_names)
        ttl = each.ttl
        if (other := found.get(each.spiffe_id)) is not None:
            names |= other.dns_names
            ttl = min((known for known in (ttl, other.ttl) if known is not None), default=None)
        found[each.spiffe_id] = Want(each.spiffe_id, ttl, names)
    return found


def checked(registration: Registration, trust_domain: TrustDomain) -> Registration:
    """The registration itself, if it names a workload of our trust domain.

    Raises:
        ConfigurationError: it names another trust domain's, the CA or an agent.
    """
    spiffe_id = registration.spiffe_id
    if spiffe_id.trust_domain != trust_domain:
        raise ConfigurationError(f"{spiffe_id} is not of {trust_domain}")
    if spiffe_id == SpiffeID.for_ca(trust_domain) or spiffe_id.path.startswith("/agent/"):
        raise ConfigurationError(f"{spiffe_id} is no workload's name")
    return registration


def from_file(text: bytes, trust_domain: TrustDomain) -> Registrations:
    """The registrations of a TOML file, for a CA that does not send them: `[[registration]]` tables.

    Raises:
        ConfigurationError: the first thing that is wrong with it; nothing is taken then.
    """
    try:
        document = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"the registrations are no TOML: {error}") from error
    tables = document.pop("registration", [])
    if document or not isinstance(tables, list):
        raise ConfigurationError(f"expected [[registration]] tables and nothing else, found {sorted(document)}")
    by_key: dict[str, Registration] = {}
    for number, table in enumerate(tables):
        try:
            by_key[f"{number:06}"] = checked(from_table(table), trust_domain)
        except MalformedError as error:
            raise ConfigurationError(f"registration {number + 1}: {error}") from error
    rows = list(by_key.values())
    if repeated := [row for row in rows if sum(row == other for other in rows) > 1]:
        raise ConfigurationError(f"a registration of {repeated[0].spiffe_id} stands there twice")
    return Registrations("file", 1, by_key)


def from_table(table: object) -> Registration:
    """The registration that a table says.

    Raises:
        MalformedError: it says none.
    """
    if not isinstance(table, dict):
        raise ConfigurationError("expected a table")
    if unknown := sorted(table.keys() - _KEYS):
        raise ConfigurationError(f"{unknown[0]!r} is none of {', '.join(sorted(_KEYS))}")
    ttl = table.get("ttl")
    return Registration(
        SpiffeID.parse(_text(table, "spiffe_id")),
        frozenset(map(Selector.parse, _texts(table, "selectors"))),
        None if ttl is None else parse_duration(_text(table, "ttl")),
        tuple(_texts(table, "dns_names")),
        _text(table, "hint", ""),
    )


def _text(table: Mapping[str, object], name: str, default: str | None = None) -> str:
    value = table.get(name, default)
    if not isinstance(value, str):
        raise ConfigurationError(f"{name} is missing" if value is None else f"{name} is a string")
    return value


def _texts(table: Mapping[str, object], name: str) -> list[str]:
    value = table.get(name, [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise ConfigurationError(f"{name} is a list of strings")
    return value


def observable(registrations: Iterable[Registration], *, unobserved: frozenset[str]) -> tuple[Registration, ...]:
    """Those that a workload of this node can fit at all: for the others no certificate need be had.

    Args:
        registrations: all of them.
        unobserved: the types of selectors that nobody observes here.
    """
    return tuple(
        registration
        for registration in registrations
        if unobserved.isdisjoint(selector.type for selector in registration.selectors)
    )
