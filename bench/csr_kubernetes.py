"""The CAs that `bench.csr` measures on Kubernetes: their callers are pods, and show tokens.

review    the API server is asked about the token of every call
cached    its answer is good for a few seconds, as it is by default
offline   the token is verified by the published keys and what is watched, and nobody is asked
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from bench.cluster_ca import NAMESPACE, MeasuredCA, Settings, at_once, measured_ca
from bench.csr_server import WEB
from ca.controller.namespaces import OVERRIDE_LABEL
from tests.cluster.client import Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.waiting import appears

MODES: dict[str, Settings] = {
    "review": {"review_lasts": "1ms"},  # shorter than any call
    "cached": {},
    "offline": {"verification": "offline"},
}
MOST_CALLERS = 64
_AUDIENCE = "istio-ca"


async def make_pods(plane: ControlPlane, folder: Path) -> None:
    """Write a token for each caller, every one that of a pod of its own."""
    async with plane.admin() as admin:
        await admin.create_namespace(NAMESPACE, labels={OVERRIDE_LABEL: "true"})  # so that the roots are told there
        await admin.create_service_account("default", WEB.path.rpartition("/")[2])
        await admin.create_node("node-1")
        tokens = await at_once([_token(admin, f"web-{number}") for number in range(MOST_CALLERS)])
    (folder / "tokens.json").write_text(json.dumps(tokens))


@asynccontextmanager
async def token_ca(plane: ControlPlane, mode: str, folder: Path) -> AsyncIterator[MeasuredCA]:
    """A CA that verifies tokens in one of the ways, with its roots in a file for its callers."""
    settings: Settings = {"sign_requests": False}
    async with measured_ca(plane, folder / mode, settings=settings, tokens=MODES[mode]) as ca:
        async with plane.admin() as admin:
            secret = await appears(admin, f"/api/v1/namespaces/{NAMESPACE}/configmaps/istio-ca-root-cert")
        (folder / "token-roots.pem").write_text(secret["data"]["root-cert.pem"])
        yield ca


def check(ca: MeasuredCA, mode: str, calls: float) -> None:
    """Make sure that tokens were verified in the way that was measured, a few at the beginning aside."""
    reviewed, alone = (ca.metric(f"istio_auth_ca_tokens_{way}") for way in ("reviewed", "verified_offline"))
    wanted = {"review": reviewed >= calls, "cached": not alone, "offline": alone >= calls}[mode]
    assert wanted, f"{mode}: {calls} calls, {reviewed} reviews, {alone} verified without"


async def _token(admin: Client, name: str) -> str:
    pod = await admin.create_pod("default", name, service_account="web", node="node-1")
    return await admin.service_account_token("default", "web", audiences=[_AUDIENCE], pod=pod)
