"""What is kept of workloads from one start of the agent to the next: their registrations and live SVIDs.

So an agent that is restarted while the CA is away serves as before. Workloads' keys must not reach a disk, nor survive
a reboot: the folder is on a memory file system, only we may enter it, and what an earlier boot left there is removed.
Everything is checked again when it is read. What is damaged, has ended, or belongs to nobody any more is removed; the
rest is served.

| file                 | content                                                                                  |
|----------------------|------------------------------------------------------------------------------------------|
| `boot-id`            | the kernel's name for this uptime of the machine, to which the rest belongs              |
| `registrations.json` | as the CA sent them last, with their hash: a flipped bit must not change who gets what   |
| `<hash>.pem`         | one SVID: what it was asked for by, key and chain in one file, so that they stay together |
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from pathlib import Path

import structlog

from istio_auth.bundle import BundleSource
from istio_auth.clock import duration_text, parse_duration
from istio_auth.errors import (
    ConfigurationError,
    Fault,
    IstioAuthError,
    MalformedError,
    MissingError,
    VerificationError,
)
from istio_auth.files import atomic_write, file_error, private_folder, read_bounded, read_secret, remove_leftovers
from istio_auth.registration import Registration
from istio_auth.rotation import renewal_due
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.strict_json import JSON, parse_json
from istio_auth.svid import X509SVID
from istio_auth.verify import verify_chain
from node_agent.workloads.cache import Held, Snapshot
from node_agent.workloads.registrations import Want, checked, from_table

_MAX_BYTES = 64 << 20
_MAX_SVID = 1 << 20
_BOOT, _REGISTRATIONS, _SVIDS = "boot-id", "registrations.json", "*.pem"
log = structlog.get_logger()


class WorkloadFolder:
    """The folder. Its methods block, and only one process calls them.

    Args:
        path: where it is; made if need be, at the first use.
        boot: names this uptime of the machine.
    """

    def __init__(self, path: Path, *, boot: str | None = None) -> None:
        self.path, self._boot = path, boot or _boot_id()
        self._written: dict[Path, X509SVID] = {}
        self._registrations: object = None

    def open(self) -> None:
        """Make sure that it is there, and remove what is not of this uptime, or was half written.

        Raises:
            ConfigurationError: it is not ours alone.
            NotReady: there is no room for it.
        """
        private_folder(self.path)
        try:
            remove_leftovers(self.path)
            if self._is_of_this_boot():
                return
            for left in (*self.path.glob(_SVIDS), self.path / _REGISTRATIONS):
                left.unlink(missing_ok=True)
        except OSError as error:
            raise file_error(error, self.path, "clear") from error
        atomic_write(self.path / _BOOT, self._boot.encode())

    def registrations(self, trust_domain: TrustDomain) -> tuple[Registration, ...] | None:
        """The registrations that were kept; None if there are none that are of use."""
        path = self.path / _REGISTRATIONS
        try:
            rows = _rows(_read_own(path, _MAX_BYTES))
        except MissingError:
            return None
        except IstioAuthError as error:
            log.warning("the kept registrations are not used", path=str(path), reason=str(error))
            _remove(path)
            return None
        return tuple(_usable(rows, trust_domain))

    def svids(self, bundles: BundleSource, now: datetime, draw: Callable[[], float]) -> list[Held]:
        """The SVIDs that were kept and are still good; others are removed.

        Args:
            bundles: whom we trust.
            now: the present instant.
            draw: gives a number in [0, 1).
        """
        found = []
        for path in sorted(self.path.glob(_SVIDS)):
            try:
                held = self._read(path, bundles, now, draw())
            except IstioAuthError as error:
                log.warning("a kept SVID is not used", path=str(path), reason=str(error))
                _remove(path)
            else:
                found.append(held)
                self._written[path] = held.svid
        return found

    def keep(self, snapshot: Snapshot, *, registrations: bool) -> None:
        """Keep what is held now, and nothing else. What can not be written holds up nothing that can.

        Args:
            snapshot: what is registered and held.
            registrations: whether to keep those too; not where a file says them.

        Raises:
            IstioAuthError: the first thing that went wrong; what it was about is kept as it was before.
        """
        self.open()
        live = {self._path(spiffe_id): held for spiffe_id, held in snapshot.held.items()}
        there = set(self.path.iterdir())
        # What goes makes room for what comes.
        steps = [partial(_unlink, path) for path in sorted(there - live.keys()) if path.match(_SVIDS)]
        if registrations:
            steps.append(partial(self._keep_registrations, snapshot.registrations, there))
        steps += [
            partial(self._keep_svid, path, held)
            for path, held in live.items()
            if path not in there or self._written.get(path) is not held.svid
        ]
        self._written = {path: svid for path, svid in self._written.items() if path in live}
        if failures := [error for step in steps if (error := _failure(step)) is not None]:
            raise failures[0]

    def _keep_registrations(self, rows: tuple[Registration, ...], there: Iterable[Path]) -> None:
        path = self.path / _REGISTRATIONS
        if rows is self._registrations and path in there:
            return
        text = json.dumps(list(map(_row, rows)))
        atomic_write(path, json.dumps({"sha256": _hash(text.encode()), "registrations": text}).encode())
        self._registrations = rows

    def _keep_svid(self, path: Path, held: Held) -> None:
        asked = json.dumps(_asked_for(held.want)).encode()
        atomic_write(path, asked + b"\n" + held.svid.credential_bundle_pem())
        self._written[path] = held.svid

    def _read(self, path: Path, bundles: BundleSource, now: datetime, draw: float) -> Held:
        asked, _, text = _read_own(path, _MAX_SVID).partition(b"\n")
        svid = _still_good(text, bundles, now)
        if path != self._path(svid.id):
            raise ConfigurationError(f"it holds the SVID of {svid.id}, which has another name here")
        return Held(svid, _want(svid.id, asked), renewal_due(svid.not_before, svid.not_after, draw=draw))

    def _path(self, spiffe_id: SpiffeID) -> Path:
        return self.path / f"{_hash(str(spiffe_id).encode())[:32]}.pem"

    def _is_of_this_boot(self) -> bool:
        try:
            return read_bounded(self.path / _BOOT, 1024).decode(errors="replace") == self._boot
        except IstioAuthError:
            return False  # nothing was kept, or nobody can say when


def read_kept(path: Path, bundles: BundleSource, now: datetime) -> X509SVID:
    """An SVID in one file, key and chain, that is still good.

    Raises:
        MissingError: there is no such file.
        IstioAuthError: it can not be read, its chain is not trusted, or it has ended.
    """
    return _still_good(read_secret(path, _MAX_SVID), bundles, now)


def _still_good(text: bytes, bundles: BundleSource, now: datetime) -> X509SVID:
    found = X509SVID.parse_credential_bundle(text)
    verify_chain(found.chain, bundles, now)
    if found.not_after <= now:
        raise VerificationError(Fault.EXPIRED, f"its chain ended {found.not_after:%F %T} UTC")
    return found


def _read_own(path: Path, limit: int) -> bytes:
    """The content of a file that we wrote ourselves: no link, and nobody else's."""
    try:
        found = path.lstat()
    except OSError as error:
        raise file_error(error, path, "look at") from error
    if path.is_symlink():
        raise ConfigurationError("it is a link, which we never make here")
    if found.st_uid != os.geteuid():
        raise ConfigurationError(f"it belongs to uid {found.st_uid}, and we are uid {os.geteuid()}")
    return read_secret(path, limit)


def _unlink(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        raise file_error(error, path, "remove") from error


def _remove(path: Path) -> None:
    if (error := _failure(partial(_unlink, path))) is not None:
        log.warning("what is not used could not be removed", reason=str(error))


def _failure(step: Callable[[], None]) -> IstioAuthError | None:
    try:
        step()
    except IstioAuthError as error:
        return error
    return None


def _rows(text: bytes) -> list[JSON]:
    document = parse_json(text, limit=_MAX_BYTES)
    if not isinstance(document, dict) or not isinstance(rows := document.get("registrations"), str):
        raise ConfigurationError("expected registrations and their hash")
    if _hash(rows.encode()) != document.get("sha256"):
        raise ConfigurationError("they are not what was written: their hash is another")
    parsed = parse_json(rows.encode(), limit=_MAX_BYTES)
    if not isinstance(parsed, list):
        raise ConfigurationError("expected a list")
    return parsed


def _usable(rows: Iterable[JSON], trust_domain: TrustDomain) -> Iterable[Registration]:
    for row in rows:
        try:
            yield checked(from_table(row), trust_domain)
        except MalformedError as error:
            log.warning("a kept registration is not used", reason=str(error))


def _row(registration: Registration) -> Mapping[str, object]:
    row: dict[str, object] = {
        "spiffe_id": str(registration.spiffe_id),
        "selectors": sorted(map(str, registration.selectors)),
        "dns_names": list(registration.dns_names),
        "hint": registration.hint,
    }
    return row if registration.ttl is None else row | {"ttl": duration_text(registration.ttl)}


def _asked_for(want: Want) -> Mapping[str, object]:
    ttl = None if want.ttl is None else duration_text(want.ttl)
    return {"dns_names": sorted(want.dns_names), "ttl": ttl}


def _want(spiffe_id: SpiffeID, text: bytes) -> Want:
    document = parse_json(text, limit=_MAX_SVID)
    if not isinstance(document, dict) or not isinstance(names := document.get("dns_names"), list):
        raise ConfigurationError("it does not say what it was asked for by")
    ttl = document.get("ttl")
    return Want(spiffe_id, None if ttl is None else parse_duration(str(ttl)), frozenset(map(str, names)))


def _hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return f"unknown, seen by {os.getpid()}"  # then nothing outlives this process
