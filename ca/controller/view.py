"""The Snapshots port, and View: the snapshots together with our own writes that they do not show yet.

The answer to a write is known at once, and a snapshot shows the write a little later. In between, the answer counts;
otherwise the same thing would be done twice. It counts until the snapshot shows another version than before the write:
we wrote under that version, so the next one is our write, or something later.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from ca.controller.snapshot import AccountKey, Namespace, ServiceAccount, WorkloadSecret


class Snapshots(Protocol):
    """What is in the cluster, as far as is known. Lives on one event loop."""

    def account(self, key: AccountKey) -> ServiceAccount | None:
        """The service account."""
        ...

    def secret(self, key: AccountKey) -> WorkloadSecret | None:
        """The service account's secret, if it is of our type."""
        ...

    def namespace(self, name: str) -> Namespace | None:
        """The namespace."""
        ...

    def keys(self) -> Iterable[AccountKey]:
        """All service accounts, including those of which only the secret is left."""
        ...

    def subscribe(self, changed: Callable[[AccountKey], None]) -> Callable[[], None]:
        """Call `changed` for each service account about which something changed, until the returned function is called.

        For a change of a secret it is called at once, before the snapshot shows a later one.
        """
        ...

    async def until_synced(self) -> None:
        """Return when everything that existed at some one moment is known."""
        ...


@dataclass(frozen=True, slots=True)
class _Newer:
    secret: WorkloadSecret | None
    shown: str  # the version in the snapshot that this replaces


class View:
    """The snapshots, and the newer answers to our own writes and look-ups.

    Args:
        snapshots: what is in the cluster, as far as it is shown.
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
        """Take note that something about a service account changed.

        Returns:
            whether that is news: it is not if the snapshot only shows now what an answer told before.
        """
        newer, shown = self._newer.get(key), _version(self._snapshots.secret(key))
        if newer is None or newer.shown == shown:
            return True
        self._forget(key)
        return shown != _version(newer.secret)

    def shown(self, key: AccountKey) -> str:
        """The version of the secret that the snapshot shows now; to be asked before each write or look-up."""
        return _version(self._snapshots.secret(key))

    def learn(self, key: AccountKey, secret: WorkloadSecret | None, *, shown: str) -> None:
        """Take note of an answer about a secret.

        Args:
            key: the service account.
            secret: the secret in the answer; None if it is gone.
            shown: what `shown` returned before the write or look-up.
        """
        self._newer[key] = _Newer(secret, shown)
        self._doubtful.discard(key)

    def doubt(self) -> None:
        """Doubt every answer that the snapshot does not show yet: the watch may never tell of later changes."""
        self._doubtful.update(self._newer)

    def doubts(self, key: AccountKey) -> bool:
        """Whether a secret should be looked at before anything is decided about it."""
        return key in self._doubtful and key in self._newer

    def _forget(self, key: AccountKey) -> None:
        del self._newer[key]
        self._doubtful.discard(key)


def _version(secret: WorkloadSecret | None) -> str:
    return "" if secret is None else secret.resource_version
