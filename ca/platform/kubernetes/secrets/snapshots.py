"""The Snapshots of the API server: the watched service accounts, namespaces and secrets of our type.

No step takes longer for ten thousand service accounts than for one, except after a change of a namespace: then
subscribers are told of each of its accounts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from typing import NoReturn

from ca.controller.snapshot import SECRET_PREFIX, AccountKey, Namespace, ServiceAccount, WorkloadSecret, secret_name
from ca.platform.kubernetes.api.client import KubernetesAPI
from ca.platform.kubernetes.api.objects import Key, Object, member, object_of, text
from ca.platform.kubernetes.api.reflector import Reflector
from ca.platform.kubernetes.api.resources import NAMESPACES, SECRETS, SERVICE_ACCOUNTS
from ca.platform.kubernetes.secrets.secrets import OUR_TYPE, WorkloadSecrets


def read_account(item: Object) -> ServiceAccount:
    """The facts about a service account."""
    metadata = object_of(item.get("metadata"))
    return ServiceAccount(
        text(metadata, "namespace"), text(metadata, "name"), text(metadata, "uid"), "deletionTimestamp" in metadata
    )


def read_namespace(item: Object) -> Namespace:
    """The facts about a namespace."""
    labels = object_of(member(item, "metadata", "labels"))
    terminating = text(item, "status", "phase") == "Terminating" or bool(text(item, "metadata", "deletionTimestamp"))
    return Namespace(
        text(item, "metadata", "name"),
        {name: value for name, value in labels.items() if isinstance(value, str)},
        terminating,
    )


class ClusterSnapshots:
    """What the API server holds. Lives on one event loop.

    Args:
        accounts: the service accounts.
        namespaces: the namespaces.
        secrets: the secrets of our type.
    """

    def __init__(
        self,
        accounts: Reflector[ServiceAccount],
        namespaces: Reflector[Namespace],
        secrets: Reflector[WorkloadSecret],
    ) -> None:
        self._accounts = accounts
        self._namespaces = namespaces
        self._secrets = secrets
        self._known = {key.name: namespace for key, namespace in namespaces.facts.items()}
        self._names: dict[str, set[str]] = {}  # by namespace, those with an account or a secret
        self._subscribers: dict[object, Callable[[AccountKey], None]] = {}
        accounts.on_change(self._account_changed)
        namespaces.on_change(self._namespace_changed)
        secrets.on_change(self._secret_changed)
        for key in accounts.facts:  # they may have been watched for others already
            self._account_changed(key)
        for key in secrets.facts:
            self._secret_changed(key)

    @classmethod
    def over(cls, api: KubernetesAPI, secrets: WorkloadSecrets) -> ClusterSnapshots:
        """The snapshots of an API server, with reflectors of their own, which `run` runs."""
        return cls(
            Reflector(api, SERVICE_ACCOUNTS, read_account),
            Reflector(api, NAMESPACES, read_namespace),
            Reflector(api, SECRETS, secrets.decode, selection=OUR_TYPE),
        )

    async def run(self) -> NoReturn:
        """Watch all three, for ever."""
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._accounts.run())
            tasks.create_task(self._namespaces.run())
            await self._secrets.run()

    async def run_secrets(self) -> NoReturn:
        """Watch only the secrets, for ever, if somebody else runs the other two reflectors."""
        await self._secrets.run()

    def account(self, key: AccountKey) -> ServiceAccount | None:
        """The service account (see `Snapshots`)."""
        return self._accounts.get(key[1], namespace=key[0])

    def secret(self, key: AccountKey) -> WorkloadSecret | None:
        """Its secret (see `Snapshots`)."""
        return self._secrets.get(secret_name(key[1]), namespace=key[0])

    def namespace(self, name: str) -> Namespace | None:
        """The namespace (see `Snapshots`)."""
        return self._namespaces.get(name)

    def keys(self) -> Iterable[AccountKey]:
        """All service accounts, including those of which only the secret is left (see `Snapshots`)."""
        return ((namespace, name) for namespace, names in self._names.items() for name in names)

    def subscribe(self, changed: Callable[[AccountKey], None]) -> Callable[[], None]:
        """Call `changed` after each change (see `Snapshots`)."""
        key = object()
        self._subscribers[key] = changed
        return lambda: self._subscribers.pop(key, None) and None

    async def until_synced(self) -> None:
        """Return when all three were listed."""
        for reflector in (self._accounts, self._namespaces, self._secrets):
            await reflector.until_synced()

    def _account_changed(self, key: Key) -> None:
        self._tell(key.namespace, key.name)

    def _secret_changed(self, key: Key) -> None:
        if key.name.startswith(SECRET_PREFIX):
            self._tell(key.namespace, key.name.removeprefix(SECRET_PREFIX))

    def _namespace_changed(self, key: Key) -> None:
        namespace = self._namespaces.get(key.name)
        if self._known.get(key.name) == namespace:
            return  # an annotation changed, or something else that no decision depends on
        if namespace is None:
            del self._known[key.name]
        else:
            self._known[key.name] = namespace
        for name in tuple(self._names.get(key.name, ())):
            self._tell(key.name, name)

    def _tell(self, namespace: str, name: str) -> None:
        key = namespace, name
        names = self._names.setdefault(namespace, set())
        if self.account(key) is None and self.secret(key) is None:
            names.discard(name)
            if not names:
                del self._names[namespace]
        else:
            names.add(name)
        for changed in tuple(self._subscribers.values()):
            changed(key)
