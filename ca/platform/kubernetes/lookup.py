"""Looks up the data of a secret or ConfigMap for a person, with that person's own rights."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Mapping
from pathlib import Path

from ca.platform.kubernetes.api.connection import connected
from ca.platform.kubernetes.api.objects import object_of
from ca.platform.kubernetes.api.resources import CONFIG_MAPS, SECRETS
from istio_auth.errors import ConfigurationError, MissingError

_USUAL = Path(".kube/config")


def look_up(kind: str, name: str, *, namespace: str, kubeconfig: Path | None) -> Mapping[str, bytes]:
    """The data of an object, by key. Blocks.

    Args:
        kind: `secret` or `configmap`.
        name: its name.
        namespace: where it is.
        kubeconfig: how to reach the API server; by default the user's own, or the credentials of the pod.

    Raises:
        ConfigurationError: there is no such object, or no way to the API server is known.
        NotReady: it could not be looked at.
    """
    if kubeconfig is None and (usual := Path.home() / _USUAL).exists():
        kubeconfig = usual
    return asyncio.run(_look_up(kind, name, namespace, kubeconfig))


async def _look_up(kind: str, name: str, namespace: str, kubeconfig: Path | None) -> Mapping[str, bytes]:
    async with connected(kubeconfig) as api:
        try:
            found = await api.get(SECRETS if kind == "secret" else CONFIG_MAPS, name, namespace=namespace)
        except MissingError as error:
            raise ConfigurationError(f"there is no {kind} {name} in the namespace {namespace}: {error}") from error
    data = object_of(found.get("data"))
    if kind != "secret":
        return {key: str(value).encode() for key, value in data.items()}
    try:
        return {key: base64.b64decode(str(value), validate=True) for key, value in data.items()}
    except ValueError:
        raise ConfigurationError(f"the {kind} {name} is damaged: it is no base64") from None
