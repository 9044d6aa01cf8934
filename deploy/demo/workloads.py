"""The three workloads: their applications, and their sidecars as `node-agent sidecar-config` writes them.

frontend   calls the backend, over HTTP and TCP; lets in the other two
backend    lets in the frontend and nobody else, at one port only with a token, at another to PostgreSQL; calls the
           frontend
intruder   has a valid identity, but nobody at the backend has heard of it; also poses as a backend
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from deploy.demo.application import Application, application
from deploy.demo.envoy import Envoy, start_envoy
from deploy.demo.layout import LOOPBACK, Layout, Place
from deploy.demo.postgresql import Database
from deploy.demo.processes import Processes, program, run
from deploy.demo.tokens import Issuer, bearing
from deploy.demo.toml import table
from istio_auth.spiffe_id import SpiffeID

_CONNECTION_AGE = "1s"  # so that a minute shows many handshakes


@dataclass(frozen=True, slots=True)
class Workload:
    """One workload that runs.

    Args:
        place: who and where it is.
        application: what it runs.
        envoy: its sidecar.
        outbound: where its application finds others, by their name.
    """

    place: Place
    application: Application
    envoy: Envoy
    outbound: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Workloads:
    """All of them, the issuer of the tokens that the backend takes, and its database, if there is one."""

    frontend: Workload
    backend: Workload
    intruder: Workload
    issuer: Issuer
    database: Database | None

    @property
    def all(self) -> tuple[Workload, ...]:
        """All of them."""
        return self.frontend, self.backend, self.intruder


@asynccontextmanager
async def running_workloads(
    layout: Layout, processes: Processes, database: Database | None
) -> AsyncIterator[Workloads]:
    """Start all workloads; their sidecars end with the processes."""
    async with AsyncExitStack() as stack:
        applications = {
            place.name: await stack.enter_async_context(application(place.name)) for place in layout.workloads
        }
        files, issuer = _sidecar_files(layout, applications, database), Issuer()
        _token_policy(layout).write_text(issuer.policy())
        layout.token_header.write_text(
            "".join(f"{name}: {value}\n" for name, value in bearing(issuer.token("alice")).items())
        )
        frontend, backend, intruder = await asyncio.gather(
            *(_start(place, applications[place.name], files[place.name], processes) for place in layout.workloads)
        )
        yield Workloads(frontend, backend, intruder, issuer, database)


async def _start(place: Place, app: Application, sidecar: str, processes: Processes) -> Workload:
    file = place.folder / "sidecar.toml"
    file.write_text(sidecar)
    bootstrap = json.loads(await run([program("node-agent"), "sidecar-config", "--file", file]))
    envoy = await start_envoy(processes, f"envoy-{place.name}", bootstrap, place.folder, uid=place.uid)
    await envoy.wait_ready()
    ports = {
        name.removeprefix("outbound_"): port
        for name, port in (await envoy.ports()).items()
        if name.startswith("outbound_")
    }
    return Workload(place, app, envoy, ports)


def _sidecar_files(
    layout: Layout, applications: Mapping[str, Application], database: Database | None
) -> dict[str, str]:
    frontend, backend, intruder = layout.workloads
    sql = [] if database is None else [_upstream("backend-sql", backend.ports["sql"], backend.id, protocol="tcp")]
    web, raw = applications["backend"].http_port, applications["backend"].tcp_port
    return {
        "frontend": _sidecar(
            frontend,
            _inbound(frontend, "web", applications["frontend"].http_port, [backend.id, intruder.id]),
            *sql,
            _upstream("backend", backend.ports["web"], backend.id),
            _upstream("backend-tcp", backend.ports["tcp"], backend.id, protocol="tcp"),
            _upstream("backend-open", backend.ports["open"], backend.id),
            _upstream("backend-users", backend.ports["users"], backend.id),
            _upstream("impostor", intruder.ports["web"], backend.id),
            _upstream("intruder", intruder.ports["web"], intruder.id),
        ),
        "backend": _sidecar(
            backend,
            _inbound(backend, "web", web, [frontend.id]),
            _inbound(backend, "tcp", raw, [frontend.id], protocol="tcp"),
            _inbound(backend, "open", web, [frontend.id], mode="PERMISSIVE"),
            _inbound(backend, "users", web, [frontend.id], require_token=True),
            *([_inbound(backend, "sql", database.socket, [frontend.id], protocol="tcp")] if database else []),
            _upstream("frontend", frontend.ports["web"], frontend.id),
            request_authentication=str(_token_policy(layout)),
        ),
        "intruder": _sidecar(
            intruder,
            _inbound(intruder, "web", applications["intruder"].http_port, [frontend.id]),
            *sql,
            _upstream("backend", backend.ports["web"], backend.id),
            _upstream("backend-tcp", backend.ports["tcp"], backend.id, protocol="tcp"),
            _upstream("frontend", frontend.ports["web"], frontend.id),
        ),
    }


def _token_policy(layout: Layout) -> Path:
    return layout.backend.folder / "tokens.yaml"


def _sidecar(place: Place, *tables: str, **settings: str) -> str:
    head = table(
        id=str(place.id),
        agent_socket=str(place.agent_socket),
        admin=f"unix:{place.folder / 'admin.sock'}",
        max_connection_age=_CONNECTION_AGE,
        **settings,
    )
    return head + "".join(tables)


def _inbound(
    place: Place,
    name: str,
    application: int | Path,
    allow: Sequence[SpiffeID],
    *,
    protocol: str = "http",
    mode: str = "STRICT",
    require_token: bool = False,
) -> str:
    return table(
        "[inbound]",
        name=name,
        listen=f"{LOOPBACK}:{place.ports[name]}",
        forward=f"unix:{application}" if isinstance(application, Path) else f"{LOOPBACK}:{application}",
        protocol=protocol,
        mode=mode,
        allow=[str(caller) for caller in allow],
        require_token=require_token,
    )


def _upstream(name: str, port: int, expect: SpiffeID, *, protocol: str = "http") -> str:
    return table(
        "[upstream]",
        name=name,
        listen=f"{LOOPBACK}:0",
        connect=f"{LOOPBACK}:{port}",
        protocol=protocol,
        expect=[str(expect)],
    )
