"""Foreign programs in Go: built on first use, and kept for as long as their sources stay."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
from pathlib import Path

import pytest

_SOURCES = Path(__file__).parent / "go"
_CACHE = Path(__file__).parents[2] / ".cache" / "interop-go"


async def output(*command: object, folder: Path | None = None) -> str:
    """What a program prints that ends well."""
    process = await asyncio.create_subprocess_exec(
        *map(str, command), cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out.decode()


async def built(package: str) -> Path:
    """The program of a package (`.`, or `./` and its folder), of these very sources."""
    if (go := shutil.which("go")) is None:
        pytest.skip("Go is not installed: the programs of tests/interop/go can not be built")
    sources = sorted(path for path in _SOURCES.rglob("*") if path.is_file())
    digest = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    program = _CACHE / digest / (Path(package).name or "foreign")
    if not program.exists():
        unfinished = program.with_name(f"{program.name}.{os.getpid()}")
        await output(go, "build", "-mod=readonly", "-trimpath", "-o", unfinished, package, folder=_SOURCES)
        unfinished.rename(program)
    return program
