"""What is kept of workloads from one start of the agent to the next: their registrations and live SVIDs.

So an agent that is restarted while the CA is away serves as before. Keys of workloads must not reach a disk, nor
outlive the machine's uptime: the folder is on a memory file system, only we may enter it, and what another boot left
there is removed. Everything is checked again when it is read; what is damaged, has ended, or is nobody's any more is
removed, and the others are served.

| file                 | content                                                                  |
|----------------------|--------------------------------------------------------------------------|
| `boot-id`            | of the machine's uptime that the rest belongs to                         |
| `registrations.json` | as the CA sent them last                                                 |
| `<hash>.pem`         | one SVID, key and chain in one file, so that they can not come apart     |
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path

import structlog

from istio_auth.bundle import BundleSource
from istio_auth.clock import duration_text
from istio_auth.errors import ConfigurationError, Fault, IstioAuthError, MissingError, VerificationError
from istio_auth.files import atomic_write, private_folder, read_bounded, read_secret, remove_leftovers
from istio_auth.registration import Registration
from istio_auth.rotation import renewal_due
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.strict_json import parse_json
from istio_auth.svid import X509SVID
from istio_auth.verify import verify_chain
from node_agent.cache import Held, Snapshot, WorkloadCache
from node_agent.registrations import checked, from_table

_MEMORY = frozenset({"tmpfs", "ramfs"})
_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_MAX_BYTES = 64 << 20
_MAX_SVID = 1 << 20
_BOOT, _REGISTRATIONS, _SVIDS = "boot-id", "registrations.json", "*.pem"
_SETTLE = 0.1  # seconds; what changes within this time is written once
log = structlog.get_logger()


class WorkloadFolder:
    """The folder. Its methods block, and only one process calls them.

    Args:
        path: where it is; made if need be.
        boot: names this uptime of the machine.

    Raises:
        ConfigurationError: it is not ours alone.
    """

    def __init__(self, path: Path, *, boot: str | None = None) -> None:
        self.path = private_folder(path)
        self._written: dict[Path, object] = {}
        self._registrations: object = None
        remove_leftovers(self.path)
        self._begin(boot or _boot_id())

    def registrations(self, trust_domain: TrustDomain) -> tuple[Registration, ...] | None:
        """The registrations that were kept; None if there are none that are of use."""
        path = self.path / _REGISTRATIONS
        try:
            rows = parse_json(read_bounded(path, _MAX_BYTES), limit=_MAX_BYTES)
            if not isinstance(rows, list):
                raise ConfigurationError("expected a list")
            return tuple(checked(from_table(row), trust_domain) for row in rows)
        except MissingError:
            return None
        except IstioAuthError as error:
            log.warning("the kept registrations are not used", path=str(path), reason=str(error))
            path.unlink(missing_ok=True)
            return None

    def svids(self, bundles: BundleSource, now: datetime) -> list[X509SVID]:
        """The SVIDs that were kept and are still good; others are removed."""
        found = []
        for path in sorted(self.path.glob(_SVIDS)):
            try:
                svid = read_kept(path, bundles, now)
            except IstioAuthError as error:
                log.warning("a kept SVID is not used", path=str(path), reason=str(error))
                path.unlink(missing_ok=True)
            else:
                found.append(svid)
                self._written[path] = svid
        return found

    def keep(self, snapshot: Snapshot, *, registrations: bool) -> None:
        """Keep what is held now, and nothing else.

        Args:
            snapshot: what is registered and held.
            registrations: whether to keep those too; not where a file says them.

        Raises:
            IstioAuthError: the folder can not be written; what was kept before still is.
        """
        if registrations and snapshot.registrations is not self._registrations:
            atomic_write(self.path / _REGISTRATIONS, json.dumps(list(map(_row, snapshot.registrations))).encode())
            self._registrations = snapshot.registrations
        live = {self._path(spiffe_id): each.svid for spiffe_id, each in snapshot.held.items()}
        for path in self._written.keys() - live.keys():
            path.unlink(missing_ok=True)
            del self._written[path]
        for path, svid in live.items():
            if self._written.get(path) is not svid:
                atomic_write(path, svid.key_pem() + svid.chain_pem())
                self._written[path] = svid

    def _path(self, spiffe_id: SpiffeID) -> Path:
        return self.path / f"{hashlib.sha256(str(spiffe_id).encode()).hexdigest()[:32]}.pem"

    def _begin(self, boot: str) -> None:
        """Remove what another uptime of the machine left; keys must not outlive it."""
        path = self.path / _BOOT
        try:
            if read_bounded(path, 1024).decode(errors="replace") == boot:
                return
        except IstioAuthError:
            pass  # nothing was kept, or nobody can say when
        for left in (*self.path.glob(_SVIDS), self.path / _REGISTRATIONS):
            left.unlink(missing_ok=True)
        atomic_write(path, boot.encode())


class Keeping:
    """Restores a cache from the folder, then keeps the folder as the cache is.

    Args:
        folder: where.
        cache: what.
        trust_domain: our own.
        from_ca: whether the registrations come from the CA, and not from a file that is read anew.
    """

    def __init__(
        self, folder: WorkloadFolder, cache: WorkloadCache, trust_domain: TrustDomain, *, from_ca: bool
    ) -> None:
        self._folder, self._cache = folder, cache
        self._trust_domain, self._from_ca = trust_domain, from_ca
        self._trouble = ""

    def restore(self, now: datetime, draw: Callable[[], float]) -> bool:
        """Put into the cache what was kept. Blocks.

        Returns:
            whether there were registrations.
        """
        rows = self._folder.registrations(self._trust_domain) if self._from_ca else None
        if rows is not None:
            self._cache.register(rows)
        snapshot = self._cache.snapshot
        held = [
            Held(svid, want, renewal_due(svid.not_before, svid.not_after, draw=draw()))
            for svid in self._folder.svids(snapshot.bundles, now)
            if (want := snapshot.wanted.get(svid.id)) is not None
        ]
        self._cache.put(held)
        if held:
            log.info("workloads are served from what was kept", svids=len(held), folder=str(self._folder.path))
        return rows is not None

    async def run(self, is_heard: Callable[[], bool]) -> None:
        """Write down each change, for as long as we run.

        Args:
            is_heard: whether the registrations in the cache are somebody's word by now.
        """
        changed = asyncio.Event()
        end = self._cache.subscribe(changed.set)
        try:
            while True:
                await self._write(registrations=self._from_ca and is_heard())
                await changed.wait()
                await asyncio.sleep(_SETTLE)
                changed.clear()
        finally:
            end()

    async def _write(self, *, registrations: bool) -> None:
        try:
            await asyncio.to_thread(self._folder.keep, self._cache.snapshot, registrations=registrations)
        except (IstioAuthError, OSError) as error:
            if str(error) != self._trouble:
                log.warning("what workloads hold is not kept for the next start", reason=str(error))
            self._trouble = str(error)
        else:
            self._trouble = ""


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


def read_kept(path: Path, bundles: BundleSource, now: datetime) -> X509SVID:
    """An SVID in one file, key and chain, that is still good.

    Raises:
        MissingError: there is no such file.
        IstioAuthError: it can not be read, its chain is not trusted, or it has ended.
    """
    key, mark, chain = read_secret(path, _MAX_SVID).partition(_CERTIFICATE)
    found = X509SVID.parse(mark + chain, key)
    verify_chain(found.chain, bundles, now)
    if found.not_after <= now:
        raise VerificationError(Fault.EXPIRED, f"its chain ended {found.not_after:%F %T} UTC")
    return found


def _row(registration: Registration) -> Mapping[str, object]:
    row: dict[str, object] = {
        "spiffe_id": str(registration.spiffe_id),
        "selectors": sorted(map(str, registration.selectors)),
        "dns_names": list(registration.dns_names),
        "hint": registration.hint,
    }
    return row if registration.ttl is None else row | {"ttl": duration_text(registration.ttl)}


def _unescaped(text: str) -> str:
    r"""What mountinfo writes as \040 and the like."""
    for code in ("040", "011", "012", "134"):
        text = text.replace(f"\\{code}", chr(int(code, 8)))
    return text


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"unknown, seen by {os.getpid()}"  # then nothing outlives this process
