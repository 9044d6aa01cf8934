"""Reads what people give to a command: files, standard input or folders, with PEM, DER or a SPIFFE bundle."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from ca.cli.certificate_view import names_of
from istio_auth.bundle import BundleSet, TrustBundle
from istio_auth.errors import ConfigurationError, InvalidPEM, MissingError
from istio_auth.files import read_bounded
from istio_auth.pem import read_certificates, read_der_certificates
from istio_auth.spiffe_id import TrustDomain

MAX_BYTES = 4 << 20
STDIN = "-"
_BEGIN = b"-----BEGIN "


@dataclass(frozen=True, slots=True)
class Layout:
    """The names that one kind of program gives to an SVID's files."""

    chain: str
    key: str
    root: str


LAYOUTS = (
    Layout("cert-chain.pem", "key.pem", "root-cert.pem"),
    Layout("tls.crt", "tls.key", "ca.crt"),
    Layout("svid.pem", "svid_key.pem", "svid_bundle.pem"),
    Layout("ca-cert.pem", "ca-key.pem", "root-cert.pem"),
)


def read_input(path: str) -> bytes:
    """The bytes of a file, or of standard input if the path is `-`.

    Raises:
        ConfigurationError: it can not be read, or is too large.
    """
    if path == STDIN:
        content = sys.stdin.buffer.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigurationError(f"standard input holds more than {MAX_BYTES} bytes")
        return content
    try:
        return read_bounded(Path(path), MAX_BYTES)
    except MissingError as error:
        raise ConfigurationError(str(error)) from error


def layout_of(folder: Path) -> Layout:
    """How the files in an SVID's folder are named.

    Raises:
        ConfigurationError: no certificate chain of a known name is in it.
    """
    for layout in LAYOUTS:
        if (folder / layout.chain).exists():
            return layout
    known = ", ".join(layout.chain for layout in LAYOUTS)
    raise ConfigurationError(f"{folder} holds no SVID: expected one of {known}")


def pem_blocks(content: bytes) -> list[tuple[str, bytes]]:
    """The PEM blocks of a text, each with its label, up to the first block without an end."""
    blocks: list[tuple[str, bytes]] = []
    start = content.find(_BEGIN)
    while start >= 0:
        label, dashes, _ = content[start + len(_BEGIN) : start + 100].partition(b"-----")
        end = content.find(b"-----END " + label + b"-----", start)
        if not dashes or end < 0:
            break
        end += len(b"-----END -----") + len(label)
        blocks.append((label.decode("latin-1"), content[start:end] + b"\n"))
        start = content.find(_BEGIN, end)
    return blocks


def read_chain(path: str) -> tuple[x509.Certificate, ...]:
    """A certificate chain in PEM or DER from a file, standard input or an SVID's folder; other PEM blocks are skipped.

    Raises:
        ConfigurationError, InvalidPEM: there is none, or it can not be read.
    """
    if path != STDIN and (folder := Path(path)).is_dir():
        path = str(folder / layout_of(folder).chain)
    return certificates_in(read_input(path), path)


def certificates_in(content: bytes, source: str) -> tuple[x509.Certificate, ...]:
    """The certificates in PEM or DER bytes; other PEM blocks are skipped.

    Raises:
        InvalidPEM: there is none.
    """
    if b"-----BEGIN" not in content and content[:1] == b"\x30":
        return read_der_certificates(content)
    found = b"".join(block for label, block in pem_blocks(content) if label == "CERTIFICATE")
    if not found:
        raise InvalidPEM(f"{'standard input' if source == STDIN else source} holds no certificate")
    return read_certificates(found)


def read_bundles(path: str, trust_domain: TrustDomain | None) -> BundleSet:
    """Trust bundles from a file, standard input or an SVID's folder: PEM, a SPIFFE bundle or a SPIFFE bundle map.

    Args:
        path: the file or folder, or `-`.
        trust_domain: whose bundle it is; if None, the trust domain that its authorities name.

    Raises:
        ConfigurationError, InvalidPEM, InvalidBundle: it is no bundle, or nothing says whose it is.
    """
    if path != STDIN and (folder := Path(path)).is_dir():
        path = str(folder / layout_of(folder).root)
    return bundles_in(read_input(path), path, trust_domain)


def bundles_in(content: bytes, source: str, trust_domain: TrustDomain | None) -> BundleSet:
    """Trust bundles from bytes (see `read_bundles`)."""
    if content.lstrip()[:1] == b"{":
        if b'"trust_domains"' in content:
            return BundleSet.from_json(content)
        anonymous = TrustBundle.from_json(TrustDomain("unknown"), content)
        owner = trust_domain or _owner(anonymous.x509_authorities, source)
        return BundleSet((TrustBundle.from_json(owner, content),))
    authorities = tuple(dict.fromkeys(certificates_in(content, source)))
    return BundleSet((TrustBundle(trust_domain or _owner(authorities, source), authorities),))


def _owner(authorities: Sequence[x509.Certificate], source: str) -> TrustDomain:
    """The one trust domain that the SPIFFE IDs of the authorities name."""
    ids = {names_of(authority).spiffe_id for authority in authorities} - {None}
    domains = {spiffe_id.trust_domain for spiffe_id in ids if spiffe_id is not None}
    if len(domains) != 1:
        raise ConfigurationError(f"the bundle in {source} does not say whose it is: name it with --trust-domain")
    return domains.pop()
