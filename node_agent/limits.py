"""How much the callers at the agent's sockets may take: `[limits]` in the agent's configuration."""

from __future__ import annotations

import resource
from dataclasses import dataclass, fields
from typing import Annotated

from istio_auth.daemon.settings import Setting
from istio_auth.door import DoorLimits
from istio_auth.errors import ConfigurationError

_DESCRIPTORS = 4  # of one connection: the caller's, two of the private one behind it, and the handle of its process
_OWN = 200  # descriptors for everything else
_CONNECTIONS_OF_PODS, _CONNECTIONS_PER_POD = 50_000, 100


@dataclass(frozen=True, slots=True)
class LimitsSettings:
    """The limits. Whoever is over one is refused with a reason; nobody else notices."""

    connections: Annotated[int, Setting("connections open at once")] = 10_000
    connections_per_user: Annotated[int, Setting("of these, from the processes of one user")] = 4_000
    connections_per_process: Annotated[int, Setting("of these, from one process")] = 100
    streams: Annotated[int, Setting("streams of SDS and the Workload API open at once")] = 20_000
    streams_per_user: Annotated[int, Setting("of these, from the processes of one user")] = 8_000
    streams_per_socket: Annotated[int, Setting("of these, through one socket")] = 16_000
    streams_per_process: Annotated[int, Setting("of these, from one process")] = 500
    streams_per_pod: Annotated[int, Setting("streams through the socket of one pod's CSI volume")] = 400
    names_per_stream: Annotated[int, Setting("secrets that one SDS stream may ask for")] = 100
    requests_per_second: Annotated[
        int, Setting("requests and new streams of one process, or of one pod with a CSI volume, in the long run")
    ] = 50
    request_burst: Annotated[int, Setting("of these, how many may come at once")] = 2_000

    def __post_init__(self) -> None:
        for each in fields(self):
            if getattr(self, each.name) < 1:
                raise ConfigurationError(f"limits.{each.name} is less than one")

    def at_the_door(self, descriptors: int, *, doors: int = 1) -> DoorLimits:
        """What the door takes on where a process may have so many descriptors, and so many doors share them.

        A tenth is kept for callers that have few connections. What is more than the descriptors suffice for is
        refused, for without any left nobody could be let in.
        """
        connections = min(self.connections, _room(descriptors, doors))
        return DoorLimits(
            connections=connections,
            per_caller=min(self.connections_per_user, connections),
            per_process=self.connections_per_process,
            reserve=connections // 10,
        )


def at_the_door_of_pods(descriptors: int, *, doors: int = 2) -> DoorLimits:
    """The same for the door behind the sockets of pods, where each pod is one caller."""
    connections = min(_CONNECTIONS_OF_PODS, _room(descriptors, doors))
    return DoorLimits(connections=connections, per_caller=_CONNECTIONS_PER_POD, reserve=connections // 10)


def _room(descriptors: int, doors: int) -> int:
    return max(10, (descriptors - _OWN) // _DESCRIPTORS // doors)


def raise_descriptor_limit() -> int:
    """Let this process have open as many descriptors as the machine lets it; returns how many that is."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return 1 << 20 if hard == resource.RLIM_INFINITY else hard
