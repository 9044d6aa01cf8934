"""A folder with an SVID in files, and the ways in which people write one: each as a list of single steps."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from istio_auth.bundle import BundleSet, TrustBundle
from istio_auth.sources.svid_files import SVIDLayout
from istio_auth.x509_source import X509Context
from tests.fakes.authority import FakeAuthority

Step = Callable[[], object]


def generation(number: int = 0, *, trust_domain: str = "cluster.local") -> X509Context:
    """An SVID with an intermediate of its own, and two roots of its own."""
    root, other = FakeAuthority(trust_domain), FakeAuthority(trust_domain)
    issuer = FakeAuthority(trust_domain, parent=root)
    svid = issuer.svid(f"/generation/{number}")
    return X509Context((svid,), BundleSet((TrustBundle(svid.id.trust_domain, (root.root, other.root)),)))


@dataclass
class SVIDFolder:
    """Writes SVIDs into a folder. Each write has a time of its own, as it would have if it came a moment later."""

    path: Path
    layout: SVIDLayout = SVIDLayout.ISTIO
    _ticks: itertools.count[int] = field(default_factory=lambda: itertools.count(10**18, 10**9))

    def contents(self, context: X509Context) -> dict[str, bytes]:
        """The names of the files and what is in them."""
        svid = context.svid
        roots = context.bundle(svid.id.trust_domain).to_pem()
        contents = {self.layout.chain: svid.chain_pem(), self.layout.roots: roots}
        contents[self.layout.key] = svid.key_pem() + contents.get(self.layout.key, b"")
        return contents

    def write(self, context: X509Context) -> None:
        """Write all of it, in place."""
        for step in self.in_place(context):
            step()

    def in_place(self, context: X509Context, *, names: Sequence[str] = (), cuts: Sequence[float] = ()) -> list[Step]:
        """Each file is emptied and written again, in pieces.

        Args:
            context: what to write.
            names: the order of the files.
            cuts: where each file is cut into pieces, as shares of its length.
        """
        steps: list[Step] = []
        contents = self.contents(context)
        for name in names or contents:
            ends = [0, *sorted(int(cut * len(contents[name])) for cut in cuts), len(contents[name])]
            pieces = [contents[name][start:end] for start, end in itertools.pairwise(ends)]
            steps.append(lambda name=name: self.put(name, b""))  # type: ignore[misc]  # a default binds the loop's value
            steps += [lambda name=name, piece=piece: self.put(name, piece, mode="ab") for piece in pieces]  # type: ignore[misc]  # a default binds the loop's value
        return steps

    def by_renaming(self, context: X509Context, *, names: Sequence[str] = ()) -> list[Step]:
        """Each file is written under another name, and then renamed over the old one."""
        steps: list[Step] = []
        contents = self.contents(context)
        for name in names or contents:
            steps += [
                lambda name=name: self.put(f"{name}.new", contents[name]),  # type: ignore[misc]  # a default binds the loop's value
                lambda name=name: (self.path / f"{name}.new").replace(self.path / name),  # type: ignore[misc]  # a default binds the loop's value
            ]
        return steps

    def by_swapping(self, context: X509Context) -> list[Step]:
        """As the kubelet does with a volume: a new folder, one link swapped, the old folder removed."""
        fresh = self.path / f"..{next(self._ticks)}"
        old: list[Path] = []

        def write() -> None:
            fresh.mkdir()
            for name, content in self.contents(context).items():
                self.put(f"{fresh.name}/{name}", content)

        def swap() -> None:
            data = self.path / "..data"
            if data.is_symlink():
                old.append(data.resolve())
            (self.path / "..data_tmp").symlink_to(fresh.name)
            (self.path / "..data_tmp").replace(data)

        def link() -> None:
            for name in self.layout.names:
                if not (self.path / name).is_symlink():
                    (self.path / name).symlink_to(f"..data/{name}")

        def remove() -> None:
            for folder in old:
                shutil.rmtree(folder)

        return [write, swap, link, remove]

    def put(self, name: str, content: bytes, *, mode: str = "wb") -> None:
        """Write into one file."""
        with (self.path / name).open(mode) as file:
            file.write(content)
        (self.path / name).chmod(0o600)
        tick = next(self._ticks)
        os.utime(self.path / name, ns=(tick, tick))
