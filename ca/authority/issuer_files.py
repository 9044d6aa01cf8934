"""Reads and checks an issuer that somebody else made, from files in the two layouts that Istio defines.

    ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem      (a `cacerts` secret)
    tls.crt, tls.key, ca.crt                                    (a `kubernetes.io/tls` secret; `tls.crt` selects it)

All files of a layout must be there, or none. Everything that could later make a certificate worthless is checked: that
the key belongs to the certificate, and that the certificate is a CA's, is valid now, names no other trust domain and
chains to the root.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from ca.authority.state import IssuerState
from istio_auth.errors import ConfigurationError, InvalidPEM, KeyRejected
from istio_auth.keys import PrivateKey, public_key_of, same_key
from istio_auth.pem import read_certificates, read_private_key
from istio_auth.spiffe_id import TrustDomain
from istio_auth.svid import UNREADABLE_EXTENSIONS, uri_names

_MAX_DEPTH = 8


@dataclass(frozen=True, slots=True)
class Layout:
    """The names of the files of one layout; `chain` may be the same file as `certificate`."""

    certificate: str
    key: str
    chain: str
    root: str

    @property
    def files(self) -> tuple[str, ...]:
        """The names, each once."""
        return tuple(dict.fromkeys((self.certificate, self.key, self.chain, self.root)))


CACERTS = Layout("ca-cert.pem", "ca-key.pem", "cert-chain.pem", "root-cert.pem")
TLS = Layout("tls.crt", "tls.key", "tls.crt", "ca.crt")


def layout_of(names: AbstractSet[str], where: str) -> Layout | None:
    """The layout that these file names belong to; None if no name belongs to any.

    Args:
        names: what is there; other names are ignored.
        where: where that is, for the message.

    Raises:
        ConfigurationError: some files of a layout are there and others are not.
    """
    there = names & {*TLS.files, *CACERTS.files}
    if not there:
        return None
    layout = TLS if TLS.certificate in there or not there & {*CACERTS.files} else CACERTS
    if absent := [name for name in layout.files if name not in there]:
        raise ConfigurationError(f"the plugged-in CA in {where} is incomplete: {', '.join(absent)} not found")
    return layout


def issuer_of(files: Mapping[str, bytes], where: str, trust_domain: TrustDomain, *, now: datetime) -> IssuerState:
    """The issuer in files, with its key, after every check.

    Args:
        files: their contents, by name.
        where: where they are, for the message.
        trust_domain: whose issuer it must be.
        now: the instant at which it must be valid.

    Raises:
        ConfigurationError: files are missing or can not be used; the message says which and why.
    """
    layout = layout_of(files.keys(), where)
    if layout is None:
        raise ConfigurationError(f"no plugged-in CA is in {where}: expected {', '.join(CACERTS.files)}")
    certificate, *pool = certificates_in(files, layout.certificate, where)
    if layout.chain != layout.certificate:
        pool += certificates_in(files, layout.chain, where, may_be_empty=True)
    roots = certificates_in(files, layout.root, where)
    key = key_in(files, layout.key, where)
    try:
        if not same_key(public_key_of(certificate), key.public_key()):
            raise ConfigurationError(f"{layout.key} is not the key of {layout.certificate}")
        issuer = chained(certificate, pool, roots, key)
        check_issuer(issuer, trust_domain)
        for one in (certificate, *issuer.intermediates, issuer.root):
            _check_validity(one, now)
    except (ConfigurationError, KeyRejected) as error:
        raise ConfigurationError(f"the plugged-in CA in {where} can not be used: {error}") from error
    return issuer


def certificates_in(
    files: Mapping[str, bytes], name: str, where: str, *, may_be_empty: bool = False
) -> list[x509.Certificate]:
    """The certificates in one of these files.

    Raises:
        ConfigurationError: it holds something else; the message names the file.
    """
    content = files[name]
    if may_be_empty and not content.strip():
        return []
    try:
        return list(read_certificates(content))
    except InvalidPEM as error:
        raise ConfigurationError(f"{where}/{name}: {error}") from error


def key_in(files: Mapping[str, bytes], name: str, where: str) -> PrivateKey:
    """The private key in one of these files.

    Raises:
        ConfigurationError: it holds something else; the message names the file.
    """
    try:
        return read_private_key(files[name])
    except (InvalidPEM, KeyRejected) as error:
        raise ConfigurationError(f"{where}/{name}: {error}") from error


def chained(
    certificate: x509.Certificate,
    pool: Sequence[x509.Certificate],
    roots: Sequence[x509.Certificate],
    key: PrivateKey | None,
) -> IssuerState:
    """The issuer with this certificate, and its chain to one of the roots; the other roots are trusted beside that one.

    Raises:
        ConfigurationError: it does not chain to a root.
    """
    intermediates, root = _path(certificate, pool, roots)
    others = tuple(other for other in dict.fromkeys(roots) if other != root)
    return IssuerState(certificate, root, intermediates, others, key)


def check_issuer(issuer: IssuerState, trust_domain: TrustDomain) -> None:
    """Make sure that an issuer may issue for a trust domain. Whether it is valid now is not checked here.

    Raises:
        ConfigurationError, KeyRejected: a certificate from the issuer to its root is no CA's or has a key that is not
            allowed, or the issuer's names another trust domain.
    """
    chain = dict.fromkeys((issuer.certificate, *issuer.intermediates, issuer.root))
    for below, certificate in enumerate(chain):
        _check_ca(certificate, below)
    _check_trust_domain(issuer.certificate, trust_domain)


def issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether one certificate was issued by the key and name of another.

    Raises:
        KeyRejected: the issuer's key is of a type or size that is not allowed.
    """
    if certificate.issuer != issuer.subject:
        return False
    public_key_of(issuer)  # refuses a huge key before it costs the time of a verification
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _path(
    certificate: x509.Certificate, pool: Sequence[x509.Certificate], roots: Sequence[x509.Certificate]
) -> tuple[tuple[x509.Certificate, ...], x509.Certificate]:
    """The certificates between the issuer and a root, and that root: of several chains the one that lasts longest."""
    if certificate in roots:
        return (), certificate
    found = list(_paths((certificate,), [other for other in pool if other not in roots], roots))
    if not found:
        raise ConfigurationError("its certificate does not chain to its root")
    (_, *intermediates), root = max(found, key=lambda way: min(one.not_valid_after_utc for one in (*way[0], way[1])))
    return tuple(intermediates), root


def _paths(
    way: tuple[x509.Certificate, ...], pool: Sequence[x509.Certificate], roots: Sequence[x509.Certificate]
) -> Iterator[tuple[tuple[x509.Certificate, ...], x509.Certificate]]:
    for root in roots:
        if issued_by(way[-1], root):
            yield way, root
    if len(way) < _MAX_DEPTH:
        for issuer in pool:
            if issuer not in way and issued_by(way[-1], issuer):
                yield from _paths((*way, issuer), pool, roots)


def _check_ca(certificate: x509.Certificate, below: int) -> None:
    """Check what RFC 5280 and X509-SVID 3 ask of a CA's certificate with so many CA certificates below it."""
    name = _name(certificate)
    try:
        extensions = certificate.extensions
        constraints = extensions.get_extension_for_class(x509.BasicConstraints)
        usage = extensions.get_extension_for_class(x509.KeyUsage)
    except x509.ExtensionNotFound as error:
        raise ConfigurationError(f"the certificate {name} is no CA: it lacks basicConstraints or keyUsage") from error
    except UNREADABLE_EXTENSIONS as error:
        raise ConfigurationError(f"the certificate {name} does not parse") from error
    if not constraints.value.ca or not constraints.critical:
        raise ConfigurationError(f"the certificate {name} is no CA (basicConstraints)")
    if not usage.value.key_cert_sign or not usage.critical:
        raise ConfigurationError(f"the key of the certificate {name} may not sign certificates (keyUsage)")
    if constraints.value.path_length is not None and constraints.value.path_length < below:
        raise ConfigurationError(f"the certificate {name} allows no chain as long as this (pathLenConstraint)")
    public_key_of(certificate)


def _check_validity(certificate: x509.Certificate, now: datetime) -> None:
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise ConfigurationError(
            f"the certificate {_name(certificate)} is valid from {certificate.not_valid_before_utc:%F %T} to "
            f"{certificate.not_valid_after_utc:%F %T} UTC, and it is {now:%F %T}"
        )


def _check_trust_domain(certificate: x509.Certificate, trust_domain: TrustDomain) -> None:
    """A CA without a SPIFFE ID is fine (istiod makes such); one with that of another trust domain is not (XC-08)."""
    for name in uri_names(certificate):
        if name.startswith("spiffe://") and name.removeprefix("spiffe://").partition("/")[0] != trust_domain.name:
            raise ConfigurationError(f"it is that of {name[:300]!r}, and this CA is for {trust_domain}")


def _name(certificate: x509.Certificate) -> str:
    return certificate.subject.rfc4514_string() or "without name"
