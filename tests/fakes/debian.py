"""Programs of Debian, taken once from its packages into the user's cache; nothing is installed on the machine."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.fakes.go_module import cache, only_one


@functools.cache
def unpacked(package: str) -> Path | None:
    """The folder with what a package holds; None where there is no way to it."""
    folder = cache() / package
    if not folder.exists() and shutil.which("apt-get") and shutil.which("dpkg-deb"):
        with only_one(cache() / f"{package}.lock", package):
            if not folder.exists():  # nobody else was faster
                _fetch(package, folder)
    return folder if folder.exists() else None


def _fetch(package: str, folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="fetching-") as place:
        fetched = subprocess.run(
            ["apt-get", "-o", "Acquire::Retries=5", "download", package], cwd=place, capture_output=True, check=False
        )
        packages = list(Path(place).glob(f"{package}_*.deb"))
        if fetched.returncode == 0 and packages:
            subprocess.run(["dpkg-deb", "-x", packages[0], Path(place) / "content"], check=True)
            (Path(place) / "content").rename(folder)
