"""A plugged-in authority: an issuer that somebody else made, read from the files that Istio defines for it.

    ca-cert.pem, ca-key.pem, cert-chain.pem, root-cert.pem      (a `cacerts` secret)
    tls.crt, tls.key, ca.crt                                    (a `kubernetes.io/tls` secret; `tls.crt` selects it)

All of a layout must be there, or none. Everything that could later make a certificate worthless is checked at start:
the key is that of the certificate, which is a CA, is valid, names no other trust domain and chains to the root. What
is kept in the store is the same state as for our own root, with a reference in the place of the key, so that the
bundle sequence grows when the roots change.
"""

from __future__ import annotations

import logging
import shlex
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature

from ca.authority.authority import Authority, ours
from ca.authority.state import AuthorityState, IssuerState, KeyReference
from ca.authority.store import AuthorityStore, Versioned
from istio_auth.clock import Clock
from istio_auth.errors import ConfigurationError, InvalidPEM, KeyRejected, MissingError
from istio_auth.files import read_bounded
from istio_auth.keys import PrivateKey, public_key_of, same_key
from istio_auth.pem import MAX_CERTIFICATES_BYTES, MAX_KEY_BYTES, read_certificates, read_private_key
from istio_auth.spiffe_id import TrustDomain
from istio_auth.svid import UNREADABLE_EXTENSIONS, uri_names

_MAX_DEPTH = 8
_log = logging.getLogger(__name__)


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


class PluggedAuthority(Authority):
    """An authority whose issuer comes from files. It is not ours to renew: `follow` takes what the files say by now."""

    def __init__(self, folder: Path, store: AuthorityStore, stored: Versioned[AuthorityState], key: PrivateKey) -> None:
        super().__init__(store, stored, key=key)
        self._folder = folder

    def follow(self, now: datetime) -> bool:
        """Read the files again and sign with what they say. Blocks.

        A new issuer must chain to a root that is in the bundle already: consumers need to hold a root before anything
        is signed under it. To move to a new root, put the old and the new one into the root file first.

        Returns:
            whether anything changed.

        Raises:
            ConfigurationError: the files can not be used; the old issuer stays in use.
            ConflictError, NotReady: the new state could not be kept; the same.
        """
        with self._lock:
            issuer = read_plugged(self._folder, self.trust_domain, now)
            assert issuer.key is not None
            assert not isinstance(issuer.key, KeyReference)
            state = _with_issuer(self.state, _referred(issuer, self._folder))
            if state is self.state:
                return False
            if issuer.root not in self.bundle.x509_authorities:
                raise ConfigurationError(
                    f"the new issuer in {self._folder} chains to a root that nobody has yet: put that root beside the "
                    "old one first, and change the issuer when every consumer has both"
                )
            self._replace(state, issuer.key)
        self._subscribers.tell()
        return True


def open_plugged_authority(
    folder: Path, store: AuthorityStore, trust_domain: TrustDomain, clock: Clock
) -> PluggedAuthority:
    """The authority whose files are in a folder. Blocks.

    Args:
        folder: where the files are.
        store: keeps the bundle sequence, and the roots of an authority that was replaced by this one.
        trust_domain: whose authority it must be.
        clock: tells whether the certificates are valid.

    Raises:
        ConfigurationError: files are missing or can not be used, or the store is another trust domain's.
        NotReady: files or store could not be looked at.
    """
    issuer = read_plugged(folder, trust_domain, clock.now())
    assert issuer.key is not None
    assert not isinstance(issuer.key, KeyReference)
    kept = _referred(issuer, folder)
    stored = store.load()
    if stored is None:
        stored = store.store(AuthorityState(trust_domain, kept), expected=None)
    else:
        state = _with_issuer(ours(stored, trust_domain).value, kept)
        if state is not stored.value:
            if kept.root not in stored.value.bundle().x509_authorities:
                _log.warning(
                    "the plugged-in CA in %s chains to a root that nobody has yet: whoever is not given the new bundle "
                    "can not reach this CA any more",
                    folder,
                )
            stored = store.store(state, expected=stored.version)
    return PluggedAuthority(folder, store, stored, issuer.key)


def find_layout(folder: Path) -> Layout | None:
    """Which layout the files in a folder have; None if there is none of them.

    Raises:
        ConfigurationError: some files of a layout are there and others are not, or the folder can not be looked at.
    """
    try:
        there = {name for name in (*TLS.files, *CACERTS.files) if (folder / name).exists()}
    except OSError as error:
        raise ConfigurationError(f"can not look into {folder}: {error.strerror}") from error
    if not there:
        return None
    layout = TLS if TLS.certificate in there or not there & {*CACERTS.files} else CACERTS
    if absent := [name for name in layout.files if name not in there]:
        raise ConfigurationError(f"the plugged-in CA in {folder} is incomplete: {', '.join(absent)} not found")
    return layout


def read_plugged(folder: Path, trust_domain: TrustDomain, now: datetime) -> IssuerState:
    """The issuer in a folder, with its key, after every check.

    Raises:
        ConfigurationError: files are missing or can not be used; the message says which and why.
        NotReady: they could not be read.
    """
    layout = find_layout(folder)
    if layout is None:
        raise ConfigurationError(f"no plugged-in CA is in {folder}: expected {', '.join(CACERTS.files)}")
    certificate, *pool = _certificates(folder / layout.certificate)
    if layout.chain != layout.certificate:
        pool += _certificates(folder / layout.chain, may_be_empty=True)
    roots = _certificates(folder / layout.root)
    key = _key(folder / layout.key)
    try:
        if not same_key(public_key_of(certificate), key.public_key()):
            raise ConfigurationError(f"{layout.key} is not the key of {layout.certificate}")
        intermediates, root = _path(certificate, pool, roots)
        for below, issuer in enumerate(dict.fromkeys((certificate, *intermediates, root))):
            _check_issuer(issuer, below, now)
        _check_trust_domain(certificate, trust_domain)
    except (ConfigurationError, KeyRejected) as error:
        raise ConfigurationError(f"the plugged-in CA in {folder} can not be used: {error}") from error
    others = tuple(other for other in dict.fromkeys(roots) if other != root)
    return IssuerState(certificate, root, intermediates, others, key)


def _with_issuer(state: AuthorityState, issuer: IssuerState) -> AuthorityState:
    """The state with this issuer in use. Our own root, if there was one, stays in the bundle until it ends."""
    old = state.active
    if (old, old.key) == (issuer, issuer.key):
        return state
    retired = state.retired if isinstance(old.key, KeyReference) else (old, *state.retired)
    new = replace(state, active=issuer, retired=retired)
    if new.bundle().x509_authorities == state.bundle().x509_authorities:
        return new
    return replace(new, sequence=state.sequence + 1)


def _referred(issuer: IssuerState, folder: Path) -> IssuerState:
    return replace(issuer, key=KeyReference(f"a plugged-in CA in {folder}"))


def _certificates(path: Path, *, may_be_empty: bool = False) -> list[x509.Certificate]:
    try:
        content = read_bounded(path, MAX_CERTIFICATES_BYTES)
        return [] if may_be_empty and not content.strip() else list(read_certificates(content))
    except (InvalidPEM, MissingError) as error:
        raise ConfigurationError(f"{path}: {error}") from error


def _key(path: Path) -> PrivateKey:
    try:
        if path.stat().st_mode & stat.S_IRWXO:  # a group is how Kubernetes hands secrets to a user that is not root
            raise ConfigurationError(f"{path} is open to everybody: run `chmod o= {shlex.quote(str(path))}`")
        return read_private_key(read_bounded(path, MAX_KEY_BYTES))
    except (InvalidPEM, KeyRejected, MissingError) as error:
        raise ConfigurationError(f"{path}: {error}") from error
    except OSError as error:
        raise ConfigurationError(f"can not look at {path}: {error.strerror}") from error


def _path(
    certificate: x509.Certificate, pool: Sequence[x509.Certificate], roots: Sequence[x509.Certificate]
) -> tuple[tuple[x509.Certificate, ...], x509.Certificate]:
    """The certificates between the issuer and a root, and that root: of several ways the one that lasts longest."""
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
        if _issued(way[-1], root):
            yield way, root
    if len(way) < _MAX_DEPTH:
        for issuer in pool:
            if issuer not in way and _issued(way[-1], issuer):
                yield from _paths((*way, issuer), pool, roots)


def _issued(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    if certificate.issuer != issuer.subject:
        return False
    public_key_of(issuer)  # bounded, before it is asked to check a signature
    try:
        certificate.verify_directly_issued_by(issuer)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _check_issuer(certificate: x509.Certificate, below: int, now: datetime) -> None:
    """What RFC 5280 and X509-SVID 3 ask of a certificate that issues, with so many issuers below it."""
    name = certificate.subject.rfc4514_string() or "without name"
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
    if not certificate.not_valid_before_utc <= now <= certificate.not_valid_after_utc:
        raise ConfigurationError(
            f"the certificate {name} is valid from {certificate.not_valid_before_utc:%F %T} to "
            f"{certificate.not_valid_after_utc:%F %T} UTC, and it is {now:%F %T}"
        )


def _check_trust_domain(certificate: x509.Certificate, trust_domain: TrustDomain) -> None:
    """A CA without SPIFFE ID is fine (istiod makes such); one with another trust domain's is a mistake (XC-08)."""
    for name in uri_names(certificate):
        if name.startswith("spiffe://") and name.removeprefix("spiffe://").partition("/")[0] != trust_domain.name:
            raise ConfigurationError(f"it is that of {name[:300]!r}, and this CA is for {trust_domain}")
