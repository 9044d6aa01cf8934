"""Keeps what every agent said last: which bundle it holds, how many of its consumers have taken it, who lags. No I/O.

Operators watch this during a root rotation (metrics, `ca-cli agent list`). What an agent said is kept when its stream
ends, for an agent that is away still holds what it held. It is dropped when the agent is not welcome any more.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import datetime
from types import MappingProxyType
from typing import TypeAlias

from istio_auth.errors import Exhausted

MAX_STREAMS = 4  # of one agent: one that restarts may not know yet that its old stream is dead
Entries: TypeAlias = MappingProxyType[str, "Acknowledgement"]


@dataclass(frozen=True, slots=True)
class Acknowledgement:
    """What an agent said last.

    Args:
        at: when it said so.
        sequence: the sequence of the bundle that it holds; 0 if it holds none.
        consumers: streams and files it serves.
        consumers_current: of these, how many have taken that bundle.
        laggards: some of the others, by name, as the agent calls them.
        version: of the agent's program.
        streams: how many streams it has open now.
    """

    at: datetime
    sequence: int = 0
    consumers: int = 0
    consumers_current: int = 0
    laggards: tuple[str, ...] = ()
    version: str = ""
    streams: int = 0

    def lag(self, sequence: int) -> int:
        """How many consumers have not taken the bundle of this sequence; the agent itself counts as one more."""
        return self.consumers - self.consumers_current if self.sequence >= sequence else self.consumers + 1


class SyncBook:
    """Keeps what every agent said last. For one event loop; `forget` may be called on any thread."""

    def __init__(self) -> None:
        self._entries: dict[str, Acknowledgement] = {}

    def opened(self, agent: str, now: datetime) -> None:
        """An agent opened a stream.

        Raises:
            Exhausted: it has too many open.
        """
        entry = self._entries.get(agent, Acknowledgement(now))
        if entry.streams >= MAX_STREAMS:
            raise Exhausted(f"agent {agent} has {entry.streams} streams open")
        self._entries[agent] = replace(entry, streams=entry.streams + 1)

    def closed(self, agent: str) -> None:
        """One of its streams ended."""
        if (entry := self._entries.get(agent)) is not None:
            self._entries[agent] = replace(entry, streams=max(0, entry.streams - 1))

    def heard(self, agent: str, word: Acknowledgement) -> None:
        """An agent said something on an open stream."""
        if (entry := self._entries.get(agent)) is not None:
            self._entries[agent] = replace(word, streams=entry.streams)

    def forget(self, agent: str) -> None:
        """An agent is not welcome any more: it no longer counts."""
        self._entries.pop(agent, None)

    @property
    def entries(self) -> Entries:
        """What each agent said last, by agent; a view that changes."""
        return MappingProxyType(self._entries)

    def lagging(self, sequence: int) -> Iterator[tuple[str, int]]:
        """The agents with consumers that have not taken a bundle, and how many these are."""
        return ((agent, lag) for agent, entry in list(self._entries.items()) if (lag := entry.lag(sequence)) > 0)
