"""Where the keys of a token issuer come from: a `KeySet` in hand, a URL, or its own discovery document (OpenID).

Only `https`. Whom to believe is the caller's TLS context, or files that are read again at each fetch, so that replaced
ones count without a restart; without either, the machine's own roots. Redirects are not followed. Link-local and
metadata addresses are never dialled, loopback only if a source says so: see `istio_auth.tokens.addresses`.
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
        ca: the CA certificates by which the server is known, in PEM; without it the machine's own roots.
        certificate: our own certificate with its chain, in PEM, for servers that ask for one.
        key: its private key, in PEM; without it the key stands in the file of the certificate.
    """

    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None

    def __post_init__(self) -> None:
        if self.key and not self.certificate:
            raise ConfigurationError(f"the key {self.key} has no certificate")

    def context(self) -> ssl.SSLContext:
        """A TLS context of what the files hold now.

        Raises:
            OSError: one of them can not be read, or holds something else (`ssl.SSLError`).
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
        tls: how the server is known, and we to it: files, or a context such as our own `client_context`.
        allow_loopback: whether the server may be on this machine.

    Raises:
        ConfigurationError: it is no https URL.
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
        tls: how the servers of the document and of the keys are known, and we to them.
        allow_loopback: whether they may be on this machine.
    """

    tls: TLSFiles | ssl.SSLContext = TLSFiles()
    allow_loopback: bool = False


KeySource: TypeAlias = KeySet | RemoteKeys | DiscoveredKeys


def check_url(url: str) -> None:
    """See whether keys may be fetched from a URL.

    Raises:
        ConfigurationError: it is not https, names no host, or holds a user name or a fragment.
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
        ConfigurationError: the issuer is no https URL, or one with a query.
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
    """The context of the machine's own roots, made once: there are many of them, and many issuers are known by them."""
    with _loading:
        return _made_once()


@functools.cache
def _made_once() -> ssl.SSLContext:
    return ssl.create_default_context()


def _no_password() -> str:
    """Else OpenSSL would ask whoever sits at the terminal, and we would wait."""
    return ""
