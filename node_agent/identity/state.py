"""What the agent keeps from one start to the next, in one folder that only it may enter.

| file               | content                                                                               |
|--------------------|---------------------------------------------------------------------------------------|
| `node-key.pem`     | the key the node enrols with; made once, kept for good: it brings a lapsed agent back |
| `svid.pem`         | the agent's own SVID, key and chain in one file, so that they can not come apart      |
| `bundles.json`     | whom to trust, as the CA sent it last                                                 |
| `spent-token`      | the hash of the join token that was used, to know a new one from it                   |
| `lock`             | held while an agent runs: two of them in one folder would undo each other             |

Secrets of workloads are never here. What can not be written, because the disk is full for instance, is used from
memory and written as soon as that is possible; nobody loses by it, for the node key brings back who lost the rest. Only
the node key itself must be here before it is used.

A damaged SVID or bundle file counts as not there, and is told; a damaged node key, or a secret that others can read,
stops the start: only the operator can say what happened.
"""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import structlog

from istio_auth.errors import ConfigurationError, IstioAuthError, MalformedError, MissingError
from istio_auth.files import FileLock, atomic_write, private_folder, read_bounded, read_secret, remove_leftovers
from istio_auth.keys import PrivateKey, new_private_key
from istio_auth.pem import read_private_key, write_private_key
from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import X509SVID
from node_agent.token_file import token_in
from node_agent.trust import KeptTrust

_MAX_BYTES = 8 << 20
_MAX_TOKEN = 16 << 10
log = structlog.get_logger()


class StateFolder:
    """The folder. Its methods block.

    Args:
        path: where it is; made if need be.

    Raises:
        ConfigurationError: it is not ours alone.

    Attributes:
        trouble: why what is in use is not on disk; None if it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = private_folder(path)
        self.trouble: str | None = None
        self._unwritten: dict[str, bytes] = {}
        self._writing = threading.Lock()
        self.lock = FileLock(self.path / "lock")

    def tidy(self) -> None:
        """Remove what a killed agent left half written. Only under the lock."""
        remove_leftovers(self.path)

    def node_key(self) -> PrivateKey:
        """The node key, made now if there is none.

        Raises:
            ConfigurationError: there is one that can not be used.
        """
        path = self.path / "node-key.pem"
        try:
            return read_private_key(read_secret(path, _MAX_BYTES))
        except MissingError:
            key = new_private_key()
            atomic_write(path, write_private_key(key))
            log.info("a node key was made", path=str(path))
            return key
        except ConfigurationError:
            raise
        except MalformedError as error:
            raise ConfigurationError(f"{path}: {error}: restore it, or remove it and enrol again") from error

    def svid(self, spiffe_id: SpiffeID) -> X509SVID | None:
        """The agent's own SVID, lapsed or not; None if none is kept that is of use.

        Raises:
            ConfigurationError: others may read it.
        """
        path = self.path / "svid.pem"
        try:
            text = read_secret(path, _MAX_BYTES)
        except MissingError:
            return None
        try:
            found = X509SVID.parse_credential_bundle(text)
        except MalformedError as error:
            log.warning("the kept SVID is damaged and is not used", path=str(path), reason=str(error))
            return None
        if found.id != spiffe_id:
            log.warning("the kept SVID is another's and is not used", path=str(path), found=str(found.id))
            return None
        return found

    def keep_svid(self, svid: X509SVID) -> None:
        """Put the agent's own SVID in the place of the old one."""
        self._write("svid.pem", svid.credential_bundle_pem())

    def trust(self) -> KeptTrust | None:
        """The bundles that the CA sent last; None if none are kept that are of use."""
        path = self.path / "bundles.json"
        try:
            text = read_bounded(path, _MAX_BYTES)
        except MissingError:
            return None
        try:
            return KeptTrust.parse(text)
        except MalformedError as error:
            log.warning("the kept bundles are damaged; what is pinned counts", path=str(path), reason=str(error))
            return None

    def keep_trust(self, kept: KeptTrust) -> None:
        """Put these bundles in the place of the old ones."""
        self._write("bundles.json", kept.to_json())

    def is_spent(self, token: str) -> bool:
        """Whether this join token was used here before."""
        if self._unwritten.get("spent-token") == _noted(token):
            return True
        try:
            return read_bounded(self.path / "spent-token", 1024).decode(errors="replace").strip() == _hash(token)
        except MissingError:
            return False

    def note_spent(self, token: str) -> None:
        """Remember that this join token was used."""
        self._write("spent-token", _noted(token))

    def catch_up(self) -> None:
        """Write what could not be written before."""
        if self._unwritten:
            with self._writing:
                self._settle()

    def _write(self, name: str, content: bytes) -> None:
        with self._writing:
            self._unwritten[name] = content
            self._settle()

    def _settle(self) -> None:
        trouble = None
        for name, content in list(self._unwritten.items()):
            try:
                atomic_write(self.path / name, content)
            except IstioAuthError as error:
                trouble = str(error)
            else:
                del self._unwritten[name]
        if trouble != self.trouble:
            if trouble is None:
                log.info("what is in use is on disk again", folder=str(self.path))
            else:
                log.error("what is in use could not be written, and will be as soon as it can", reason=trouble)
        self.trouble = trouble


def read_token(path: Path | None) -> str:
    """The join token in a file.

    Raises:
        MissingError: there is none: no file is named, it is not there, or is empty.
        ConfigurationError: others may read the file, or it holds no token.
    """
    if path is None:
        raise MissingError("join_token_file is not set")
    if not (token := token_in(read_secret(path, _MAX_TOKEN), path, kind="join token", empty=True)):
        raise MissingError(f"{path} is empty")
    return token


def _noted(token: str) -> bytes:
    return _hash(token).encode() + b"\n"


def _hash(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
