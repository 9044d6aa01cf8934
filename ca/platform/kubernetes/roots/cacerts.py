"""The plugged-in issuer of Kubernetes: the secret `cacerts`, through the API, so that a change needs no restart.

An operator can also mount it as a volume and name the folder; then a change comes with the kubelet's delay of a minute.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping

from ca.platform.kubernetes.api.client import KubernetesAPI, Selection
from ca.platform.kubernetes.api.objects import Object, member, object_of
from ca.platform.kubernetes.api.reflector import Reflector
from ca.platform.kubernetes.api.resources import SECRETS
from istio_auth.errors import ConfigurationError, MissingError, NotReady
from istio_auth.strict_json import JSON

NAME = "cacerts"
Files = Mapping[str, bytes]


class PluggedSecret:
    """The `IssuerSource` over a secret. Lives on one event loop; `files` may be called on any thread.

    Args:
        api: the API server.
        namespace: where the secret is.
        name: the secret's.

    Attributes:
        reflector: watches the secret; whoever supervises the platform runs it.
    """

    def __init__(self, api: KubernetesAPI, namespace: str, *, name: str = NAME) -> None:
        self._api = api
        self._namespace = namespace
        self._name = name
        self._files: Files | None = None
        self.reflector = Reflector(api, SECRETS, _files, selection=Selection(namespace, f"metadata.name={name}"))
        self.reflector.on_change(lambda _: self._take(self.reflector.get(name, namespace=namespace)))

    @property
    def where(self) -> str:
        """The secret."""
        return f"secret {self._namespace}/{self._name}"

    async def read(self) -> None:
        """Look at the secret once, before it is watched.

        Raises:
            AccessRefused, Exhausted, NotReady: it could not be looked at.
        """
        try:
            self._take(_files(await self._api.get(SECRETS, self._name, namespace=self._namespace)))
        except MissingError:
            self._take({})

    def files(self) -> Files:
        """The files in the secret now; empty if it is certain that there is no secret.

        Raises:
            ConfigurationError: a file is no base64.
            NotReady: the secret was not read yet.
        """
        if self._files is None:
            raise NotReady(f"{self.where} was not looked at yet")
        if self._files.get(_DAMAGED):
            raise ConfigurationError(f"{self.where} is damaged: it is no base64")
        return self._files

    def _take(self, found: Files | None) -> None:
        self._files = {} if found is None else found


_DAMAGED = ""  # no key of a secret is empty


def _files(secret: Object) -> Files:
    try:
        return {key: _octets(value) for key, value in object_of(member(secret, "data")).items()}
    except ValueError:
        return {_DAMAGED: b"damaged"}


def _octets(value: JSON) -> bytes:
    if not isinstance(value, str):
        raise ValueError  # noqa: TRY004  # as for a text that is no base64
    return base64.b64decode(value, validate=True)
