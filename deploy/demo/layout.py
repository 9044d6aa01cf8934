"""Who takes part: identities, user ids, ports and folders of the demo, decided before anything starts."""

from __future__ import annotations

import enum
import os
import random
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from istio_auth.spiffe_id import SpiffeID, TrustDomain

TRUST_DOMAIN = TrustDomain("cluster.local")
AGENT = "node-1"
STRANGER_UID = 60099
_FIRST_UID = 60001
_EPHEMERAL = Path("/proc/sys/net/ipv4/ip_local_port_range")
LOOPBACK = "127.0.0.1"


class Proof(enum.Enum):
    """How the node agent tells workloads apart."""

    UID = "uid"  # by the user id of the process that calls; needs root to start such processes
    SOCKET = "socket"  # by the socket, which stands in a folder that only its owner can enter


@dataclass(frozen=True, slots=True)
class Place:
    """Where one workload is.

    Args:
        name: its name.
        uid: the user it runs as; None is ours.
        agent_socket: the node agent's socket for it.
        folder: its own things.
        ports: the ports on which others reach it, by listener.
    """

    name: str
    uid: int | None
    agent_socket: Path
    folder: Path
    ports: dict[str, int]

    @property
    def id(self) -> SpiffeID:
        """Its identity."""
        return SpiffeID.for_service_account(TRUST_DOMAIN, "demo", self.name)

    @property
    def selector(self) -> str:
        """What the node agent knows it by."""
        return f"socket:{self.name}" if self.uid is None else f"unix:uid:{self.uid}"


@dataclass(frozen=True, slots=True)
class Layout:
    """All places of one run.

    Args:
        folder: everything is below it.
        proof: how workloads are told apart.
        frontend, backend, intruder: the workloads.
        ca_port, ca_health, agent_health: where the daemons listen.
    """

    folder: Path
    proof: Proof
    frontend: Place
    backend: Place
    intruder: Place
    ca_port: int
    ca_health: int
    agent_health: int

    @classmethod
    def made(cls, folder: Path, proof: Proof) -> Layout:
        """The places below a folder, with the folders made as strictly as the proof allows."""
        folder.chmod(0o711 if os.geteuid() == 0 else 0o700)  # root's children may be of other users
        for name in ("ca", "foreign-ca", "agent", "logs", "operator"):
            (folder / name).mkdir(mode=0o700)
        for name in ("sockets", "workloads"):
            (folder / name).mkdir(mode=0o711)
        ports = _free_ports()
        frontend = _place(folder, proof, "frontend", 0, {"web": next(ports)})
        backend = _place(
            folder, proof, "backend", 1, {name: next(ports) for name in ("web", "tcp", "open", "users", "sql")}
        )
        intruder = _place(folder, proof, "intruder", 2, {"web": next(ports)})
        return cls(folder, proof, frontend, backend, intruder, next(ports), next(ports), next(ports))

    @property
    def workloads(self) -> tuple[Place, ...]:
        """All workloads."""
        return self.frontend, self.backend, self.intruder

    @property
    def operator_folder(self) -> Path:
        """Certificates that an operator has issued by hand."""
        return self.folder / "operator"

    @property
    def database(self) -> Path:
        """The folder of the backend's database, which makes it."""
        return self.folder / "sql"

    @property
    def token_header(self) -> Path:
        """The header of a request on behalf of alice; its folder is closed to others."""
        return self.operator_folder / "alice"


def own_folder(path: Path, uid: int | None) -> Path:
    """A new folder that nobody but this user can enter; None is ours."""
    path.mkdir(mode=0o700)
    if uid is not None:
        os.chown(path, uid, uid)
    return path


def _place(folder: Path, proof: Proof, name: str, index: int, ports: dict[str, int]) -> Place:
    uid = _FIRST_UID + index if proof is Proof.UID else None
    sockets, own = folder / "sockets" / name, folder / "workloads" / name
    sockets.mkdir(mode=0o700 if uid is None else 0o711)
    return Place(name, uid, sockets / "agent.sock", own_folder(own, uid), ports)


def _free_ports() -> Iterator[int]:
    """Ports that nobody listens on, outside of the range from which outgoing connections take theirs."""
    first = int(_EPHEMERAL.read_text().split()[0])
    for port in random.sample(range(min(10_000, first // 2), first), 200):
        with socket.socket() as probe:
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                continue
        yield port
