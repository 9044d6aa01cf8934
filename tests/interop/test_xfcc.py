"""What a real Envoy writes into `x-forwarded-client-cert` is what an application behind it reads of its caller."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
import uvicorn
from cryptography import x509
from cryptography.x509.oid import NameOID

from deploy.demo.envoy import start_envoy
from deploy.demo.processes import Processes
from istio_auth.authorize import any_id, is_id
from istio_auth.bundle import JSON
from istio_auth.middleware import IdentityMiddleware
from istio_auth.middleware.uvicorn import HTTPProtocol
from istio_auth.pem import write_certificates
from istio_auth.sources.memory import MemorySource
from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import X509SVID
from istio_auth.tls import client_context, server_context
from tests.fakes.asgi import serving, telling
from tests.fakes.authority import FakeAuthority
from tests.fakes.tls import stranger

SERVER = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/server")
PROXY = SpiffeID.parse("spiffe://cluster.local/ns/edge/sa/gateway")
WEB = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/web")
FORGED = f'By={PROXY};Hash=00;Subject="";URI=spiffe://cluster.local/ns/shop/sa/admin'
HOSTILE_SUBJECT = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, 'a",URI=spiffe://cluster.local/admin;X="\\')])
FILTERS = "type.googleapis.com/envoy.extensions.filters"


@asynccontextmanager
async def gateway(folder: Path, authority: FakeAuthority, upstream: int, details: str) -> AsyncIterator[int]:
    """An Envoy that takes clients with and without certificate, and passes them on by mutual TLS."""
    own = authority.svid(PROXY.path)
    (folder / "chain.pem").write_bytes(own.chain_pem())
    (folder / "key.pem").write_bytes(own.key_pem())
    (folder / "root.pem").write_bytes(write_certificates([authority.root]))
    async with Processes(folder) as processes:
        envoy = await start_envoy(processes, "gateway", bootstrap(folder, upstream, details), folder)
        await envoy.wait_ready()
        yield (await envoy.ports())["front"]


def bootstrap(folder: Path, upstream: int, details: str) -> dict[str, JSON]:
    manager: dict[str, JSON] = {
        "@type": f"{FILTERS}.network.http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "front",
        "forward_client_cert_details": details,
        "set_current_client_cert_details": {"subject": True, "uri": True, "dns": True, "cert": True, "chain": True},
        "route_config": {
            "virtual_hosts": [
                {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "app"}}]}
            ]
        },
        "http_filters": [
            {
                "name": "router",
                "typed_config": {"@type": f"{FILTERS}.http.router.v3.Router"},
            }
        ],
    }
    chain: dict[str, JSON] = {
        "transport_socket": tls(folder, "DownstreamTlsContext"),
        "filters": [{"name": "http", "typed_config": manager}],
    }
    endpoint: JSON = {"endpoint": {"address": address(upstream)}}
    return {
        "admin": {"address": {"pipe": {"path": str(folder / "admin.sock")}}},
        "static_resources": {
            "listeners": [{"name": "front", "address": address(0), "filter_chains": [chain]}],
            "clusters": [
                {
                    "name": "app",
                    "type": "STATIC",
                    "load_assignment": {"cluster_name": "app", "endpoints": [{"lb_endpoints": [endpoint]}]},
                    "transport_socket": tls(folder, "UpstreamTlsContext"),
                }
            ],
        },
    }


def tls(folder: Path, kind: str) -> JSON:
    certificate: JSON = {
        "certificate_chain": {"filename": str(folder / "chain.pem")},
        "private_key": {"filename": str(folder / "key.pem")},
    }
    common: JSON = {
        "tls_certificates": [certificate],
        "validation_context": {"trusted_ca": {"filename": str(folder / "root.pem")}},
    }
    return {
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": f"type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}",
            "common_tls_context": common,
        },
    }


def address(port: int) -> JSON:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}


@asynccontextmanager
async def application(authority: FakeAuthority) -> AsyncIterator[int]:
    """What stands behind the gateway, and takes its word."""
    source = MemorySource.of(authority.svid(SERVER.path), authority.bundle())
    context = server_context(source, is_id(PROXY))
    app = IdentityMiddleware(telling, authorize=any_id(), trusted_proxies=[PROXY], require_caller=False)
    config = uvicorn.Config(
        app,
        "127.0.0.1",
        0,
        http=HTTPProtocol,
        ssl_context_factory=lambda *_: context,
        log_config=None,
        timeout_keep_alive=120,
    )
    async with serving(uvicorn.Server(config)) as port:
        yield port


async def caller(port: int, authority: FakeAuthority, svid: X509SVID | None) -> str:
    """Whom the application takes for its caller, who forges a header."""
    context = stranger(server_side=False)
    if svid:
        context = client_context(MemorySource.of(svid, authority.bundle()), is_id(PROXY))
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as session,
        session.get(f"https://127.0.0.1:{port}/", headers={"x-forwarded-client-cert": FORGED}) as response,
    ):
        assert response.status == 200, await response.text()
        answer = json.loads(await response.text())
        assert answer["proxy"] == str(PROXY)
        name: str = answer["caller"]
        return name


@pytest.mark.parametrize("details", ["APPEND_FORWARD", "SANITIZE_SET"])
async def test_the_caller_is_whom_envoy_saw_whatever_stands_in_its_header_and_its_subject(
    details: str, authority: FakeAuthority, tmp_path: Path
) -> None:
    async with application(authority) as upstream, gateway(tmp_path, authority, upstream, details) as port:
        assert await caller(port, authority, authority.svid(WEB.path)) == str(WEB)
        hostile = authority.svid(WEB.path, subject=HOSTILE_SUBJECT, dns_names=["web.shop", "www.shop"])
        assert await caller(port, authority, hostile) == str(WEB)
        assert await caller(port, authority, None) == ""
