"""An SVID and its roots in files: where they are, and how to read and to write them all at once.

A reader compares the files' marks (inode, size, times) before and after: what it read counts only if no mark changed,
so it never takes half of a writer's work. The writer does as Kubernetes does with a volume: it makes a new folder with
all files, and then swaps one link, `..data`, from the old folder to the new.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
import stat
import time
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Self, TypeAlias

from istio_auth.errors import ConfigurationError, IstioAuthError, NotReady
from istio_auth.files import atomic_write, file_error, read_bounded, sync_folder
from istio_auth.pem import write_traditional_private_key
from istio_auth.x509_source import X509Context

_DATA = "..data"
_FRESH = "..svid-"  # the names of our folders and links begin so
_TRIES = 5
_PATIENCE = 2.0  # seconds that a writer waits for another

Mark: TypeAlias = tuple[int, ...]
Marks: TypeAlias = tuple[Mark, ...]
Content: TypeAlias = bytes | IstioAuthError


@dataclass(frozen=True, slots=True)
class SVIDLayout:
    """The names of the files in a folder: the chain (leaf first), the private key, and the roots, all in PEM.

    Chain and key may be one file. `ISTIO` has the names of Istio's `/etc/certs`. `KUBERNETES_TLS` has those of secrets
    of type `kubernetes.io/tls`, and of the volumes of SPIFFE CSI drivers. `CREDENTIAL_BUNDLE` has the usual names of a
    `podCertificate` volume with `credentialBundlePath`, and of the ClusterTrustBundle beside it.
    """

    ISTIO: ClassVar[SVIDLayout]
    KUBERNETES_TLS: ClassVar[SVIDLayout]
    CREDENTIAL_BUNDLE: ClassVar[SVIDLayout]

    chain: str
    key: str
    roots: str

    @property
    def names(self) -> tuple[str, str, str]:
        """The three names."""
        return self.chain, self.key, self.roots


SVIDLayout.ISTIO = SVIDLayout("cert-chain.pem", "key.pem", "root-cert.pem")
SVIDLayout.KUBERNETES_TLS = SVIDLayout("tls.crt", "tls.key", "ca.crt")
SVIDLayout.CREDENTIAL_BUNDLE = SVIDLayout("credential-bundle.pem", "credential-bundle.pem", "trust-bundle.pem")
_KNOWN = (SVIDLayout.ISTIO, SVIDLayout.KUBERNETES_TLS, SVIDLayout.CREDENTIAL_BUNDLE)


@dataclass(frozen=True, slots=True)
class SVIDFiles:
    """Where the files are.

    Args:
        chain: the certificates, leaf first, without the root, in PEM.
        key: the private key, in PEM; if it is the same file as the chain, that holds both.
        roots: the CA certificates of a trust domain, in PEM.
    """

    chain: Path
    key: Path
    roots: Path

    @classmethod
    def in_folder(cls, folder: Path, layout: SVIDLayout) -> Self:
        """The files of a folder with this layout."""
        return cls(*(folder / name for name in layout.names))

    @classmethod
    def detect(cls, folder: Path) -> Self:
        """The files of a folder with the known layout of which most files are there; `ISTIO` if nothing is."""
        layouts = (cls.in_folder(folder, layout) for layout in _KNOWN)
        return max(layouts, key=lambda files: sum(map(is_there, files.paths)))

    @property
    def paths(self) -> tuple[Path, Path, Path]:
        """The three files."""
        return self.chain, self.key, self.roots

    @property
    def swapped(self) -> bool:
        """Whether they are changed all at once by swapping one link, as in a volume of Kubernetes."""
        # Not pathlib's, which raises for a loop of links, and for a folder that we may not enter.
        return all(
            os.path.dirname(os.path.realpath(path)) == os.path.realpath(path.parent / _DATA)  # noqa: PTH120  # see above
            for path in self.paths
        )


def marks(paths: Iterable[Path]) -> Marks:
    """A mark for each file, which changes when the file does. A file that can not be looked at has one as well."""
    return tuple(map(_mark, paths))


def read_together(limits: Mapping[Path, int]) -> dict[Path, Content]:
    """What these files held at one moment: for each its bytes, or the error of reading it.

    Args:
        limits: the files, and how many bytes each may have.

    Raises:
        NotReady: they changed again and again while they were read.
    """
    for _ in range(_TRIES):
        if (contents := read_unchanged(limits, marks(limits))) is not None:
            return contents
    raise NotReady("the files change again and again while they are read")


def read_unchanged(limits: Mapping[Path, int], seen: Marks) -> dict[Path, Content] | None:
    """What these files hold (see `read_together`); None if their marks are not those in `seen` any more."""
    contents = {path: _read(path, limit) for path, limit in limits.items()}
    return contents if marks(limits) == seen else None


def is_there(path: Path) -> bool:
    """Whether there is anything with this name that we can look at."""
    return len(_mark(path)) > 1


def is_exposed(path: Path) -> bool:
    """Whether everybody on the machine may read a file."""
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False


def write_svid(
    folder: str | Path,
    context: X509Context,
    *,
    layout: SVIDLayout = SVIDLayout.ISTIO,
    key_mode: int = 0o600,
    group: int | None = None,
    traditional_key: bool = False,
    combined: str = "",
) -> SVIDFiles:
    """Write the default SVID and the roots of its trust domain for programs that read files, all at once.

    A reader sees the old files or the new ones. The exception is the first write over plain files of these names, which
    are replaced one by one. The modes are exactly these, whatever the umask. Writers wait for each other.

    Args:
        folder: where to write; made if it is not there.
        context: what to write.
        layout: the names of the files.
        key_mode: the mode of the key's file; 0640 lets a group read it. The other files have 0644.
        group: the group of the files, by number; None leaves the group that new files get.
        traditional_key: write the key as PKCS#1 (RSA) or SEC 1 (EC) and not as PKCS#8, for old readers.
        combined: the name of one more file that holds the key and then the chain, with the key's mode; none if empty.

    Returns:
        where they are.

    Raises:
        NotReady: there is no SVID, the disk is full or failed, or another process keeps the folder locked. The old
            files are as they were, unless a step after the swap failed; then the next write completes it.
        VerificationError: there is no bundle for the trust domain of the SVID.
        ConfigurationError: the folder can not be made or written to, or we may not give files to the group.
    """
    folder, svid = Path(folder), context.svid
    key = write_traditional_private_key(svid.private_key) if traditional_key else svid.key_pem()
    contents = _contents(context, layout, key, key_mode, combined)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(folder):
            try:
                _replace(folder, contents, group)
            finally:
                _remove_old(folder)
    except OSError as error:
        raise file_error(error, folder, "write into", absent=ConfigurationError) from error
    return SVIDFiles.in_folder(folder, layout)


def svid_is_written(
    folder: Path, context: X509Context, *, layout: SVIDLayout, key_mode: int, group: int | None
) -> bool:
    """Whether `write_svid` with the same arguments would change nothing: neither content, nor mode, nor owner.

    Raises:
        NotReady: there is no SVID.
        VerificationError: there is no bundle for the trust domain of the SVID.
    """
    contents = _contents(context, layout, context.svid.key_pem(), key_mode)
    try:
        # New files get the group of this folder, which is ours or inherited from the folder above.
        usual = (folder / _DATA).stat().st_gid
        owner = os.geteuid(), usual if group is None else group
        return all(_is_written(folder, name, content, mode, owner) for name, (content, mode) in contents.items())
    except (OSError, IstioAuthError):
        return False  # then `write_svid` is called, and raises what is wrong


def _contents(
    context: X509Context, layout: SVIDLayout, key: bytes, key_mode: int, combined: str = ""
) -> dict[str, tuple[bytes, int]]:
    svid = context.svid
    contents = {
        layout.key: (key, key_mode),
        layout.chain: (svid.chain_pem(), 0o644),
        layout.roots: (context.bundle(svid.id.trust_domain).to_pem(), 0o644),
    }
    for name in filter(None, {combined, *({layout.key} & {layout.chain})}):
        contents[name] = (key + svid.chain_pem(), key_mode)
    return contents


def _is_written(folder: Path, name: str, content: bytes, mode: int, owner: tuple[int, int]) -> bool:
    path = folder / _DATA / name
    found = path.lstat()
    return (
        str((folder / name).readlink()) == f"{_DATA}/{name}"
        and found.st_mode == stat.S_IFREG | mode
        and (found.st_uid, found.st_gid) == owner
        and read_bounded(path, len(content)) == content
    )


def _mark(path: Path) -> Mark:
    try:
        found = path.stat()
    except OSError as error:
        return (error.errno or 0,)
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(path: Path, limit: int) -> Content:
    try:
        return read_bounded(path, limit)
    except IstioAuthError as error:
        return error


@contextmanager
def _locked(folder: Path) -> Generator[None]:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    deadline = time.monotonic() + _PATIENCE
    try:
        while True:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:  # everybody who may read the folder can lock it, for as long as they like
                if time.monotonic() > deadline:
                    raise NotReady(f"{folder} is locked by another process: see /proc/locks") from None
                time.sleep(0.01)
        yield
    finally:
        os.close(descriptor)


def _replace(folder: Path, contents: Mapping[str, tuple[bytes, int]], group: int | None) -> None:
    fresh = folder / f"{_FRESH}{secrets.token_hex(8)}"
    fresh.mkdir()
    fresh.chmod(0o755)
    for name, (content, mode) in contents.items():
        atomic_write(fresh / name, content, mode=mode & 0o600 if group is not None else mode)
        if group is not None:
            _give(fresh / name, group)
            (fresh / name).chmod(mode)  # only now may the group read it: before, it was another one
    _link(folder / _DATA, fresh.name)
    for name in contents:
        _link(folder / name, f"{_DATA}/{name}")
    sync_folder(folder)


def _give(path: Path, group: int) -> None:
    try:
        os.chown(path, -1, group)
    except PermissionError as error:
        raise ConfigurationError(
            f"files can not be given to group {group}: who writes them must be in that group, or have CAP_CHOWN"
        ) from error


def _link(path: Path, target: str) -> None:
    """Make the path a link to this target in one step, whatever it was before."""
    if path.is_symlink() and str(path.readlink()) == target:
        return
    temporary = path.with_name(f"{_FRESH}{secrets.token_hex(8)}")
    temporary.symlink_to(target)
    temporary.replace(path)


def _remove_old(folder: Path) -> None:
    """Remove the folders that `..data` does not point to, and links that a killed writer left."""
    with suppress(OSError):
        current = (folder / _DATA).resolve().name
        for path in folder.glob(f"{_FRESH}*"):
            if path.is_symlink():
                path.unlink()
            elif path.name != current:
                shutil.rmtree(path, ignore_errors=True)
