"""Health, readiness and metrics, over real sockets."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import aiohttp
import pytest
from prometheus_client import CollectorRegistry, Counter

from istio_auth.daemon.http import HealthServer
from istio_auth.daemon.readiness import Readiness
from istio_auth.errors import NotReady
from istio_auth.host_port import HostPort
from tests.fakes.tcp import closed_port

LOCAL = HostPort("127.0.0.1", 0)


async def get(server: HealthServer, path: str, **headers: str) -> tuple[int, str, str]:
    async with (
        aiohttp.ClientSession() as session,
        session.get(f"http://{server.address}{path}", headers=headers) as answer,
    ):
        return answer.status, await answer.text(), answer.headers["Content-Type"]


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_readiness_lists_what_is_wrong_and_health_does_not_care(host: str) -> None:
    readiness = Readiness()
    readiness.add("issuance log", lambda: "disk full")
    async with HealthServer(HostPort(host, 0), readiness, CollectorRegistry()) as server:
        status, text, _ = await get(server, "/readyz")
        assert status == 503
        assert text.splitlines() == ["daemon: starting", "issuance log: disk full"]
        assert (await get(server, "/healthz"))[0] == 200
        readiness.add("issuance log", lambda: None)
        readiness.started()
        assert (await get(server, "/readyz"))[0] == 200
        assert (await get(server, "/elsewhere"))[0] == 404


async def test_what_is_degraded_is_told_and_takes_no_readiness_away() -> None:
    readiness = Readiness()
    readiness.started()
    async with HealthServer(LOCAL, readiness, CollectorRegistry()) as server:
        assert (await get(server, "/readyz"))[:2] == (200, "ok\n")
        readiness.mention("secrets", lambda: "two are left alone")
        status, text, _ = await get(server, "/readyz")
        assert status == 200
        assert text.splitlines() == ["ok", "degraded: secrets: two are left alone"]


async def test_metrics_are_those_of_the_registry_in_the_format_asked_for() -> None:
    registry = CollectorRegistry()
    Counter("issued", "certificates", registry=registry).inc(3)
    async with HealthServer(LOCAL, Readiness(), registry) as server:
        status, text, kind = await get(server, "/metrics")
        assert (status, kind.split(";")[0]) == (200, "text/plain")
        assert "issued_total 3.0" in text
        _, text, kind = await get(server, "/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert kind.split(";")[0] == "application/openmetrics-text"
        assert text.endswith("# EOF\n")


@pytest.mark.parametrize("said", [b"", b"GET /healthz HTTP/1.1\r\n", b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"])
async def test_a_silent_caller_is_sent_away(said: bytes) -> None:
    async with HealthServer(LOCAL, Readiness(), CollectorRegistry(), patience=timedelta(seconds=0.2)) as server:
        reader, writer = await asyncio.open_connection(server.address.host, server.address.port)
        writer.write(said)
        async with asyncio.timeout(60):
            await reader.read()  # to the end of the connection
        writer.close()


async def test_a_port_in_use_is_refused_and_free_again_after_the_end() -> None:
    address = HostPort(LOCAL.host, closed_port())
    async with HealthServer(address, Readiness(), CollectorRegistry()) as first:
        with pytest.raises(NotReady):
            await HealthServer(first.address, Readiness(), CollectorRegistry()).__aenter__()
    async with HealthServer(first.address, Readiness(), CollectorRegistry()) as second:
        assert second.address == first.address == address
