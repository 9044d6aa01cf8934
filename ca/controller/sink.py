"""The SecretSink port: writes secrets, each only if it is still in the state that the write was planned for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol

from ca.controller.action import Action
from ca.controller.material import Material
from ca.controller.snapshot import AccountKey, WorkloadSecret


@dataclass(frozen=True, slots=True)
class Pair:
    """A key with its certificate chain.

    Args:
        chain: the chain as PEM, the leaf first.
        key: the private key as PKCS#8 PEM; never printed.
        material: the facts about both, as they would be read from the secret.
    """

    chain: bytes
    key: bytes = field(repr=False)
    material: Material


@dataclass(frozen=True, slots=True)
class Content:
    """What a secret shall hold.

    Args:
        root: the trust bundle as PEM.
        pair: key and chain; None to keep those that are there.
    """

    root: bytes
    pair: Pair | None = None


class SecretSink(Protocol):
    """Writes secrets."""

    async def apply(self, action: Action, content: Content | None) -> WorkloadSecret | None:
        """Do what was planned.

        Args:
            action: the plan; nothing is done if its precondition does not hold.
            content: what the secret shall hold; None for a deletion.

        Returns:
            the secret as it is now; None if it is gone.

        Raises:
            ConflictError: the precondition does not hold: look at the secret again.
            MalformedError: what was planned can never be done.
            NotReady, Exhausted: not now.
        """
        ...

    async def look(self, key: AccountKey) -> WorkloadSecret | None:
        """The secret of a service account as it is at this moment; None if it is certain that there is none.

        Raises:
            NotReady, Exhausted: it could not be looked at.
        """
        ...
