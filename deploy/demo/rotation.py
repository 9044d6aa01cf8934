"""Which serial numbers were at work, as others saw them.

A workload's: in the access logs of the Envoys that verified its certificate, handshake by handshake. The node agent's:
in the CA's issuance log, which tells the certificate that each request came with. The CA's own: by dialling it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from cryptography import x509

from deploy.demo.client import tls_client
from deploy.demo.layout import AGENT, LOOPBACK, TRUST_DOMAIN, Layout
from deploy.demo.log import Log
from deploy.demo.workloads import Workloads
from istio_auth.bundle import JSON
from istio_auth.spiffe_id import SpiffeID

_AGENT_ID = str(SpiffeID.for_agent(TRUST_DOMAIN, AGENT))


@dataclass(frozen=True, slots=True)
class Seen:
    """The serials of one identity.

    Args:
        name: whose they are.
        where: in what they were seen.
        serials: each with how often it was seen, in the order of the first time.
    """

    name: str
    where: str
    serials: Mapping[str, int]

    @property
    def rotations(self) -> int:
        """How often one took the place of another."""
        return max(0, len(self.serials) - 1)


class Witness:
    """Sees what was at work since it was made."""

    def __init__(self, layout: Layout, workloads: Workloads) -> None:
        self._layout = layout
        self._access = {workload.place.name: Log(workload.envoy.child.output) for workload in workloads.all}
        self._issued = Log(layout.folder / "ca" / "issuance.log")
        self._server: dict[str, int] = defaultdict(int)

    async def look(self) -> list[Seen]:
        """What was seen so far of every identity."""
        await self._dial_ca()
        handshakes = self._handshakes()
        workloads = [Seen(place.name, "handshakes", handshakes[str(place.id)]) for place in self._layout.workloads]
        agent = Seen("the node agent", "certificates it fetched", self._requests_of_agent())
        return [*workloads, agent, Seen("the CA's server", "handshakes", self._server)]

    def _handshakes(self) -> Mapping[str, Mapping[str, int]]:
        """For each SPIFFE ID, the number of connections with each of its serials."""
        connections: dict[str, dict[str, set[tuple[str, JSON]]]] = defaultdict(lambda: defaultdict(set))
        for name, log in self._access.items():
            for line in log.lines():
                if "peer_serial" in line:  # an inbound line: the peer is a client whose certificate was verified
                    connections[str(line["peer"])][str(line["peer_serial"])].add((name, line["connection"]))
        counted = {peer: {serial: len(seen) for serial, seen in of.items()} for peer, of in connections.items()}
        return defaultdict(dict, counted)

    def _requests_of_agent(self) -> Mapping[str, int]:
        requests: dict[str, int] = defaultdict(int)
        for line in self._issued.lines():
            match line:
                case {"attested": {"spiffe_id": caller, "details": {"serial": serial}}} if caller == _AGENT_ID:
                    requests[str(serial)] += 1
        return requests

    async def _dial_ca(self) -> None:
        _, writer = await asyncio.open_connection(LOOPBACK, self._layout.ca_port, ssl=tls_client())
        presented: bytes = writer.get_extra_info("ssl_object").getpeercert(binary_form=True)
        self._server[f"{x509.load_der_x509_certificate(presented).serial_number:x}"] += 1
        writer.close()
