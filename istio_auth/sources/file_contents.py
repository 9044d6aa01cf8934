"""Makes an SVID and bundles of the contents of files: without I/O, and with errors that name the file."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Self, TypeAlias

from istio_auth.bundle import BundleSet, TrustBundle
from istio_auth.errors import ConfigurationError, MalformedError
from istio_auth.pem import MAX_CERTIFICATES_BYTES, read_certificates, read_credential_bundle, read_private_key
from istio_auth.sources.svid_files import Content, SVIDFiles
from istio_auth.spiffe_id import TrustDomain
from istio_auth.svid import X509SVID

_MAX_BUNDLE_MAP_BYTES = 4 << 20

Contents: TypeAlias = Mapping[Path, Content]


def svid_in(files: SVIDFiles, contents: Contents, now: datetime) -> X509SVID:
    """The SVID of the chain and the key in these files.

    Raises:
        IstioAuthError: a file could not be read or is malformed, chain and key do not match, or the SVID has ended.
    """
    if files.chain == files.key:
        with _about(files.key):
            chain, key = read_credential_bundle(_bytes(contents[files.key]))
    else:
        with _about(files.chain):
            chain = read_certificates(_bytes(contents[files.chain]))
        with _about(files.key):
            key = read_private_key(_bytes(contents[files.key]))
    with _about(*dict.fromkeys((files.chain, files.key))):
        svid = X509SVID.of(chain, key)
    if svid.not_after <= now:
        raise ConfigurationError(f"{files.chain}: the SVID {svid.id} has ended at {svid.not_after.isoformat()}")
    return svid


def roots_in(path: Path, contents: Contents, trust_domain: TrustDomain) -> TrustBundle:
    """The bundle in a file of CA certificates.

    Raises:
        IstioAuthError: the file could not be read, or is malformed.
    """
    with _about(path):
        return TrustBundle.from_pem(trust_domain, _bytes(contents[path]))


@dataclass(frozen=True)
class BundleFile:
    """A file with bundles of other trust domains.

    Args:
        path: where it is.
        limit: how many bytes it may have.
        parse: makes bundles of its bytes.
    """

    path: Path
    limit: int
    parse: Callable[[bytes], tuple[TrustBundle, ...]]

    @classmethod
    def of_pem(cls, path: Path, trust_domain: TrustDomain) -> Self:
        """A file of CA certificates in PEM, of one trust domain."""
        return cls(path, MAX_CERTIFICATES_BYTES, partial(_of_pem, trust_domain))

    @classmethod
    def of_map(cls, path: Path) -> Self:
        """A SPIFFE bundle map in JSON."""
        return cls(path, _MAX_BUNDLE_MAP_BYTES, _of_map)

    def bundles(self, contents: Contents) -> tuple[TrustBundle, ...]:
        """The bundles in the file.

        Raises:
            MissingError: there is no such file.
            IstioAuthError: it could not be read, or is malformed.
        """
        with _about(self.path):
            return self.parse(_bytes(contents[self.path]))


def _of_pem(trust_domain: TrustDomain, pem: bytes) -> tuple[TrustBundle, ...]:
    return (TrustBundle.from_pem(trust_domain, pem),)


def _of_map(text: bytes) -> tuple[TrustBundle, ...]:
    return BundleSet.from_json(text).bundles


def _bytes(content: Content) -> bytes:
    if isinstance(content, bytes):
        return content
    raise content.with_traceback(None)


@contextmanager
def _about(*paths: Path) -> Generator[None]:
    """Put the paths before an error about the content; an error of reading names its path already."""
    try:
        yield
    except ConfigurationError:
        raise
    except MalformedError as error:
        raise ConfigurationError(f"{' and '.join(map(str, paths))}: {error}") from error
