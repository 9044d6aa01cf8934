"""The files that an operator writes for the agent: the pinned bundle, and the local registrations if there are any.

They are read at the start, which a mistake stops. They are read again on SIGHUP and when they change; a mistake is
logged once then, and the last good content stays.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from istio_auth.bundle import TrustBundle
from istio_auth.errors import ConfigurationError, MalformedError, MissingError
from istio_auth.files import read_bounded
from istio_auth.registration import Registration
from istio_auth.spiffe_id import TrustDomain
from node_agent.trust import read_pin
from node_agent.workloads.registrations import from_file

_MAX_BYTES = 16 << 20
Content = TypeVar("Content")


class OperatorFile(Generic[Content]):
    """One file. Its methods block.

    Args:
        path: where it is.
        parse: makes its content.
    """

    def __init__(self, path: Path, parse: Callable[[bytes], Content]) -> None:
        self.path, self._parse = path, parse
        self._seen: bytes | None = None

    def read(self) -> Content:
        """Its content now.

        Raises:
            ConfigurationError: it is missing, or can not be used.
            NotReady: reading failed.
        """
        return self._parsed(self._text())

    def read_change(self) -> Content | None:
        """Its content, if that is not what was looked at last; a mistake is told once.

        Raises:
            ConfigurationError, NotReady: as in `read`.
        """
        before = self._seen
        try:
            text = self._text()
        except ConfigurationError:
            self._seen = None
            if before is None:
                return None
            raise
        return None if self._seen == before else self._parsed(text)

    def _text(self) -> bytes:
        try:
            text = read_bounded(self.path, _MAX_BYTES)
        except MissingError as error:
            raise ConfigurationError(str(error)) from error
        self._seen = hashlib.sha256(text).digest()
        return text

    def _parsed(self, text: bytes) -> Content:
        try:
            return self._parse(text)
        except MalformedError as error:
            raise ConfigurationError(f"{self.path}: {error}") from error


def trust_bundle(path: Path, trust_domain: TrustDomain) -> OperatorFile[TrustBundle]:
    """The file of the pinned bundle."""
    return OperatorFile(path, lambda text: read_pin(trust_domain, text))


def local_registrations(path: Path, trust_domain: TrustDomain) -> OperatorFile[tuple[Registration, ...]]:
    """The file of local registrations."""
    return OperatorFile(path, lambda text: from_file(text, trust_domain).all())
