"""Enrolled agents: which machine holds which node key, until when its last SVID lives, and who was evicted.

An evicted agent can no longer renew, recover, sign or sync. The SPIFFE IDs for which it obtained certificates are on
record, and those certificates can not renew themselves any more. The agent comes back only by a join token that is
younger than its eviction, and only when its last SVID has ended: the CA could not tell the old SVID from a new one.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

from istio_auth.errors import ConfigurationError, InvalidSpiffeID, NotAuthorized
from istio_auth.spiffe_id import SpiffeID, TrustDomain

MAX_AGENT_NAME = 128
_ANY_TRUST_DOMAIN = TrustDomain("any")
_VERSION = 1


def check_agent_name(name: str) -> None:
    """Check that an agent can have this name: it becomes a path segment of its SPIFFE ID and the name of a file.

    Raises:
        ConfigurationError: it can not.
    """
    try:
        SpiffeID.for_agent(_ANY_TRUST_DOMAIN, name)
    except InvalidSpiffeID as error:
        raise ConfigurationError(f"{name[:100]!a} is no name for an agent: {error}") from error
    if len(name) > MAX_AGENT_NAME or not (name[0].isalnum() or name[0] == "_"):
        raise ConfigurationError(
            f"{name[:100]!a} is no name for an agent: at most {MAX_AGENT_NAME} characters, the first a letter or digit"
        )


def agent_name(spiffe_id: SpiffeID) -> str | None:
    """The name of the agent whose identity this is; None if it is no agent's."""
    parts = spiffe_id.path.split("/")
    return parts[2] if len(parts) == 3 and parts[1] == "agent" else None


def in_agents_room(spiffe_id: SpiffeID) -> bool:
    """Whether the identity lies where those of agents are: nothing there can be registered for a workload."""
    return spiffe_id.path == "/agent" or spiffe_id.path.startswith("/agent/")


class Agents(Protocol):
    """Knows which agents are welcome, and keeps what must be kept of them."""

    def check_welcome(self, name: str) -> object:
        """Check that an agent may call at all.

        Raises:
            NotAuthorized: it may not.
            NotReady: nobody can tell now.
        """
        ...

    def unnoted(self, name: str, identities: Iterable[SpiffeID]) -> frozenset[SpiffeID]:
        """Which of these SPIFFE IDs must be kept before a certificate is issued for them through this agent.

        Raises:
            NotAuthorized: the agent is not welcome.
            NotReady: nobody can tell now.
        """
        ...

    def note_identities(self, name: str, identities: Iterable[SpiffeID]) -> None:
        """Keep the SPIFFE IDs for which certificates are about to be issued through an agent. Blocks.

        Raises:
            NotAuthorized: the agent is not welcome any more.
            ConfigurationError, NotReady: they could not be kept; nothing must be issued.
        """
        ...

    def note_svid(self, name: str, end: datetime) -> None:
        """Keep the end of an SVID that is about to be handed to an agent. Blocks.

        Raises:
            NotAuthorized: the agent is not welcome any more.
            ConfigurationError, NotReady: it could not be kept; the SVID must not be handed out.
        """
        ...

    def subscribe(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` after each change of the evictions, until the returned function is called."""
        ...


@dataclass(frozen=True, slots=True)
class AgentRecord:
    """What is kept of an agent.

    Args:
        name: its name.
        node_key: the fingerprint of the key it enrolled with.
        enrolled_at: when it did so last.
        svid_end: the latest end of an SVID of its own; None if it has had none.
        identities: the SPIFFE IDs that certificates were issued for through it.
        evicted_at: when it was evicted; None if it is welcome. Kept apart from the rest, see `AgentFolder`.
    """

    name: str
    node_key: str
    enrolled_at: datetime
    svid_end: datetime | None = None
    identities: frozenset[SpiffeID] = frozenset()
    evicted_at: datetime | None = None

    def check_welcome(self) -> None:
        """Check that it was not evicted.

        Raises:
            NotAuthorized: it was.
        """
        if self.evicted_at is not None:
            raise NotAuthorized(f"agent {self.name} was evicted {self.evicted_at:%F %T} UTC")

    def check_readmission(self, invited_at: datetime, now: datetime) -> None:
        """Check that a join token may enrol it again: always, unless it was evicted.

        Args:
            invited_at: when the join token was made.
            now: the present instant.

        Raises:
            NotAuthorized: it was evicted, and can not come back, or not yet.
        """
        if self.evicted_at is None:
            return
        if invited_at <= self.evicted_at:
            raise NotAuthorized(
                f"agent {self.name} was evicted {self.evicted_at:%F %T} UTC, after its join token was made"
            )
        if self.svid_end is not None and now <= self.svid_end:
            raise NotAuthorized(
                f"agent {self.name} was evicted, and its last SVID is good until {self.svid_end:%F %T} UTC: it can "
                "come back after that, or under another name"
            )

    def to_json(self) -> bytes:
        """The content of its file: all but the eviction."""
        document = {
            "version": _VERSION,
            "name": self.name,
            "node_key": self.node_key,
            "enrolled_at": self.enrolled_at.isoformat(),
            "svid_end": None if self.svid_end is None else self.svid_end.isoformat(),
            "identities": sorted(map(str, self.identities)),
        }
        return json.dumps(document, indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes) -> AgentRecord:
        """The record in a file.

        Raises:
            ConfigurationError: it is damaged, or written by a newer release.
        """
        try:
            document = json.loads(text)
            if document["version"] != _VERSION:
                raise ConfigurationError("the record of an agent was written by a newer release")
            check_agent_name(document["name"])
            return cls(
                name=document["name"],
                node_key=str(document["node_key"]),
                enrolled_at=read_instant(document["enrolled_at"]),
                svid_end=None if document["svid_end"] is None else read_instant(document["svid_end"]),
                identities=frozenset(map(SpiffeID.parse, document["identities"])),
            )
        except (ValueError, KeyError, TypeError, AttributeError, InvalidSpiffeID) as error:
            raise ConfigurationError("the record of an agent is damaged") from error


@dataclass(frozen=True, slots=True)
class Evictions:
    """Who was evicted. The same object as long as nothing changed.

    Args:
        since: when, by the name of the agent.
        identities: by SPIFFE ID, the latest eviction of an agent through which certificates were issued for it.
    """

    since: Mapping[str, datetime]
    identities: Mapping[SpiffeID, datetime] = field(default_factory=dict)


def read_instant(text: str) -> datetime:
    """An instant as our files hold it, in UTC.

    Raises:
        ValueError: the text is no instant, or lacks a time zone.
    """
    instant = datetime.fromisoformat(text)
    if instant.tzinfo is None:
        raise ValueError("an instant without a time zone")
    return instant.astimezone(UTC)
