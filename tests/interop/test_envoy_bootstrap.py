"""Envoy takes every bootstrap that a spec can become (`envoy --mode validate`)."""

from __future__ import annotations

import asyncio
import itertools
import json
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.demo.envoy import envoy_binary
from istio_auth.envoy.bootstrap import sidecar_bootstrap
from istio_auth.envoy.endpoint import Endpoint, HostPort, UnixPath
from istio_auth.envoy.spec import Inbound, Mode, Protocol, SidecarSpec, Upstream
from istio_auth.envoy.token_rules import TokenRules
from istio_auth.pem import write_certificates
from istio_auth.policy.jwt_rule import ClaimToHeader, JWTHeader, JWTRule
from istio_auth.spiffe_id import SpiffeID
from tests.fakes.authority import FakeAuthority
from tests.fakes.token_issuer import TokenIssuer
from tests.interop.mesh import BACKEND, FRONTEND, INTRUDER

APPLICATION = HostPort("127.0.0.1", 8080)
PARTNER = SpiffeID.parse("spiffe://partner.test/shop")
EMPTY = SidecarSpec(BACKEND, UnixPath("/run/istio-auth/agent.sock"), (Inbound(HostPort("0.0.0.0", 8443), APPLICATION),))
PLACES: tuple[Endpoint, ...] = (HostPort("db.demo.internal", 1), HostPort("::1", 2), UnixPath("/run/db.sock"))
KEYS = TokenIssuer(place=7).jwks()
TOKENS = TokenRules(
    (
        JWTRule(issuer="https://a.test", jwks=KEYS, audiences=("web",), output_payload_to_header="x-payload"),
        JWTRule(
            issuer="https://b.test/",
            jwks_uri="https://keys.b.test/keys?of=b",
            from_headers=(JWTHeader("X-Token", "Token (b) "), JWTHeader("X-Bare")),
            from_params=("token of é",),
            from_cookies=("session.$",),
            output_claim_to_headers=(ClaimToHeader("X_Sub", "a.b"), ClaimToHeader("x-a-b-c-d", "c")),
            space_delimited_claims=("roles",),
        ),
        JWTRule(issuer="https://c.test", jwks_uri="https://[::1]:8443/"),
        JWTRule(jwks_uri="http://d.test"),
        JWTRule(issuer="https://e.test"),
    ),
    "CA_FILE",
)
OPEN = Inbound(HostPort("0.0.0.0", 1), APPLICATION)
ANYBODY = (PARTNER, BACKEND.trust_domain.id)
UPSTREAMS = tuple(
    Upstream(f"up-{protocol.value}", HostPort("127.0.0.1", 9000 + index), connect, (INTRUDER, FRONTEND), protocol)
    for index, (protocol, connect) in enumerate(zip(Protocol, PLACES, strict=True))
)


async def validate(spec: SidecarSpec, folder: Path) -> None:
    file = folder / "envoy.json"
    (folder / "ca.pem").write_bytes(write_certificates((FakeAuthority().certificate,)))
    file.write_text(json.dumps(sidecar_bootstrap(spec)).replace("CA_FILE", str(folder / "ca.pem")))
    process = await asyncio.create_subprocess_exec(
        envoy_binary(), "--mode", "validate", "-c", str(file), "--log-level", "warning",
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
    )  # fmt: skip
    said, _ = await process.communicate()
    assert process.returncode == 0, said.decode()
    assert "deprecated" not in said.decode().lower()


@pytest.mark.parametrize("with_upstreams", [False, True], ids=["alone", "upstreams"])
@pytest.mark.parametrize(("mode", "protocol"), list(itertools.product(Mode, Protocol)), ids=lambda one: one.value)
async def test_every_mode_and_protocol(mode: Mode, protocol: Protocol, with_upstreams: bool, tmp_path: Path) -> None:
    allow = () if mode is Mode.DISABLE else (FRONTEND, INTRUDER)
    inbound = Inbound(HostPort("0.0.0.0", 8443), APPLICATION, protocol, mode, allow)
    await validate(replace(EMPTY, inbound=(inbound,), upstreams=UPSTREAMS if with_upstreams else ()), tmp_path)


@pytest.mark.parametrize(
    "spec",
    [
        pytest.param(EMPTY, id="nobody-allowed"),
        pytest.param(replace(EMPTY, inbound=(), upstreams=UPSTREAMS), id="upstreams-only"),
        pytest.param(replace(EMPTY, certificate=str(BACKEND)), id="certificate-by-id"),
        pytest.param(replace(EMPTY, admin=HostPort("::1", 15000)), id="admin-ipv6"),
        pytest.param(replace(EMPTY, admin=UnixPath("/run/admin.sock")), id="admin-unix"),
        pytest.param(
            replace(EMPTY, inbound=tuple(Inbound(HostPort("::", port), HostPort("::1", 9)) for port in (1, 2))),
            id="ipv6-and-several",
        ),
        pytest.param(
            replace(EMPTY, inbound=(Inbound(UnixPath("/run/in.sock"), UnixPath("/run/app.sock"), name="unix"),)),
            id="unix",
        ),
        pytest.param(
            replace(EMPTY, inbound=(Inbound(HostPort("0.0.0.0", 1), APPLICATION, allow=ANYBODY),)),
            id="federation",
        ),
        pytest.param(replace(EMPTY, tokens=TOKENS), id="tokens"),
        pytest.param(replace(EMPTY, inbound=(replace(OPEN, require_token=True),), tokens=TOKENS), id="token-required"),
        pytest.param(
            replace(EMPTY, inbound=(replace(OPEN, mode=Mode.PERMISSIVE, protocol=Protocol.HTTP2),), tokens=TOKENS),
            id="tokens-permissive",
        ),
    ],
)  # fmt: skip
async def test_every_other_form(spec: SidecarSpec, tmp_path: Path) -> None:
    await validate(spec, tmp_path)
