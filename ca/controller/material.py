"""Reads the three PEM texts of a secret, once per resourceVersion, and keeps only the facts that the plan needs.

The facts do not depend on our trust bundle of the moment: to which of the known roots (those in the secret, and ours)
the chain leads, and who signed the leaf. Both are kept as `authority_id`s, so that after a change of the bundle only
ids are compared, and not ten thousand chains read again. The plan decides whether these authorities are ours, and
whether the times are right.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache

from cryptography import x509
from cryptography.exceptions import InternalError, InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from ca.controller.action import Reason
from istio_auth.bundle import TrustBundle
from istio_auth.errors import Fault, InvalidPEM, KeyRejected, VerificationError
from istio_auth.keys import PrivateKey, PublicKey, check_signature, public_key_of, same_key, sign
from istio_auth.pem import read_certificates, read_private_key
from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import UNREADABLE_EXTENSIONS
from istio_auth.verify import check_leaf, verify_chain

CHAIN, KEY, ROOT = "cert-chain.pem", "key.pem", "root-cert.pem"
_PROOF = b"a key is known by what it signs"
_WRONG_NAMES = (Fault.NO_URI, Fault.SEVERAL_URIS, Fault.BAD_ID, Fault.NO_PATH)


@dataclass(frozen=True, slots=True)
class Material:
    """A key and a chain that belong together.

    Args:
        spiffe_id: the SPIFFE ID of the leaf.
        other_names: its other alternative names, as text.
        serial: its serial number.
        not_before: when it begins.
        not_after: the earliest end in the chain.
        issuer: who signed it (`authority_id`); empty when the chain leads to no known root.
        anchors: the roots to which the chain leads (`authority_id`).
        root_digest: of the root bundle in the secret (`digest`); empty when there is none.
    """

    spiffe_id: str
    other_names: frozenset[str]
    serial: int
    not_before: datetime
    not_after: datetime
    issuer: str
    anchors: frozenset[str]
    root_digest: str


@dataclass(frozen=True, slots=True)
class Damaged:
    """A key and a chain that can not be used.

    Args:
        reason: what kind of damage it is.
        detail: the damage in words; no byte of the material.
        root_digest: of the root bundle in the secret (`digest`); empty when there is none.
    """

    reason: Reason
    detail: str
    root_digest: str


def digest(data: bytes) -> str:
    """The SHA-256 of some bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


@lru_cache(maxsize=256)
def authority_id(certificate: x509.Certificate) -> str:
    """What identifies an authority to verifiers: a digest of its name and its key, in hex.

    A root that was renewed with the same name and key has the same id: what one signed verifies under the other.
    """
    key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return digest(certificate.subject.public_bytes() + key)


def read_material(data: Mapping[str, bytes], ours: TrustBundle) -> Material | Damaged:
    """The facts in the data of a secret.

    Args:
        data: its keys with their decoded values.
        ours: our present trust bundle. If the secret's own root bundle vouches for its chain, an older or a newer one
            gives the same facts.
    """
    root_pem = data.get(ROOT, b"")
    root_digest = digest(root_pem) if root_pem else ""
    missing = [key for key in (CHAIN, KEY) if not data.get(key)]
    if missing:
        return Damaged(Reason.INCOMPLETE, f"{' and '.join(missing)} missing", root_digest)
    try:
        chain = read_certificates(data[CHAIN])
        spiffe_id = check_leaf(chain[0])
        key = read_private_key(data[KEY], validate=False)  # to validate somebody's RSA key may take seconds
    except InvalidPEM as error:
        return Damaged(Reason.UNPARSABLE, str(error), root_digest)
    except KeyRejected as error:
        return Damaged(Reason.UNUSABLE, str(error), root_digest)
    except VerificationError as error:
        reason = Reason.WRONG_NAMES if error.fault in _WRONG_NAMES else Reason.UNUSABLE
        return Damaged(Reason.UNPARSABLE if error.fault is Fault.UNPARSABLE else reason, str(error), root_digest)
    if not _proves(key, public_key_of(chain[0])):
        return Damaged(Reason.WRONG_KEY, f"{KEY} is not the key of the leaf", root_digest)
    try:
        return _facts(chain, spiffe_id, (*_roots(root_pem), *ours.x509_authorities), root_digest)
    except (*UNREADABLE_EXTENSIONS, UnsupportedAlgorithm) as error:  # names and keys are parsed when they are looked at
        return Damaged(Reason.UNPARSABLE, f"a certificate does not parse ({type(error).__name__})", root_digest)


def _proves(key: PrivateKey, public_key: PublicKey) -> bool:
    """Whether a private key belongs to the public one, and works."""
    if not same_key(public_key, key.public_key()):
        return False
    try:
        check_signature(public_key, sign(key, _PROOF), _PROOF)
    except (InvalidSignature, InternalError, ValueError):
        return False
    return True


def _facts(
    chain: Sequence[x509.Certificate], spiffe_id: SpiffeID, roots: Iterable[x509.Certificate], root_digest: str
) -> Material:
    leaf = chain[0]
    anchors = [root for root in dict.fromkeys(roots) if _leads_to(chain, spiffe_id, root)]
    return Material(
        str(spiffe_id),
        _other_names(leaf),
        leaf.serial_number,
        leaf.not_valid_before_utc,
        min(certificate.not_valid_after_utc for certificate in chain),
        _issuer(leaf, (*chain[1:], *anchors)) if anchors else "",
        _shared(frozenset(map(authority_id, anchors))),
        _shared_text(root_digest),
    )


def _leads_to(chain: Sequence[x509.Certificate], spiffe_id: SpiffeID, root: x509.Certificate) -> bool:
    """Whether the root vouches for the chain at some instant: if at any, then when the last of them begins."""
    if not any(certificate.issuer == root.subject for certificate in chain):
        return False  # saves a signature check per foreign root
    latest_beginning = max(certificate.not_valid_before_utc for certificate in (*chain, root))
    try:
        verify_chain(chain, TrustBundle(spiffe_id.trust_domain, (root,)), latest_beginning)
    except VerificationError:
        return False
    return True


def _issuer(leaf: x509.Certificate, candidates: Iterable[x509.Certificate]) -> str:
    """Which of the candidates signed the leaf; empty if none did. Of several with its name, the signature decides."""
    named = {authority_id(each): each for each in candidates if each.subject == leaf.issuer}
    if len(named) == 1:
        return next(iter(named))
    for identifier, certificate in named.items():
        with suppress(InvalidSignature, ValueError, TypeError, UnsupportedAlgorithm):
            leaf.verify_directly_issued_by(certificate)
            return identifier
    return ""


def _other_names(leaf: x509.Certificate) -> frozenset[str]:
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    others = [name for name in names if not isinstance(name, x509.UniformResourceIdentifier)]
    return _shared(frozenset(str(name.value) for name in others))


@lru_cache(maxsize=64)
def _roots(pem: bytes) -> tuple[x509.Certificate, ...]:
    """The roots in a secret; none if they can not be read: the plan puts our bundle in their place."""
    try:
        return read_certificates(pem)
    except InvalidPEM:
        return ()


# Ten thousand secrets hold the same few sets and digests: one copy of each is enough.
@lru_cache(maxsize=256)
def _shared(names: frozenset[str]) -> frozenset[str]:
    return names


@lru_cache(maxsize=256)
def _shared_text(text: str) -> str:
    return text
