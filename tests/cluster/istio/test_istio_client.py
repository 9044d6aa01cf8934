"""Istio's own agent before our CA: its client asks, its cache takes the answer apart, its verification judges it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.cluster.client import Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.istio.build import ISTIO
from tests.cluster.istio.istiod import AUDIENCE, written
from tests.cluster.running_ca import RunningCA, account_id, published_roots, spiffe_id
from tests.integration.daemons.foreign import SERVED_AS, certificates
from tests.interop.go_programs import output


@pytest.fixture
async def ca(control_plane: ControlPlane, namespace: str, tmp_path: Path) -> AsyncIterator[RunningCA]:
    async with RunningCA(control_plane.kubeconfig, tmp_path / "ca", namespace, managed=[namespace]) as ca:
        yield ca


class IstiosAgent:
    """What of Istio's agent speaks to a CA, in a folder of its own; run anew for each answer."""

    def __init__(self, ca: RunningCA, folder: Path, namespace: str, roots: str) -> None:
        self._address, self._namespace = f"127.0.0.1:{ca._port}", namespace
        self._folder = folder
        self._roots = written(folder / "roots.pem", roots)

    async def answer(self, token: str, *more: str) -> dict[str, str]:
        """What it makes of the CA's answer."""
        said = await output(
            ISTIO.programs() / "citadel",
            *("-address", self._address, "-name", SERVED_AS, "-roots", self._roots),
            *("-token", written(self._folder / "token", token), "-namespace", self._namespace, "-account", "web"),
            *("-identity", account_id(self._namespace, "web"), *more),
            folder=self._folder,
        )
        found: dict[str, str] = json.loads(said)
        return found


@pytest.mark.parametrize("key", [(), ("-algorithm", "ECDSA")], ids=["rsa", "ecdsa"])
async def test_istios_own_client_takes_our_certificate_and_hears_refusals(
    ca: RunningCA, admin: Client, namespace: str, tmp_path: Path, key: tuple[str, ...]
) -> None:
    await admin.create_service_account(namespace, "web")
    roots = await published_roots(admin, namespace)
    client = IstiosAgent(ca, tmp_path, namespace, roots)
    wrong = await admin.service_account_token(namespace, "web", audiences=["somebody-else"])
    assert "code = Unauthenticated desc = request authenticate failure" in (await client.answer(wrong, *key))["error"]
    good = await admin.service_account_token(namespace, "web", audiences=[AUDIENCE])
    answer = await client.answer(good, *key)
    assert (answer.get("error"), answer.get("verified")) == (None, "yes")
    assert answer["root"].strip() == roots.strip()
    chain = certificates(answer["chain"])
    assert spiffe_id(chain[0]) == account_id(namespace, "web")
    assert chain[-1] == certificates(roots)[-1]
