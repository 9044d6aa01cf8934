"""The Snapshots port, and View: what there is as far as is known, our own writes included that it does not show yet.

A write is known the moment it was answered, and a snapshot shows it a little later. In between what was answered
counts, or the same thing would be done twice. It counts until the snapshot shows anything else than it did before: we
wrote under that very version, so whatever comes next is our write, or later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from ca.controller.snapshot import AccountKey, Namespace, ServiceAccount, WorkloadSecret


class Snapshots(Protocol):
    """What there is in the cluster, as far as is known. Lives on one event loop."""

    def account(self, key: AccountKey) -> ServiceAccount | None:
        """The service account."""
        ...

    def secret(self, key: AccountKey) -> WorkloadSecret | None:
        """The secret of the service account's name, if it is of our type."""
        ...

    def namespace(self, name: str) -> Namespace | None:
        """The namespace."""
        ...

    def keys(self) -> Iterable[AccountKey]:
        """All service accounts, those included of which only the secret is left."""
        ...

    def subscribe(self, changed: Callable[[AccountKey], None]) -> Callable[[], None]:
        """Call `changed` for each service account about which something changed, until the returned function is called.

        A change of a secret is told on its own, right after it was made known here.
        """
        ...

    async def until_synced(self) -> None:
        """Return when everything is known that there was at one moment."""
        ...


@dataclass(frozen=True, slots=True)
class _Newer:
    secret: WorkloadSecret | None
    shown: str  # the version in the snapshot that this replaces


class View:
    """The snapshots, and what was answered since.

    Args:
        snapshots: what there is, as far as it is shown.
    """

    def __init__(self, snapshots: Snapshots) -> None:
        self._snapshots = snapshots
        self._newer: dict[AccountKey, _Newer] = {}
        self._doubtful: set[AccountKey] = set()

    def secret(self, key: AccountKey) -> WorkloadSecret | None:
        """The secret of a service account."""
        shown = self._snapshots.secret(key)
        newer = self._newer.get(key)
        if newer is None:
            return shown
        if _version(shown) == newer.shown:
            return newer.secret
        self._forget(key)
        return shown

    def notice(self, key: AccountKey) -> bool:
        """Take note that something about a service account changed; whether that is news.

        It is none where the snapshot now shows what was answered before.
        """
        newer, shown = self._newer.get(key), _version(self._snapshots.secret(key))
        if newer is None or newer.shown == shown:
            return True
        self._forget(key)
        return shown != _version(newer.secret)

    def shown(self, key: AccountKey) -> str:
        """The version of the secret that the snapshot shows now; to be asked before something is done to it."""
        return _version(self._snapshots.secret(key))

    def learn(self, key: AccountKey, secret: WorkloadSecret | None, *, shown: str) -> None:
        """The secret is this, or gone.

        Args:
            key: whose.
            secret: as it was answered.
            shown: what `shown` said before the question.
        """
        self._newer[key] = _Newer(secret, shown)
        self._doubtful.discard(key)

    def doubt(self) -> None:
        """Take nothing for granted that was answered, and is not shown yet: nobody tells of its changes."""
        self._doubtful.update(self._newer)

    def doubts(self, key: AccountKey) -> bool:
        """Whether a secret should be looked at before anything is decided about it."""
        return key in self._doubtful and key in self._newer

    def _forget(self, key: AccountKey) -> None:
        del self._newer[key]
        self._doubtful.discard(key)


def _version(secret: WorkloadSecret | None) -> str:
    return "" if secret is None else secret.resource_version
