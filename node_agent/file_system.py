"""Which file system a folder is on, and whether that is in memory: keys must not reach a disk by accident."""

from __future__ import annotations

from pathlib import Path

from istio_auth.errors import ConfigurationError

_MEMORY = frozenset({"tmpfs", "ramfs"})


def file_system(path: Path, mounts: Path = Path("/proc/self/mountinfo")) -> str:
    """The type of the file system that a path is on, or will be; empty if that can not be told (proc(5))."""
    there = path.resolve()
    found: dict[Path, str] = {}
    try:
        for line in mounts.read_text(encoding="utf-8", errors="surrogateescape").splitlines():
            before, _, after = line.partition(" - ")
            found[Path(_unescaped(before.split()[4]))] = after.split()[0]  # a later mount hides an earlier one
    except (OSError, IndexError):
        return ""
    return next((found[folder] for folder in (there, *there.parents) if folder in found), "")


def is_in_memory(path: Path) -> bool:
    """Whether what is written there stays in memory, as far as the mounts tell."""
    return file_system(path) in _MEMORY


def on_a_disk(folder: Path, *, setting: str, whose: str) -> ConfigurationError:
    """Why a folder is refused that is not in memory.

    Args:
        folder: the folder.
        setting: what named it.
        whose: whose keys would be in it.
    """
    found = file_system(folder) or "an unknown file system"
    return ConfigurationError(
        f"{setting} {folder} is on {found}: keys of {whose} would reach a disk; name a folder on tmpfs, or set "
        "allow_disk_cache"
    )


def _unescaped(text: str) -> str:
    r"""What mountinfo writes as \040 and the like."""
    for code in ("040", "011", "012", "134"):
        text = text.replace(f"\\{code}", chr(int(code, 8)))
    return text
