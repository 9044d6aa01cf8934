"""What the kernel tells of processes in texts, line by line (proc(5)).

Only a line feed ends a line. Names that a process chooses, its own and those of its control groups, may hold whatever
else ends lines elsewhere (a carriage return, a form feed), and what comes after that is not the kernel's word.
"""

from __future__ import annotations

from pathlib import Path


def lines(path: Path) -> list[str]:
    """The lines of such a text.

    Raises:
        OSError: it can not be read.
    """
    return path.read_bytes().decode("utf-8", errors="replace").removesuffix("\n").split("\n")


def status_fields(folder: Path) -> dict[str, str]:
    """What `status` in a process's folder says, by the names of its fields.

    Raises:
        OSError: it can not be read.
    """
    return dict(line.split(":\t", 1) for line in lines(folder / "status") if ":\t" in line)
