"""The Snapshots and SecretSink ports over a cluster in memory, which is late, slow, broken or contested on request."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import count

from ca.controller.action import Action, Kind, Reason, Subject
from ca.controller.material import CHAIN, KEY, ROOT, Damaged, read_material
from ca.controller.sink import Content
from ca.controller.snapshot import (
    SECRET_TYPE,
    AccountKey,
    Namespace,
    ServiceAccount,
    WorkloadSecret,
    secret_name,
)
from istio_auth.bundle import TrustBundle
from istio_auth.errors import ConflictError

Data = dict[str, bytes]
EMPTY = Damaged(Reason.INCOMPLETE, "nothing there", "")


class SecretCluster:
    """Holds what an API server would hold, and shows it to whoever watches.

    Args:
        bundle: the trust bundle of now.

    Attributes:
        secrets: the secrets, whoever wrote them.
        data: what is in them.
        writes: what was done, in its order.
        looks: how often a secret was looked at.
        before: called before something is done; may raise, or do something else first, as others would.
        after: called when it is done and the answer is on its way; what it raises, the writer hears of it.
        gates: what is done to these service accounts waits for the event.
        late: while true, nothing that happens is shown; `show` then shows it.
    """

    def __init__(self, bundle: Callable[[], TrustBundle]) -> None:
        self._bundle = bundle
        self.namespaces: dict[str, Namespace] = {}
        self.accounts: dict[AccountKey, ServiceAccount] = {}
        self.secrets: dict[AccountKey, WorkloadSecret] = {}
        self.data: dict[AccountKey, Data] = {}
        self.writes: list[Action] = []
        self.looks = 0
        self.before: Callable[[Action], None] = lambda _: None
        self.after: Callable[[Action], None] = lambda _: None
        self.gates: dict[AccountKey, asyncio.Event] = {}
        self.late = False
        self.synced = asyncio.Event()
        self.synced.set()
        self.at_once = 0
        self.most_at_once = 0
        self._shown: dict[AccountKey, WorkloadSecret] = {}
        self._to_show: list[tuple[AccountKey, WorkloadSecret | None]] = []
        self._subscribers: dict[object, Callable[[AccountKey], None]] = {}
        self._versions = count(1)

    # what others do

    def add_namespace(
        self, name: str = "default", *, labels: Mapping[str, str] | None = None, terminating: bool = False
    ) -> None:
        self.namespaces[name] = Namespace(name, labels or {}, terminating)
        for key in self.keys():
            if key[0] == name:
                self._tell(key)

    def add_account(self, name: str = "web", namespace: str = "default", *, uid: str = "") -> AccountKey:
        key = namespace, name
        self.accounts[key] = ServiceAccount(namespace, name, uid or f"uid-{next(self._versions)}")
        self._tell(key)
        return key

    def remove_account(self, key: AccountKey) -> None:
        del self.accounts[key]
        self._tell(key)

    def put(self, key: AccountKey, data: Data | None = None, **changes: object) -> None:
        """Somebody writes a secret, or changes one."""
        old = self.secrets.get(key) or WorkloadSecret(
            key[0], secret_name(key[1]), f"uid-{next(self._versions)}", "", SECRET_TYPE, EMPTY
        )
        secret = replace(old, **changes)  # type: ignore[arg-type]  # the fields of a secret, by name
        self._store(key, secret, self.data.get(key, {}) if data is None else data)

    def remove(self, key: AccountKey) -> None:
        """Somebody deletes a secret."""
        del self.secrets[key], self.data[key]
        self._show(key, None)

    def show(self) -> None:
        """Show what happened while it was late."""
        self.late = False
        to_show, self._to_show = self._to_show, []
        for key, secret in to_show:
            self._show(key, secret)

    # Snapshots

    def account(self, key: AccountKey) -> ServiceAccount | None:
        return self.accounts.get(key)

    def secret(self, key: AccountKey) -> WorkloadSecret | None:
        return self._shown.get(key)

    def namespace(self, name: str) -> Namespace | None:
        return self.namespaces.get(name)

    def keys(self) -> Iterable[AccountKey]:
        return list(dict.fromkeys((*self.accounts, *self._shown)))

    def subscribe(self, changed: Callable[[AccountKey], None]) -> Callable[[], None]:
        key = object()
        self._subscribers[key] = changed
        return lambda: self._subscribers.pop(key, None) and None

    async def until_synced(self) -> None:
        await self.synced.wait()

    # SecretSink

    async def apply(self, action: Action, content: Content | None) -> WorkloadSecret | None:
        key = _key(action.subject)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            self.before(action)
            if (gate := self.gates.get(key)) is not None:
                await gate.wait()
            await asyncio.sleep(0)
            secret = self._apply(key, action, content)
            self.writes.append(action)
            self.after(action)
            return secret
        finally:
            self.at_once -= 1

    async def look(self, key: AccountKey) -> WorkloadSecret | None:
        self.looks += 1
        await asyncio.sleep(0)
        return self.secrets.get(key)

    def _apply(self, key: AccountKey, action: Action, content: Content | None) -> WorkloadSecret | None:
        old = self.secrets.get(key)
        found = None if old is None else (old.uid, old.resource_version)
        wanted = action.precondition and (action.precondition.uid, action.precondition.resource_version)
        if found != wanted:
            raise ConflictError(f"{key} is not what it was")
        if action.kind is Kind.DELETE:
            self.remove(key)
            return None
        assert content is not None
        data = dict(self.data.get(key, {})) | {ROOT: content.root}
        if content.pair is not None:
            data |= {CHAIN: content.pair.chain, KEY: content.pair.key}
        subject = action.subject
        base = old or WorkloadSecret(
            subject.namespace, subject.secret, f"uid-{next(self._versions)}", "", SECRET_TYPE, EMPTY
        )
        marked = replace(
            base, mark="istio-ca", account_annotation=subject.service_account, owner_uid=subject.account_uid
        )
        return self._store(key, marked, data)

    def _store(self, key: AccountKey, secret: WorkloadSecret, data: Data) -> WorkloadSecret:
        material = read_material(data, self._bundle())
        self.data[key] = data
        self.secrets[key] = replace(secret, resource_version=str(next(self._versions)), material=material)
        self._show(key, self.secrets[key])
        return self.secrets[key]

    def _show(self, key: AccountKey, secret: WorkloadSecret | None) -> None:
        if self.late:
            self._to_show.append((key, secret))
            return
        if secret is None:
            self._shown.pop(key, None)
        elif secret.type == SECRET_TYPE:  # others are not watched
            self._shown[key] = secret
        else:
            return
        self._tell(key)

    def _tell(self, key: AccountKey) -> None:
        for changed in tuple(self._subscribers.values()):
            changed(key)


class MemoryEvents:
    """An `EventSink` that remembers.

    Attributes:
        told: service account, reason and note of each.
    """

    def __init__(self) -> None:
        self.told: list[tuple[AccountKey, str, str]] = []

    def emit(self, subject: Subject, *, action: str, reason: str, note: str) -> None:
        assert action.isalpha()
        self.told.append((_key(subject), reason, note))

    def reasons(self, key: AccountKey) -> list[str]:
        return [reason for told, reason, _ in self.told if told == key]


def _key(subject: Subject) -> AccountKey:
    return subject.namespace, subject.service_account
