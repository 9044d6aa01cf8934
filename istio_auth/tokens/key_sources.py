"""Where the keys of a token issuer come from: a given `KeySet`, a URL, or its own discovery document (OpenID).

Only `https` is used. The server is verified by the caller's TLS context, or by files that are read again at each fetch,
so that replaced files count without a restart; without either, by the machine's own roots. Redirects are not followed.
Link-local and metadata addresses are never dialled, loopback only if a source allows it: see
`istio_auth.tokens.addresses`.
"""

from __future__ import annotations

import functools
import ssl
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias
from urllib.parse import SplitResult, urlsplit

from istio_auth.errors import ConfigurationError
from istio_auth.jwks import KeySet

DISCOVERY = "/.well-known/openid-configuration"


@dataclass(frozen=True, slots=True)
class TLSFiles:
    """Files from which a TLS context is made for each fetch.

    Args:
        ca: the CA certificates to verify the server with, in PEM; None for the machine's own roots.
        certificate: our own certificate with its chain, in PEM, for servers that ask for one.
        key: its private key, in PEM; None if the key is in the file of the certificate.

    Raises:
        ConfigurationError: there is a key without a certificate.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if self.key and not self.certificate:
            raise ConfigurationError(f"the key {self.key} has no certificate")

    def context(self) -> ssl.SSLContext:
        """A TLS context made of what the files hold now.

        Raises:
            OSError: a file can not be read, or is malformed (`ssl.SSLError`).
        """
        if self == TLSFiles():
            return _machines_context()
        context = ssl.create_default_context(cafile=self.ca)
        if self.certificate:
            context.load_cert_chain(self.certificate, self.key, password=_no_password)
        return context


@dataclass(frozen=True, slots=True)
class RemoteKeys:
    """A key set at a URL.

    Args:
        url: where it is.
        tls: how the server is verified, and how we authenticate to it: files, or a TLS context, such as one made by
            `client_context`.
        allow_loopback: whether the server may be on this machine.

    Raises:
        ConfigurationError: the URL can not be used (see `check_url`).
    """

    url: str
    tls: TLSFiles | ssl.SSLContext = TLSFiles()
    allow_loopback: bool = False

    def __post_init__(self) -> None:
        check_url(self.url)


@dataclass(frozen=True, slots=True)
class DiscoveredKeys:
    """The key set that the issuer's own discovery document names (OpenID Connect Discovery 1.0).

    Args:
        tls: how the servers of the document and of the keys are verified, and how we authenticate to them.
        allow_loopback: whether they may be on this machine.
    """

    tls: TLSFiles | ssl.SSLContext = TLSFiles()
    allow_loopback: bool = False


KeySource: TypeAlias = KeySet | RemoteKeys | DiscoveredKeys


def check_url(url: str) -> None:
    """Check that keys may be fetched from a URL.

    Raises:
        ConfigurationError: it is not https, names no host, or has a user name, a password, a fragment, spaces or
            characters that are not ASCII.
    """
    parts = _split(url)
    if parts is None or parts.scheme != "https" or not parts.hostname:
        raise ConfigurationError(f"{url[:200]!a} is no https URL")
    if parts.username is not None or parts.password is not None or parts.fragment:
        raise ConfigurationError("a URL of keys holds no user name, no password and no fragment")
    if not url.isascii() or any(character.isspace() for character in url):
        raise ConfigurationError(f"{url[:200]!a} is no https URL: it holds other characters than ASCII, or spaces")


def discovery_url(issuer: str) -> str:
    """Where an issuer's discovery document is (OpenID Connect Discovery 1.0, 4).

    Raises:
        ConfigurationError: the issuer is no such URL (see `check_url`), or has a query.
    """
    check_url(issuer)
    if urlsplit(issuer).query:
        raise ConfigurationError(f"the issuer {issuer[:200]!a} has a query: its discovery document has no place")
    return issuer.removesuffix("/") + DISCOVERY


def _split(url: str) -> SplitResult | None:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  # the look-up is the check
    except ValueError:
        return None
    return parts


_loading = threading.Lock()


def _machines_context() -> ssl.SSLContext:
    """The context with the machine's own roots, made once: there are many roots, and many issuers need them."""
    with _loading:
        return _made_once()


@functools.cache
def _made_once() -> ssl.SSLContext:
    return ssl.create_default_context()


def _no_password() -> str:
    """Given to OpenSSL, which would otherwise ask for a password at the terminal, and block."""
    return ""
