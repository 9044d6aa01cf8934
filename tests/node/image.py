"""The one image of the tests' pods: a busybox, and places for the folders of this machine.

A pod that mounts them has this machine's programs, with Python and this project among them, and needs no registry. A
pod that does not is a busybox.
"""

from __future__ import annotations

import io
import json
import os
import sys
import tarfile
from collections.abc import Iterable
from hashlib import sha256
from pathlib import Path

from tests.cluster.client import JSON

NAME = "node.test/machine:1"
CHECKOUT = Path(__file__).parents[2]
_USERS = "root:x:0:0:root:/:/busybox\nnobody:x:65534:65534:nobody:/:/busybox\n"


def write(path: Path, busybox: Path) -> None:
    """Write the image in the form that `ctr images import` reads: one layer, one configuration."""
    layer = _layer(busybox)
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}[os.uname().machine],
        "os": "linux",
        "config": {"Entrypoint": ["/busybox"], "Cmd": ["sleep", "1000000"], "Env": ["PATH=/usr/bin:/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{sha256(layer).hexdigest()}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [NAME], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as archive:
        for name, content in (
            ("layer.tar", layer),
            ("config.json", json.dumps(config).encode()),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            _add(archive, name, content)


def folders() -> list[Path]:
    """The folders of this machine that its programs need; none of them lies in another one."""
    wanted = [Path("/usr"), *(path for path in _LINKS if not path.is_symlink() and path.is_dir())]
    wanted += [Path(sys.base_prefix), Path(sys.prefix), CHECKOUT]
    return [path for path in wanted if not any(path != other and path.is_relative_to(other) for other in wanted)]


def volumes() -> tuple[list[JSON], list[JSON]]:
    """What a pod needs to see them, read-only: its volumes, and the mounts of its containers."""
    named = {f"machine-{number}": str(path) for number, path in enumerate(dict.fromkeys(folders()))}
    return (
        [{"name": name, "hostPath": {"path": path, "type": "Directory"}} for name, path in named.items()],
        [{"name": name, "mountPath": path, "readOnly": True} for name, path in named.items()],
    )


_LINKS = tuple(map(Path, ("/bin", "/lib", "/lib64", "/sbin")))


def _layer(busybox: Path) -> bytes:
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as archive:
        _add(archive, "busybox", busybox.read_bytes(), mode=0o755)
        _add(archive, "etc/passwd", _USERS.encode())
        for path in _links():
            link = tarfile.TarInfo(path.name)
            link.type, link.linkname = tarfile.SYMTYPE, str(path.readlink())
            archive.addfile(link)
        folder = tarfile.TarInfo("tmp")
        folder.type, folder.mode = tarfile.DIRTYPE, 0o1777
        archive.addfile(folder)
    return content.getvalue()


def _links() -> Iterable[Path]:
    """Where a machine keeps all below /usr, the older names lead there."""
    return (path for path in _LINKS if path.is_symlink())


def _add(archive: tarfile.TarFile, name: str, content: bytes, *, mode: int = 0o644) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode = len(content), mode
    archive.addfile(info, io.BytesIO(content))
