"""The IssuerSource port: where the files of a plugged-in issuer come from, and its adapter for a folder."""

from __future__ import annotations

import shlex
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from ca.authority.issuer_files import CACERTS, TLS, Layout, layout_of
from istio_auth.errors import ConfigurationError, MissingError
from istio_auth.files import read_bounded
from istio_auth.pem import MAX_CERTIFICATES_BYTES, MAX_KEY_BYTES


class IssuerSource(Protocol):
    """Has the files of an issuer that somebody else made."""

    @property
    def where(self) -> str:
        """Where they are, for people. The same on every replica: it is stored with the state, and compared."""
        ...

    def files(self) -> Mapping[str, bytes]:
        """The files that are there now, by name (see `ca.authority.issuer_files`); empty only if none is. Blocks.

        Raises:
            ConfigurationError: something that is there can not be used.
            NotReady: it could not be looked at.
        """
        ...


class IssuerFolder:
    """Takes the files from a folder.

    Args:
        folder: the folder; it need not be there.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    @property
    def where(self) -> str:
        """The folder."""
        return str(self._folder)

    def layout(self) -> Layout | None:
        """Which layout the files have; None if there are no such files.

        Raises:
            ConfigurationError: some files of a layout are there and others are not, or the folder can not be looked at.
        """
        try:
            there = {name for name in (*TLS.files, *CACERTS.files) if (self._folder / name).exists()}
        except OSError as error:
            raise ConfigurationError(f"can not look into {self._folder}: {error.strerror}") from error
        return layout_of(there, self.where)

    def files(self) -> Mapping[str, bytes]:
        """The files of the layout that is there now; empty if there is none. Blocks.

        Raises:
            ConfigurationError: the layout is incomplete, the folder can not be looked at, a file is too large, or the
                key is open to everybody.
            NotReady: a file could not be read.
        """
        if (layout := self.layout()) is None:
            return {}
        return {name: self._key(name) if name == layout.key else self._certificates(name) for name in layout.files}

    def _certificates(self, name: str) -> bytes:
        try:
            return read_bounded(self._folder / name, MAX_CERTIFICATES_BYTES)
        except MissingError as error:
            raise ConfigurationError(f"{self._folder / name}: {error}") from error

    def _key(self, name: str) -> bytes:
        path = self._folder / name
        try:
            if path.stat().st_mode & stat.S_IRWXO:  # a group may: so Kubernetes hands secrets to users other than root
                raise ConfigurationError(f"{path} is open to everybody: run `chmod o= {shlex.quote(str(path))}`")
            return read_bounded(path, MAX_KEY_BYTES)
        except MissingError as error:
            raise ConfigurationError(f"{path}: {error}") from error
        except OSError as error:
            raise ConfigurationError(f"can not look at {path}: {error.strerror}") from error
