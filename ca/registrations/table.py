"""All registrations at one moment, and the difference between two moments. Pure.

An agent may have several registrations of one SPIFFE ID, for workloads with different selectors. They must agree on
lifetime and DNS names, because an agent asks for a certificate by SPIFFE ID alone.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ca.registry import Grant
from istio_auth.errors import ConfigurationError
from istio_auth.registration import Registration
from istio_auth.spiffe_id import SpiffeID

_REVISIONS_KEPT = 8  # an agent that was away for longer is sent everything


@dataclass(frozen=True, slots=True)
class Registered:
    """One registration and whom it is for.

    Args:
        number: its place in the file, from 1; for messages.
        agents: the names of the agents it is for.
        registration: what a workload earns.
    """

    number: int
    agents: frozenset[str]
    registration: Registration

    @property
    def key(self) -> str:
        """What identifies it as long as its SPIFFE ID and selectors stay the same; sorts by SPIFFE ID."""
        selectors = "\0".join(sorted(map(str, self.registration.selectors)))
        return f"{self.registration.spiffe_id} {hashlib.sha256(selectors.encode()).hexdigest()[:32]}"


@dataclass(frozen=True, slots=True)
class RegistrationTable:
    """All registrations.

    Raises:
        ConfigurationError: two of them contradict each other; the message names them.
    """

    entries: tuple[Registered, ...] = ()
    _of_agent: dict[str, dict[str, Registration]] = field(default_factory=dict, init=False, repr=False, compare=False)
    _of_id: dict[SpiffeID, list[Registered]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        first: dict[tuple[str, SpiffeID], Registered] = {}
        for entry in self.entries:
            spiffe_id = entry.registration.spiffe_id
            self._of_id.setdefault(spiffe_id, []).append(entry)
            key = entry.key
            for agent in entry.agents:
                _check_agreement(entry, first.setdefault((agent, spiffe_id), entry), agent)
                if self._of_agent.setdefault(agent, {}).setdefault(key, entry.registration) is not entry.registration:
                    raise ConfigurationError(
                        f"registration {entry.number}: 'spiffe_id': agent {agent} has {spiffe_id} for these selectors "
                        "twice"
                    )

    def of_agent(self, agent: str) -> Mapping[str, Registration]:
        """The registrations for an agent, by key."""
        return self._of_agent.get(agent, {})

    def grant_of(self, spiffe_id: SpiffeID, *, agent: str | None = None) -> Grant | None:
        """What the registrations of a SPIFFE ID allow, for one agent or for all. None if it has none.

        If agents have different ones, it is what all of them allow.
        """
        found = [
            entry.registration for entry in self._of_id.get(spiffe_id, ()) if agent is None or agent in entry.agents
        ]
        if not found:
            return None
        ttls = [registration.ttl for registration in found if registration.ttl is not None]
        names = [name for name in found[0].dns_names if all(name in other.dns_names for other in found)]
        return Grant(spiffe_id, min(ttls, default=None), tuple(names))

    def __len__(self) -> int:
        return len(self.entries)


@dataclass(frozen=True, slots=True)
class RegistrationDelta:
    """What changed for one agent.

    Args:
        from_revision: the revision that it changes; 0 if it is the whole state.
        to_revision: the revision that the agent holds afterwards.
        put: new and changed registrations, by key.
        removed: the keys of those that are gone.
    """

    from_revision: int
    to_revision: int
    put: Mapping[str, Registration]
    removed: tuple[str, ...] = ()


class RegistrationHistory:
    """The present table, with a revision that grows by one with each change, and the few tables before it.

    Args:
        epoch: names this count of revisions; another process has another epoch.
        table: the first table, revision 1.
        kept: how many tables are kept.
    """

    def __init__(self, epoch: str, table: RegistrationTable, *, kept: int = _REVISIONS_KEPT) -> None:
        self.epoch = epoch
        self.revision = 1
        self._tables = deque([table], maxlen=kept)

    @property
    def table(self) -> RegistrationTable:
        """The present registrations."""
        return self._tables[-1]

    def replace(self, table: RegistrationTable) -> bool:
        """Put a new table in the place of the present one.

        Returns:
            whether they differ; if not, nothing happens.
        """
        if table == self.table:
            return False
        self._tables.append(table)
        self.revision += 1
        return True

    def delta(self, agent: str, *, epoch: str, revision: int) -> RegistrationDelta | None:
        """What to send to an agent that holds this revision; None if nothing changed for it since.

        It is the whole state if the revision is of another epoch, or no longer kept.
        """
        back = self.revision - revision
        if epoch != self.epoch or not 0 <= back < len(self._tables):
            return RegistrationDelta(0, self.revision, dict(self.table.of_agent(agent)))
        old, new = self._tables[-1 - back].of_agent(agent), self.table.of_agent(agent)
        put = {key: registration for key, registration in new.items() if old.get(key) != registration}
        removed = tuple(sorted(old.keys() - new.keys()))
        return RegistrationDelta(revision, self.revision, put, removed) if put or removed else None


class Grants(Protocol):
    """Knows what is registered for a SPIFFE ID."""

    def grant_of(self, spiffe_id: SpiffeID, *, agent: str | None = None) -> Grant | None:
        """What is registered for a SPIFFE ID, for one agent or for all. None if nothing.

        Raises:
            NotReady: that is not known now.
        """
        ...


class Registrations(Grants, Protocol):
    """Knows the present registrations, wherever they come from."""

    def history_of(self, agent: str) -> RegistrationHistory:
        """The tables with the registrations for this agent; those for other agents may be in them too.

        Raises:
            NotReady: the registrations for it are not known now.
        """
        ...

    def follow(self, agent: str, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` after each change of this agent's registrations, until the returned function is called."""
        ...


def _check_agreement(entry: Registered, first: Registered, agent: str) -> None:
    mine, theirs = entry.registration, first.registration
    for key, differs in (("ttl", mine.ttl != theirs.ttl), ("dns_names", mine.dns_names != theirs.dns_names)):
        if differs:
            raise ConfigurationError(
                f"registration {entry.number}: {key!r}: differs from registration {first.number}, which gives agent "
                f"{agent} the same SPIFFE ID"
            )
