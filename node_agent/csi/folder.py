"""What is kept of a volume, so that a restarted agent serves it as before: one folder for each, on tmpfs.

| name          | content                                                                        |
|---------------|--------------------------------------------------------------------------------|
| `record.json` | what was asked for; neither a token nor a key                                  |
| `svid.pem`    | the key and the chain, in one file, so that they can not come apart            |
| `mount/`      | what the pod sees                                                              |

The record comes first, so that nothing is ever mounted without one. The folders are private: a pod sees what is below
`mount/` through a mount, and other users of the node nothing.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

from istio_auth.bundle import BundleSource
from istio_auth.errors import MissingError
from istio_auth.files import atomic_write, file_error, private_folder, read_bounded
from istio_auth.sources.svid_files import write_svid
from istio_auth.strict_json import parse_json
from istio_auth.svid import X509SVID
from istio_auth.x509_source import X509Context
from node_agent.csi.attributes import FilesForm
from node_agent.csi.publication import Place, Publication, from_record
from node_agent.workloads.kept import read_kept

KEY_LENGTH = 20
CONTENT = "mount"
_RECORD, _SVID = "record.json", "svid.pem"
_MAX_RECORD = 64 << 10


class VolumeFolder:
    """The folder of one volume. Its methods block.

    Args:
        parent: where all of them are.
        key: its name (see `key_of`).
    """

    def __init__(self, parent: Path, key: str) -> None:
        self.key, self.path = key, parent / key

    @property
    def content(self) -> Path:
        """What the pod sees."""
        return self.path / CONTENT

    def begin(self, publication: Publication) -> None:
        """Make it, with its record.

        Raises:
            IstioAuthError: it can not be made, or not be written to.
        """
        private_folder(self.path)
        atomic_write(self.path / _RECORD, json.dumps(publication.record()).encode())
        try:
            self.content.mkdir(exist_ok=True)
            self.content.chmod(0o755)  # whatever the umask: the pod's users may look
        except OSError as error:
            raise file_error(error, self.content, "make the folder") from error

    def publication(self, place: Place) -> Publication:
        """What was asked for.

        Raises:
            MissingError: there is no record: this was never begun.
            IstioAuthError: it can not be read, or is none.
        """
        return from_record(parse_json(read_bounded(self.path / _RECORD, _MAX_RECORD), limit=_MAX_RECORD), place)

    def keep(self, svid: X509SVID) -> None:
        """Keep an SVID for the next start.

        Raises:
            IstioAuthError: it can not be written; the one before it stays.
        """
        atomic_write(self.path / _SVID, svid.credential_bundle_pem())

    def kept(self, bundles: BundleSource, now: datetime) -> X509SVID | None:
        """The SVID that was kept; None if there is none.

        Raises:
            IstioAuthError: it is not good any more, or can not be read.
        """
        try:
            return read_kept(self.path / _SVID, bundles, now)
        except MissingError:
            return None

    def write_files(self, context: X509Context, form: FilesForm) -> None:
        """Write what the pod reads, all at once.

        Raises:
            IstioAuthError: it can not be written; what was there stays.
        """
        write_svid(
            self.content,
            context,
            layout=form.layout,
            key_mode=form.key_mode,
            group=form.group,
            traditional_key=form.traditional_key,
            combined=form.combined,
        )

    def remove(self) -> None:
        """Remove all of it; again does no harm.

        Raises:
            IstioAuthError: something is left.
        """
        try:
            shutil.rmtree(self.path)
        except FileNotFoundError:
            pass
        except OSError as error:
            raise file_error(error, self.path, "remove") from error


def key_of(volume_id: str) -> str:
    """How a volume is called in paths: short, for the path of a socket has 107 bytes at most."""
    return hashlib.sha256(volume_id.encode()).hexdigest()[:KEY_LENGTH]


def folders_in(parent: Path) -> Iterator[VolumeFolder]:
    """Those that are there."""
    for path in sorted(parent.iterdir()):
        if len(path.name) == KEY_LENGTH and path.is_dir() and not path.is_symlink():
            yield VolumeFolder(parent, path.name)
