"""The AuthorityStore of Kubernetes: the state in the secret `istio-ca-secret`, where Istio's own CA keeps its root.

A write replaces exactly the resource version that was compared, so when any number of replicas start together, one
makes the root and the others find it. "Not there" needs two answers: there is no such secret, and its namespace exists;
a missing namespace is no reason to make a root.

Its methods block, on threads, while the event loop talks to the API server.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Coroutine
from datetime import timedelta
from typing import TypeVar

from ca.authority.istio_secret import read_state, write_state
from ca.authority.state import AuthorityState
from ca.authority.store import AuthorityStore, version_of
from ca.platform.kubernetes.api.client import KubernetesAPI
from ca.platform.kubernetes.api.objects import Object, member, object_of, text
from ca.platform.kubernetes.api.refusals import ObjectRefused
from ca.platform.kubernetes.api.resources import NAMESPACES, SECRETS
from istio_auth.bundle import JSON
from istio_auth.errors import ConfigurationError, ConflictError, IstioAuthError, MissingError, NotReady
from istio_auth.spiffe_id import TrustDomain

NAME = "istio-ca-secret"
TYPE = "istio.io/ca-root"
_DEADLINE = timedelta(seconds=30)
_T = TypeVar("_T")


class SecretAuthorityStore(AuthorityStore):
    """Keeps the state in a secret. Made on the event loop of its `api`, and called on threads.

    Args:
        api: the API server.
        namespace: where the secret is.
        trust_domain: whose authority it must be; the secret of Istio's own CA may name none.
        deadline: how long a call may take.
        name: the secret's.
    """

    def __init__(
        self,
        api: KubernetesAPI,
        namespace: str,
        trust_domain: TrustDomain,
        *,
        deadline: timedelta = _DEADLINE,
        name: str = NAME,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._trust_domain = trust_domain
        self._deadline = deadline
        self._name = name
        self._loop = asyncio.get_running_loop()

    @property
    def where(self) -> str:
        """The secret."""
        return f"secret {self._namespace}/{self._name}"

    def _read(self) -> bytes | None:
        found = self._on_loop(self._look())
        return None if found is None else self._state(found).to_json()

    def _write(self, content: bytes, expected: str | None) -> None:
        self._on_loop(self._swap(AuthorityState.from_json(content), expected))

    async def _look(self) -> Object | None:
        """The secret; None if it is certain that there is none."""
        try:
            return await self._api.get(SECRETS, self._name, namespace=self._namespace)
        except MissingError:
            pass
        try:
            await self._api.get(NAMESPACES, self._namespace)
        except MissingError:
            raise ConfigurationError(f"{self.where}: there is no namespace {self._namespace}") from None
        return None

    async def _swap(self, state: AuthorityState, expected: str | None) -> None:
        found = await self._look()
        stored = None if found is None else version_of(self._state(found).to_json())
        if stored != expected:
            raise ConflictError(f"{self.where} is not what it was")
        try:
            if found is None:
                await self._api.create(SECRETS, self._new(state), namespace=self._namespace)
            else:
                await self._api.replace(SECRETS, self._replaced(found, state))
        except MissingError as error:
            raise ConflictError(f"{self.where} is gone, or its namespace: {error}") from error
        except ObjectRefused as error:
            raise ConfigurationError(f"{self.where} can not be written: {error}") from error

    def _new(self, state: AuthorityState) -> Object:
        metadata: Object = {"name": self._name, "namespace": self._namespace}
        return {"metadata": metadata, "type": TYPE, "data": _encoded(state)}

    def _replaced(self, found: Object, state: AuthorityState) -> Object:
        """The secret in the version that was read, with another state; everything else that others put there stays."""
        if found.get("immutable"):
            raise ConfigurationError(f"{self.where} is immutable: the state of the authority can not change in it")
        return found | {"data": object_of(found.get("data")) | _encoded(state)}

    def _state(self, secret: Object) -> AuthorityState:
        if (kind := text(secret, "type")) != TYPE:
            raise ConfigurationError(f"{self.where} is of type {kind}, not {TYPE}: it is not the authority's")
        try:
            data = {key: base64.b64decode(str(value)) for key, value in object_of(member(secret, "data")).items()}
        except binascii.Error:
            raise ConfigurationError(f"{self.where} is damaged: it is no base64") from None
        try:
            return read_state(data, self._trust_domain)
        except ConfigurationError as error:
            raise ConfigurationError(f"{self.where}: {error}") from error

    def _on_loop(self, work: Coroutine[None, None, _T]) -> _T:
        """Run a coroutine on the event loop, and wait for it."""
        if _running_loop() is self._loop:
            work.close()
            raise IstioAuthError("the store of the authority blocks: call it on a thread, not on the event loop")
        try:
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        except RuntimeError as error:
            work.close()
            raise NotReady(f"{self.where} can not be reached: the CA has stopped") from error
        try:
            return future.result(self._deadline.total_seconds())
        except TimeoutError as error:
            future.cancel()
            raise NotReady(f"{self.where}: no answer within {self._deadline.total_seconds():g} s") from error


def _encoded(state: AuthorityState) -> dict[str, JSON]:
    return {key: base64.b64encode(value).decode() for key, value in write_state(state).items()}


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
