"""What a client of secret discovery has accepted: which version, and which bundle of our own trust domain that is.

Pure. A version is a hash of content and says nothing of a bundle's sequence; the roots in the content do. Roots that
did not change are not sent again when only their sequence is new: a client that accepted them holds the present bundle.
Certificates, and the bundles of other trust domains, stand for no sequence.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable, Mapping
from typing import TypeAlias

from node_agent.sds.secrets import Content, Resource, Roots

View: TypeAlias = Callable[[str], Resource | None]  # what a name gives to this client now; None: nothing yet


class Holding(enum.Enum):
    """What a client is known to hold of our own trust domain's bundle, if it subscribed to that."""

    NONE = "no bundle wanted"
    CURRENT = "current"
    LAGGING = "lagging"


class Accepted:
    """The contents that one client has accepted.

    Attributes:
        version: of the latest answer that it accepted; empty before the first.
    """

    __slots__ = ("_contents", "version")

    def __init__(self) -> None:
        self.version = ""
        self._contents: dict[str, Content] = {}

    def take(self, version: str, contents: Mapping[str, Content]) -> None:
        """The client has accepted an answer."""
        self.version = version
        self._contents.update(contents)

    def keep(self, names: Iterable[str]) -> None:
        """The client wants these names only: what it holds of others is not known from now on."""
        for gone in self._contents.keys() - set(names):
            del self._contents[gone]

    def forget(self, name: str) -> None:
        """What the client holds under this name is not known from now on."""
        self._contents.pop(name, None)

    def holding(self, names: Iterable[str], view: View) -> Holding:
        """Whether it has the present roots of our own trust domain wherever they are in what it wants."""
        present = _roots(names, view)
        if not present:
            return Holding.NONE
        current = all(_same(self._accepted_roots(name), roots) for name, roots in present.items())
        return Holding.CURRENT if current else Holding.LAGGING

    def sequence(self, names: Iterable[str], view: View) -> int | None:
        """The bundle sequence that its version stands for: the oldest among what it wants; None if it has none."""
        found: list[int] = []
        for name, present in _roots(names, view).items():
            if (accepted := self._accepted_roots(name)) is not None:
                found.append((present if _same(accepted, present) else accepted).sequence or 0)
        return min(found, default=None)

    def _accepted_roots(self, name: str) -> Roots | None:
        content = self._contents.get(name)
        return None if content is None else content.roots


def _roots(names: Iterable[str], view: View) -> dict[str, Roots]:
    seen = {name: resource.content.roots for name in names if (resource := view(name)) is not None}
    return {name: roots for name, roots in seen.items() if roots is not None}


def _same(one: Roots | None, other: Roots) -> bool:
    return one is not None and one.fingerprint == other.fingerprint
