"""Parses the registrations file: which SPIFFE IDs each agent may ask for, and for which of its workloads. Pure.

    [[registration]]
    spiffe_id = "spiffe://cluster.local/ns/default/sa/web"
    agents = ["node-1", "node-2"]          # the names they joined with
    selectors = ["unix:uid:1000"]          # all of them must be observed of the workload
    ttl = "1h"                             # optional: the longest lifetime, and the usual one
    dns_names = ["web.default.svc"]        # optional
    hint = "frontend"                      # optional

A file is taken whole or not at all. An error names the number of the registration and the key.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from ca.agents.agent import check_agent_name, in_agents_room
from ca.registrations.table import Registered, RegistrationTable
from ca.registry import Grant
from istio_auth.clock import in_words, parse_duration
from istio_auth.errors import ConfigurationError, InvalidSpiffeID, NotAuthorized
from istio_auth.registration import Registration, Selector, check_dns_name
from istio_auth.spiffe_id import SpiffeID, TrustDomain

MAX_FILE_BYTES = 16 << 20
_MAX_AGENTS = 10_000
_MAX_SELECTORS = 32
_MAX_DNS_NAMES = 32
_REQUIRED = ("spiffe_id", "agents", "selectors")
_KEYS = (*_REQUIRED, "ttl", "dns_names", "hint")
_HINT = re.compile(r"[\x20-\x7e]{0,255}")

Read = TypeVar("Read")


@dataclass(frozen=True, slots=True)
class RegistrationRules:
    """The rules for every registration of a CA.

    Args:
        trust_domain: the trust domain of its SPIFFE ID.
        max_ttl: the longest lifetime.
        check_grant: raises `NotAuthorized` for what is never granted: the CA's own names.
    """

    trust_domain: TrustDomain
    max_ttl: timedelta
    check_grant: Callable[[Grant], None]


def parse_registrations(text: bytes, rules: RegistrationRules) -> RegistrationTable:
    """The registrations in a file.

    Raises:
        ConfigurationError: anything is wrong with it.
    """
    try:
        document = tomllib.loads(text.decode())
    except (ValueError, RecursionError) as error:
        raise ConfigurationError(f"the registrations file is no TOML: {str(error)[:200]}") from error
    if unknown := document.keys() - {"registration"}:
        raise ConfigurationError(f"the registrations file has the unknown key {min(unknown)[:100]!a}")
    entries = document.get("registration", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ConfigurationError("the registrations file is a list of [[registration]] tables")
    return RegistrationTable(tuple(_registered(_Entry(number, each), rules) for number, each in enumerate(entries, 1)))


def _registered(entry: _Entry, rules: RegistrationRules) -> Registered:
    entry.check_keys()
    with entry.at("spiffe_id"):
        spiffe_id = _workload_id(entry.text("spiffe_id"), rules)
    registration = Registration(
        spiffe_id,
        frozenset(entry.each("selectors", Selector.parse, limit=_MAX_SELECTORS)),
        ttl=_ttl(entry, rules),
        dns_names=tuple(entry.each("dns_names", _dns_name, limit=_MAX_DNS_NAMES)),
        hint=_hint(entry),
    )
    with entry.at("dns_names"):
        rules.check_grant(Grant(spiffe_id, dns_names=registration.dns_names))
    return Registered(entry.number, frozenset(entry.each("agents", _agent, limit=_MAX_AGENTS)), registration)


def _workload_id(text: str, rules: RegistrationRules) -> SpiffeID:
    spiffe_id = SpiffeID.parse(text)
    if spiffe_id.trust_domain != rules.trust_domain:
        raise ConfigurationError(f"{spiffe_id} is not in this CA's trust domain, {rules.trust_domain}")
    if not spiffe_id.path:
        raise ConfigurationError(f"{spiffe_id} names a trust domain, not a workload")
    if in_agents_room(spiffe_id):
        raise ConfigurationError(f"{spiffe_id} is an agent's, and agents get theirs by joining")
    rules.check_grant(Grant(spiffe_id))
    return spiffe_id


def _ttl(entry: _Entry, rules: RegistrationRules) -> timedelta | None:
    if "ttl" not in entry:
        return None
    with entry.at("ttl"):
        ttl = parse_duration(entry.text("ttl"))
        if not timedelta(seconds=1) <= ttl <= rules.max_ttl:
            raise ConfigurationError(f"must be from one second to this CA's maximum, {in_words(rules.max_ttl)}")
        return ttl


def _hint(entry: _Entry) -> str:
    if "hint" not in entry:
        return ""
    with entry.at("hint"):
        hint = entry.text("hint")
        if not _HINT.fullmatch(hint):
            raise ConfigurationError("must be up to 255 printable ASCII characters")
        return hint


class _Entry:
    """One table of the file, read with errors that name it."""

    def __init__(self, number: int, values: Mapping[str, object]) -> None:
        self.number = number
        self._values = values

    def __contains__(self, key: str) -> bool:
        return key in self._values

    @contextmanager
    def at(self, key: str) -> Iterator[None]:
        """Make errors from inside name this key."""
        try:
            yield
        except (ConfigurationError, InvalidSpiffeID, NotAuthorized) as error:
            raise ConfigurationError(f"registration {self.number}: {key[:100]!a}: {error}") from error

    def check_keys(self) -> None:
        for key in self._values:
            with self.at(key):
                if key not in _KEYS:
                    raise ConfigurationError(f"is unknown; known are {', '.join(_KEYS)}")
        for key in _REQUIRED:
            with self.at(key):
                if not self._values.get(key):
                    raise ConfigurationError("is needed")

    def text(self, key: str) -> str:
        value = self._values[key]
        if not isinstance(value, str):
            raise ConfigurationError("must be a text")
        return value

    def each(self, key: str, read: Callable[[str], Read], *, limit: int) -> list[Read]:
        with self.at(key):
            values = self._values.get(key, [])
            if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
                raise ConfigurationError("must be a list of texts")
            if len(values) > limit:
                raise ConfigurationError(f"has {len(values)} members, at most {limit} are allowed")
            if len(set(values)) != len(values):
                raise ConfigurationError("has a member twice")
            return [read(value) for value in values]


def _agent(name: str) -> str:
    check_agent_name(name)
    return name


def _dns_name(name: str) -> str:
    check_dns_name(name)
    return name
