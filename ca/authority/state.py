"""AuthorityState: everything a CA must not forget, in a versioned JSON format.

The bundle sequence lives here and nowhere else: it grows with every change of the bundle, over restarts and replicas.
An issuer is in one of three places: it signs (active); its root is in the bundle, but it does not sign yet (prepared);
or it signed before, and its root must stay in the bundle (retired).

    {"version": 1, "trust_domain": "cluster.local", "sequence": 1, "refresh_hint": 300, "longest_ttl": 7776000,
     "active": ISSUER, "prepared": ISSUER or null, "retired": [ISSUER, ...], "deadlines": {NAME: INSTANT, ...}}
    ISSUER = {"certificate": PEM, "intermediates": [PEM, ...], "root": PEM, "other_roots": [PEM, ...],
              "key": {"pem": PKCS#8} or {"reference": WHERE} or null}

Reading is strict: an unknown version or member is an error. Writing the state back would lose what was not understood.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TypeGuard

from cryptography import x509

from istio_auth.bundle import DEFAULT_REFRESH_HINT, JSON, TrustBundle
from istio_auth.errors import ConfigurationError, InvalidPEM, InvalidSpiffeID, KeyRejected
from istio_auth.keys import PrivateKey, public_key_of, same_key
from istio_auth.pem import read_certificates, read_private_key, write_certificates, write_der, write_private_key
from istio_auth.spiffe_id import TrustDomain

VERSION = 1
_MEMBERS = frozenset(
    {"version", "trust_domain", "sequence", "refresh_hint", "longest_ttl"}
    | {"active", "prepared", "retired", "deadlines"}
)
_ISSUER_MEMBERS = frozenset({"certificate", "intermediates", "root", "other_roots", "key"})


@dataclass(frozen=True, slots=True)
class KeyReference:
    """A key that is kept elsewhere.

    Args:
        where: for people and programs: the folder or secret of a plugged-in CA, the name of a key in a device.
    """

    where: str


@dataclass(frozen=True, slots=True)
class IssuerState:
    """One issuer: its certificate, what connects it to its root, and its key or where that is.

    Args:
        certificate: the issuer's certificate; a self-signed root is its own issuer and its own root.
        root: the trust anchor it chains to.
        intermediates: the certificates between the two, nearest to the issuer first.
        other_roots: anchors that are trusted beside the root.
        key: the key, where it is kept, or None when it is no longer needed; never printed.

    Raises:
        ConfigurationError: the key is not that of the certificate.
    """

    certificate: x509.Certificate
    root: x509.Certificate
    intermediates: tuple[x509.Certificate, ...] = ()
    other_roots: tuple[x509.Certificate, ...] = ()
    key: PrivateKey | KeyReference | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.key is None or isinstance(self.key, KeyReference):
            return
        if not same_key(public_key_of(self.certificate), self.key.public_key()):
            raise ConfigurationError("the key of an issuer is not the key of its certificate")

    @property
    def self_signed(self) -> bool:
        """Whether the issuer is the root itself."""
        return self.certificate == self.root

    @property
    def chain(self) -> tuple[x509.Certificate, ...]:
        """What follows a leaf of this issuer: everything up to the root, without it."""
        return () if self.self_signed else (self.certificate, *self.intermediates)

    @property
    def not_before(self) -> datetime:
        """The latest beginning from the issuer to the root."""
        return max(certificate.not_valid_before_utc for certificate in (*self.chain, self.root))

    @property
    def not_after(self) -> datetime:
        """The earliest end from the issuer to the root."""
        return min(certificate.not_valid_after_utc for certificate in (*self.chain, self.root))


@dataclass(frozen=True, slots=True)
class AuthorityState:
    """The whole state of an authority at one moment.

    Args:
        trust_domain: the trust domain it vouches for.
        active: the issuer that signs.
        prepared: the issuer that will sign next, its root already in the bundle.
        retired: the issuers that signed before, their roots still in the bundle.
        sequence: grows with every change of the bundle.
        refresh_hint: how often consumers should look for a new bundle.
        deadlines: when the steps of a root rotation may or must happen, by their names.
        longest_ttl: the longest lifetime that was ever granted under the root of the active issuer; zero if unknown.
    """

    trust_domain: TrustDomain
    active: IssuerState
    prepared: IssuerState | None = None
    retired: tuple[IssuerState, ...] = ()
    sequence: int = 1
    refresh_hint: timedelta = DEFAULT_REFRESH_HINT
    deadlines: Mapping[str, datetime] = field(default_factory=dict)
    longest_ttl: timedelta = timedelta()

    @property
    def issuers(self) -> tuple[IssuerState, ...]:
        """All of them, the active one first."""
        return (self.active, *(() if self.prepared is None else (self.prepared,)), *self.retired)

    def bundle(self) -> TrustBundle:
        """The trust bundle: every root, in an order that does not change when an issuer changes its place."""
        roots = {root for issuer in self.issuers for root in (issuer.root, *issuer.other_roots)}
        ordered = sorted(roots, key=lambda root: (root.not_valid_before_utc, write_der(root)))
        return TrustBundle(self.trust_domain, tuple(ordered), self.sequence, self.refresh_hint)

    def followed_by(self, new: AuthorityState) -> AuthorityState:
        """A new state in the place of this one, with the next sequence if the roots are others."""
        same = self.bundle().x509_authorities == new.bundle().x509_authorities
        return replace(new, sequence=self.sequence + (not same))

    def granting(self, ttl: timedelta) -> AuthorityState:
        """The same, but leaves may live so long: their roots must outlive them, even if the limit is lowered later."""
        longest = timedelta(seconds=math.ceil(ttl.total_seconds()))
        return self if longest <= self.longest_ttl else replace(self, longest_ttl=longest)

    def to_json(self) -> bytes:
        """The document, the same bytes for the same state. It holds private keys."""
        document: dict[str, JSON] = {
            "version": VERSION,
            "trust_domain": self.trust_domain.name,
            "sequence": self.sequence,
            "refresh_hint": int(self.refresh_hint.total_seconds()),
            "longest_ttl": int(self.longest_ttl.total_seconds()),
            "active": _write_issuer(self.active),
            "prepared": None if self.prepared is None else _write_issuer(self.prepared),
            "retired": [_write_issuer(issuer) for issuer in self.retired],
            "deadlines": {name: instant.isoformat() for name, instant in sorted(self.deadlines.items())},
        }
        return json.dumps(document, indent=2).encode() + b"\n"

    @classmethod
    def from_json(cls, text: bytes, *, keyless: bool = False) -> AuthorityState:
        """The state that a document says.

        Args:
            text: the document.
            keyless: whether it may lack the key of the active issuer, because that is kept elsewhere.

        Raises:
            ConfigurationError: it is no such document, or one of another version.
        """
        try:
            return _read_state(json.loads(text), keyless=keyless)
        except (ValueError, RecursionError):
            # Without the cause: it quotes the document, and there are keys in it.
            raise ConfigurationError("the state of the authority is damaged: it is no JSON") from None


def _read_state(document: JSON, *, keyless: bool) -> AuthorityState:
    if not isinstance(document, dict) or "version" not in document:
        raise ConfigurationError("the state of the authority is damaged: it has no version")
    if document["version"] != VERSION:
        raise ConfigurationError(
            f"the state of the authority has version {str(document['version'])[:20]!r}, and this release reads version "
            f"{VERSION}: was it written by a newer one?"
        )
    document = {"longest_ttl": 0} | document  # older documents lack it
    _refuse_others(document, _MEMBERS)
    sequence, hint, longest = document["sequence"], document["refresh_hint"], document["longest_ttl"]
    prepared, retired, deadlines = document["prepared"], document["retired"], document["deadlines"]
    if not (_whole(sequence, 1) and _whole(hint, 1) and _whole(longest, 0)) or not (
        isinstance(retired, list) and isinstance(deadlines, dict)
    ):
        raise ConfigurationError("the state of the authority is damaged: a member is of the wrong type")
    active = _read_issuer(document["active"])
    if active.key is None and not keyless:
        raise ConfigurationError("the state of the authority is damaged: its active issuer has no key")
    try:
        return AuthorityState(
            TrustDomain(_text(document["trust_domain"])),
            active,
            prepared=None if prepared is None else _read_issuer(prepared),
            retired=tuple(_read_issuer(issuer) for issuer in retired),
            sequence=sequence,
            refresh_hint=timedelta(seconds=hint),
            deadlines={name: _instant(value) for name, value in deadlines.items()},
            longest_ttl=timedelta(seconds=longest),
        )
    except (InvalidSpiffeID, OverflowError) as error:
        raise ConfigurationError(f"the state of the authority is damaged: {error}") from error


def _write_issuer(issuer: IssuerState) -> dict[str, JSON]:
    key: JSON = None
    if isinstance(issuer.key, KeyReference):
        key = {"reference": issuer.key.where}
    elif issuer.key is not None:
        key = {"pem": write_private_key(issuer.key).decode()}
    return {
        "certificate": _pem(issuer.certificate),
        "intermediates": [_pem(certificate) for certificate in issuer.intermediates],
        "root": _pem(issuer.root),
        "other_roots": [_pem(certificate) for certificate in issuer.other_roots],
        "key": key,
    }


def _read_issuer(document: JSON) -> IssuerState:
    if not isinstance(document, dict):
        raise ConfigurationError("the state of the authority is damaged: an issuer is no object")
    _refuse_others(document, _ISSUER_MEMBERS)
    intermediates, others = document["intermediates"], document["other_roots"]
    if not isinstance(intermediates, list) or not isinstance(others, list):
        raise ConfigurationError("the state of the authority is damaged: an issuer's certificates are no array")
    try:
        return IssuerState(
            _certificate(document["certificate"]),
            _certificate(document["root"]),
            tuple(_certificate(pem) for pem in intermediates),
            tuple(_certificate(pem) for pem in others),
            _key(document["key"]),
        )
    except (InvalidPEM, KeyRejected) as error:
        raise ConfigurationError(f"the state of the authority is damaged: {error}") from error


def _key(document: JSON) -> PrivateKey | KeyReference | None:
    match document:
        case None:
            return None
        case {"pem": str(pem), **rest} if not rest:
            return read_private_key(pem.encode())
        case {"reference": str(where), **rest} if not rest:
            return KeyReference(where)
    raise ConfigurationError("the state of the authority is damaged: a key is neither PEM nor a reference")


def _certificate(pem: JSON) -> x509.Certificate:
    certificates = read_certificates(_text(pem).encode())
    if len(certificates) != 1:
        raise InvalidPEM(f"expected one certificate, found {len(certificates)}")
    return certificates[0]


def _refuse_others(document: Mapping[str, JSON], members: frozenset[str]) -> None:
    for name in sorted(members ^ document.keys()):
        problem = "is missing" if name in members else "is unknown: was it written by a newer release?"
        raise ConfigurationError(f"the state of the authority is damaged: the member {name[:50]!r} {problem}")


def _whole(value: JSON, least: int) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def _instant(value: JSON) -> datetime:
    try:
        instant = datetime.fromisoformat(_text(value))
    except ValueError:
        raise ConfigurationError("the state of the authority is damaged: a deadline is no instant") from None
    return instant if instant.tzinfo else instant.replace(tzinfo=UTC)


def _text(value: JSON) -> str:
    if not isinstance(value, str):
        raise ConfigurationError("the state of the authority is damaged: a text was expected")
    return value


def _pem(certificate: x509.Certificate) -> str:
    return write_certificates((certificate,)).decode()
