"""A full disk under the issuance log: nothing leaves unrecorded, readiness says so, and room mends it.

The file system is full in truth: by a limit on the size of files for everybody, and for root by a file system of its
own that is full.
"""

from __future__ import annotations

import asyncio
import json
import os
import resource
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from ca.attest import Attested
from ca.authority.authority import open_authority
from ca.issuance_log import FileIssuanceLog
from ca.issuer import IssuedSVID, Issuer, Order, ReservedNames
from ca.profile import IssuanceProfile
from ca.registry import Grant
from istio_auth.errors import NotReady
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from tests.fakes.authority_store import MemoryAuthorityStore
from tests.fakes.clock import FakeClock

LOCAL = TrustDomain("cluster.local")
ORDER = Order(
    Grant(SpiffeID.for_service_account(LOCAL, "default", "web")),
    ec.generate_private_key(ec.SECP256R1()).public_key(),
    None,
    Attested(SpiffeID.for_agent(LOCAL, "node"), "certificate"),
    "request",
)


async def lives_through_a_full_disk(path: Path, make_room: Iterator[None]) -> None:
    """Issue until the disk is full, see that nothing leaves, make room, see that it goes on."""
    clock = FakeClock()
    log = FileIssuanceLog(path)
    authority = open_authority(MemoryAuthorityStore(), LOCAL, clock)
    issuer = Issuer(authority, IssuanceProfile(), log, clock, ReservedNames.of(LOCAL), threads=1)
    released = [(await issuer.issue(ORDER)).serial]
    assert issuer.ready() is None
    while True:
        results = await issuer.issue_many([ORDER] * 7)
        released += [result.serial for result in results if isinstance(result, IssuedSVID)]
        if not all(isinstance(result, IssuedSVID) for result in results):
            break
        assert len(released) < 10_000
    assert all(isinstance(result, NotReady) for result in results)  # the batch, whole
    assert log.ready() is not None
    assert recorded(path) == released
    log.probe()
    assert issuer.ready() is not None
    next(make_room)
    await becomes_ready(issuer)
    released.append((await issuer.issue(ORDER)).serial)
    await issuer.close()
    log.close()
    assert recorded(path) == released


async def becomes_ready(issuer: Issuer) -> None:
    async with asyncio.timeout(30):
        while issuer.ready() is not None:  # noqa: ASYNC110  # asking is what makes it look for room again
            await asyncio.sleep(0.001)


def recorded(path: Path) -> list[int]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["sequence"] for line in lines] == list(range(1, len(lines) + 1))
    return [int(line["serial"], 16) for line in lines]


def without_limit(limits: tuple[int, int]) -> Iterator[None]:
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    yield


async def test_at_the_limit_of_a_file_nothing_leaves_unrecorded(tmp_path: Path) -> None:
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        await lives_through_a_full_disk(tmp_path / "log/issuance.log", without_limit(limits))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)


@contextmanager
def small_file_system(folder: Path) -> Iterator[Path]:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k,mode=0700", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def without(ballast: Path) -> Iterator[None]:
    ballast.unlink()
    yield


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="a file system of one's own needs root")
async def test_on_a_full_file_system_nothing_leaves_unrecorded(tmp_path: Path) -> None:
    with small_file_system(tmp_path) as folder:
        ballast = folder / "ballast"
        ballast.write_bytes(b"\0" * 100_000)
        await lives_through_a_full_disk(folder / "issuance.log", without(ballast))
