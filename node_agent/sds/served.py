"""What is asked of a client of secret discovery, and of its session, whichever of the two protocols it speaks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeVar

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DiscoveryRequest

from istio_auth.door import UnixCaller
from node_agent.sds.acknowledgement import Accepted, Holding, View
from node_agent.sds.session import Answer, Reaction
from node_agent.workloads.entitlement import Entitlement

_Request_contra = TypeVar("_Request_contra", DiscoveryRequest, DeltaDiscoveryRequest, contravariant=True)


class AnySession(Protocol[_Request_contra, Answer]):
    """What the two protocols have in common (`Session`, `DeltaSession`)."""

    names: tuple[str, ...]
    node_id: str
    accepted: Accepted

    def receive(self, request: _Request_contra, view: View) -> Reaction[Answer]:
        """Take in a request."""
        ...

    def refresh(self, view: View) -> Answer | None:
        """The answer that a change of the world calls for, or None."""
        ...

    def pending(self, view: View) -> tuple[str, ...]:
        """The subscribed names for which there is nothing yet."""
        ...

    def holding(self, view: View) -> Holding:
        """Whether the client has accepted the present roots of our own trust domain, if it wants them."""
        ...


class Served(Protocol):
    """A client, whichever protocol it speaks, for who looks at all of them."""

    @property
    def caller(self) -> UnixCaller:
        """The process at the other end."""
        ...

    @property
    def entitled(self) -> Entitlement:
        """What it may have."""
        ...

    @property
    def refused(self) -> Mapping[str, str]:
        """What it would not take, each with its own reason, until it takes that again."""
        ...

    @property
    def refusals(self) -> int:
        """How many answers it has refused on this stream."""
        ...

    @property
    def names(self) -> tuple[str, ...]:
        """What it is subscribed to."""
        ...

    @property
    def version(self) -> str:
        """Of the latest answer that it has accepted; empty before the first."""
        ...

    def sequence(self) -> int | None:
        """The bundle sequence that this version stands for; None if it holds no bundle of our own trust domain."""
        ...

    def pending(self) -> tuple[str, ...]:
        """The names that it waits for."""
        ...

    def holding(self) -> Holding:
        """Whether it has accepted the present roots of our own trust domain, if it wants them."""
        ...

    def name(self) -> str:
        """How to call it where it is one of many."""
        ...
