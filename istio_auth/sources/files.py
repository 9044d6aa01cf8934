"""FileSource: an SVID and its roots from files that another program writes and rotates.

Key, certificates and roots are taken together as one snapshot, once key and certificate match; until then the last good
snapshot stays. One thread looks at the files. A change counts when two looks see the same, because a writer may be in
the middle of its work; files that are swapped all at once count immediately. If a bundle of another trust domain can
not be read, its last good content stays, and nothing else is delayed; if its file was removed, that trust domain is not
trusted any more.
"""

from __future__ import annotations

import logging
import threading
import weakref
from collections.abc import Mapping
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from queue import Empty, SimpleQueue

from istio_auth.bundle import BundleSet, TrustBundle
from istio_auth.clock import Clock
from istio_auth.errors import ConfigurationError, IstioAuthError, MissingError, NotReady
from istio_auth.pem import MAX_CERTIFICATES_BYTES, MAX_KEY_BYTES
from istio_auth.sources.file_contents import BundleFile, Contents, roots_in, svid_in
from istio_auth.sources.quiet import no_fork
from istio_auth.sources.source import Source, SourceStatus
from istio_auth.sources.svid_files import (
    Marks,
    SVIDFiles,
    SVIDLayout,
    is_exposed,
    is_there,
    marks,
    read_together,
    read_unchanged,
)
from istio_auth.spiffe_id import TrustDomain
from istio_auth.x509_source import X509Context

_LOG = logging.getLogger(__name__)
_SETTLE = 0.1  # seconds from a look that saw a change to the next
_PAUSE = 5.0  # seconds after a look that failed with an unexpected error
_JOIN = 5.0  # seconds; the thread ends at once, unless a subscriber blocks it
_REMEDY = "see whether whoever writes them still does, and whether this process may read them"


class FileSource(Source):
    """Follows an SVID in files. Opening it reads them once and does not wait: see `wait_until_ready` and `ready`.

    Args:
        place: a folder with one of the layouts that `SVIDLayout` names, or the files themselves.
        layout: the names of the files in the folder; by default the known layout of which most files are there.
        roots: where the roots are, if they are not in the folder.
        trust_domain: the trust domain of the roots; by default the SVID's own.
        federated: bundles of other trust domains, each a file of CA certificates in PEM.
        bundle_map: a file with bundles of several trust domains, as a SPIFFE bundle map in JSON. For a trust domain
            that also has a file in `federated`, that file counts while it is there and could be read once.
        interval: how often the files are looked at.
        clock: tells when an SVID has ended; the machine's by default.

    Raises:
        ConfigurationError: the interval is not positive, or files were given together with a layout or roots.
    """

    _thread: threading.Thread | None = None
    _finalizer: weakref.finalize[..., FileSource] | None = None

    def __init__(
        self,
        place: str | Path | SVIDFiles,
        *,
        layout: SVIDLayout | None = None,
        roots: str | Path | None = None,
        trust_domain: TrustDomain | None = None,
        federated: Mapping[TrustDomain, str | Path] | None = None,
        bundle_map: str | Path | None = None,
        interval: timedelta = timedelta(seconds=1),
        clock: Clock | None = None,
    ) -> None:
        if interval <= timedelta():
            raise ConfigurationError("the interval at which files are looked at must be longer than nothing")
        if isinstance(place, SVIDFiles) and (layout, roots) != (None, None):
            raise ConfigurationError("a layout is for a folder: give the folder, or the files without a layout")
        super().__init__(f"the files {_in_words(place)}", _REMEDY, clock=clock)
        self._place = place if isinstance(place, SVIDFiles) else Path(place)
        self._layout, self._roots = layout, Path(roots) if roots is not None else None
        self._trust_domain = trust_domain
        self._foreign = [BundleFile.of_pem(Path(path), domain) for domain, path in (federated or {}).items()]
        if bundle_map is not None:
            self._foreign.append(BundleFile.of_map(Path(bundle_map)))
        self._kept: dict[BundleFile, tuple[TrustBundle, ...]] = {}
        self._interval = interval.total_seconds()
        self._reading = threading.RLock()
        self._seen: Marks = ()  # at the last look
        self._taken: Marks = ()  # at the last look that agreed with the one before it
        self._exposed: set[Path] = set()
        self._ending: SimpleQueue[None] = SimpleQueue()  # garbage collection may put into it, at any moment
        self.reload()
        self._start(_SETTLE)

    def reload(self) -> SourceStatus:
        """Read the files now, even if they changed a moment ago.

        Returns:
            the status after that; its `trouble` says what is wrong with the files.
        """
        with self._reading:
            files = self._files()
            self._seen = marks(self._limits(files))
            self._read(files)
        return self.status()

    def close(self) -> None:
        """End the thread, and serve nothing any more."""
        super().close()
        self._ending.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(_JOIN)

    def _files(self) -> SVIDFiles:
        if isinstance(self._place, SVIDFiles):
            return self._place
        files = SVIDFiles.in_folder(self._place, self._layout) if self._layout else SVIDFiles.detect(self._place)
        return replace(files, roots=self._roots) if self._roots is not None else files

    def _limits(self, files: SVIDFiles) -> dict[Path, int]:
        own = {files.key: MAX_KEY_BYTES, files.chain: MAX_CERTIFICATES_BYTES, files.roots: MAX_CERTIFICATES_BYTES}
        return own | {file.path: file.limit for file in self._foreign}

    def _poll(self) -> float:
        """Look at the files once, and return the seconds until the next look."""
        self._look()
        with self._reading:
            files = self._files()
            seen = marks(self._limits(files))
            if seen != self._seen:
                own = len(set(files.paths))  # they come first among the marks
                alone, self._seen = seen[own:] == self._seen[own:], seen
                if files.swapped and alone:
                    self._read(files)
            elif seen != self._taken or self._state.trouble is not None:
                contents = read_unchanged(self._limits(files), seen)
                if contents is not None:
                    self._taken = seen
                    self._take(files, contents)
        return self._interval if self._seen == self._taken else min(_SETTLE, self._interval)

    def _read(self, files: SVIDFiles) -> None:
        try:
            contents = read_together(self._limits(files))
        except NotReady as error:
            self._trouble(error)
        else:
            self._take(files, contents)

    def _take(self, files: SVIDFiles, contents: Contents) -> None:
        try:
            with no_fork():
                svid = svid_in(files, contents, self._clock.now())
                own = roots_in(files.roots, contents, self._trust_domain or svid.id.trust_domain)
                trouble = self._read_foreign(contents)
        except IstioAuthError as error:
            nothing = not any(is_there(path) for path in files.paths if path != self._roots)
            self._trouble(self._nothing_there(error) if nothing else error)
            return
        self._warn_if_exposed(files.key)
        bundles = [own, *(bundle for file in self._foreign for bundle in self._kept.get(file, ()))]
        first = {bundle.trust_domain: bundle for bundle in reversed(bundles)}
        self._offer(X509Context((svid,), BundleSet(tuple(first.values()))), trouble=trouble)

    def _nothing_there(self, error: IstioAuthError) -> IstioAuthError:
        if isinstance(self._place, SVIDFiles) or self._layout is not None:
            return error
        others = SVIDLayout.KUBERNETES_TLS.chain, SVIDLayout.CREDENTIAL_BUNDLE.chain
        return MissingError(f"{error}; nor is there a {' or '.join(others)}")

    def _read_foreign(self, contents: Contents) -> IstioAuthError | None:
        troubles = []
        for file in self._foreign:
            try:
                self._kept[file] = file.bundles(contents)
            except IstioAuthError as error:
                troubles.append(str(error))
                # Only if its folder is there is a missing file one that was removed.
                if isinstance(error, MissingError) and file.path.parent.is_dir():
                    self._kept.pop(file, None)
        return ConfigurationError("; ".join(troubles)) if troubles else None

    def _warn_if_exposed(self, key: Path) -> None:
        if key not in self._exposed and is_exposed(key):
            self._exposed.add(key)
            _LOG.warning("everybody on this machine may read the private key %s: give it mode 0600", key)

    def _start(self, first: float) -> None:
        self._finalizer = weakref.finalize(self, self._ending.put, None)
        self._finalizer.atexit = False
        arguments = (weakref.ref(self), self._ending, first)
        self._thread = threading.Thread(target=_follow, args=arguments, name="istio-auth files", daemon=True)
        self._thread.start()

    def _resume(self) -> None:
        if not self._state.closed:
            self._start(0)

    def _after_fork(self) -> None:
        super()._after_fork()
        if self._finalizer is not None:
            self._finalizer.detach()
        self._reading, self._ending, self._thread = threading.RLock(), SimpleQueue(), None


def _follow(reference: weakref.ref[FileSource], ending: SimpleQueue[None], wait: float) -> None:
    """Look at the files until the source is closed, or nobody holds it any more."""
    while not _ended_within(wait, ending):
        source = reference()
        if source is None:
            return
        try:
            wait = source._poll()  # noqa: SLF001  # of this module
        except Exception:  # noqa: BLE001  # one failed look must not be the last
            _LOG.exception("looking at the files failed")
            wait = _PAUSE
        del source


def _ended_within(seconds: float, ending: SimpleQueue[None]) -> bool:
    try:
        ending.get(timeout=seconds)
    except Empty:
        return False
    return True


def _in_words(place: str | Path | SVIDFiles) -> str:
    return ", ".join(map(str, place.paths)) if isinstance(place, SVIDFiles) else f"in {place}"
