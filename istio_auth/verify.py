"""Verifies a certificate chain against the bundles and the time, which gives its SPIFFE ID: X509-SVID 5 in one place.

Two steps, in this order. The leaf's own rules (X509-SVID 4 and 5) are checked and give the SPIFFE ID it claims; then
a path is built (RFC 5280 6) to the bundle of *that* trust domain alone. Bundles are never pooled.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from datetime import datetime

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID
from cryptography.x509.verification import (
    Criticality,
    ExtensionPolicy,
    Policy,
    PolicyBuilder,
    Store,
)
from cryptography.x509.verification import VerificationError as PathError

from istio_auth.bundle import BundleSource, TrustBundle
from istio_auth.errors import Fault, InvalidSpiffeID, InvalidSVID, KeyRejected, VerificationError
from istio_auth.keys import MAX_RSA_BITS, public_key_of
from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import UNREADABLE_EXTENSIONS, uri_names

MAX_CHAIN = 10  # certificates a peer may send; keeps the work for a hostile chain small
_REQUIRED_USES = {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH}


def verify_chain(chain: Sequence[x509.Certificate], bundles: BundleSource, now: datetime) -> SpiffeID:
    """The SPIFFE ID that a chain proves.

    Args:
        chain: the peer's leaf, then the other certificates that it sent.
        bundles: the bundles of the trusted domains; the one of the leaf's trust domain is used.
        now: the instant at which the chain must be valid.

    Raises:
        VerificationError: it proves none; `fault` says why.
    """
    if not chain:
        raise VerificationError(Fault.EMPTY, "the peer presented no certificate")
    if len(chain) > MAX_CHAIN:
        raise VerificationError(Fault.TOO_LONG, f"{len(chain)} certificates, at most {MAX_CHAIN} are looked at")
    leaf, *intermediates = chain
    spiffe_id = check_leaf(leaf)
    bundle = bundles.bundle(spiffe_id.trust_domain)
    _check_validity(leaf, now)
    _check_path(leaf, intermediates, bundle, now)
    return spiffe_id


@functools.lru_cache(maxsize=128)  # what a certificate claims never changes, and the same peers come again
def check_leaf(leaf: x509.Certificate) -> SpiffeID:
    """The SPIFFE ID that a leaf claims, if it keeps the rules of X509-SVID 4 for leaves. Proves nothing by itself.

    Raises:
        VerificationError: it breaks one of the rules.
    """
    try:
        extensions = leaf.extensions
    except UNREADABLE_EXTENSIONS as error:
        raise VerificationError(Fault.UNPARSABLE, f"the leaf does not parse ({type(error).__name__})") from error
    spiffe_id = _claimed_id(leaf)
    try:
        public_key_of(leaf)
    except KeyRejected as error:
        raise VerificationError(Fault.WEAK_KEY, str(error)) from error
    _check_constraints(extensions)
    _check_uses(extensions)
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName)
    if not leaf.subject.rdns and not names.critical:
        raise VerificationError(Fault.NOT_CRITICAL, "with an empty subject the names must be marked critical")
    return spiffe_id


def _claimed_id(leaf: x509.Certificate) -> SpiffeID:
    try:
        names = uri_names(leaf)
    except InvalidSVID as error:
        raise VerificationError(Fault.UNPARSABLE, str(error)) from error
    if not names:
        raise VerificationError(Fault.NO_URI, "the leaf has no URI name")
    if len(names) > 1:
        raise VerificationError(Fault.SEVERAL_URIS, f"the leaf has {len(names)} URI names instead of one")
    try:
        spiffe_id = SpiffeID.parse(names[0])
    except InvalidSpiffeID as error:
        raise VerificationError(Fault.BAD_ID, str(error)) from error
    if not spiffe_id.path:
        raise VerificationError(Fault.NO_PATH, f"{spiffe_id} names a trust domain, not a workload")
    return spiffe_id


def _check_constraints(extensions: x509.Extensions) -> None:
    try:
        constraints = extensions.get_extension_for_class(x509.BasicConstraints).value
    except x509.ExtensionNotFound:
        return  # absent means "no CA" (RFC 5280 4.2.1.9)
    if constraints.ca:
        raise VerificationError(Fault.IS_CA, "the leaf is a CA certificate, which never authenticates (XC-10)")


def _check_uses(extensions: x509.Extensions) -> None:
    try:
        usage = extensions.get_extension_for_class(x509.KeyUsage)
    except x509.ExtensionNotFound as error:
        raise VerificationError(Fault.KEY_USAGE, "the leaf has no key usage (XL-06)") from error
    if not usage.critical:
        raise VerificationError(Fault.KEY_USAGE, "the leaf's key usage is not marked critical (XL-06)")
    if not usage.value.digital_signature:
        raise VerificationError(Fault.KEY_USAGE, "the leaf's key may not sign (XL-07)")
    if usage.value.key_cert_sign or usage.value.crl_sign:
        raise VerificationError(Fault.KEY_USAGE, "the leaf's key may sign certificates or CRLs (XL-09)")
    try:
        uses = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return  # only SHOULD be present (XL-10)
    if not set(uses) >= _REQUIRED_USES:
        raise VerificationError(Fault.EXTENDED_KEY_USAGE, "serverAuth and clientAuth must both be present (XL-11)")


def _check_validity(leaf: x509.Certificate, now: datetime) -> None:
    if now < leaf.not_valid_before_utc:
        raise VerificationError(
            Fault.NOT_YET_VALID,
            f"valid from {leaf.not_valid_before_utc:%F %T} UTC, now is {now:%F %T}: are both clocks right?",
        )
    if now > leaf.not_valid_after_utc:
        raise VerificationError(Fault.EXPIRED, f"ended {leaf.not_valid_after_utc:%F %T} UTC, now is {now:%F %T}")


def _check_path(
    leaf: x509.Certificate, intermediates: Sequence[x509.Certificate], bundle: TrustBundle, now: datetime
) -> None:
    # A leaf that stands in the bundle by mistake is no CA and must not vouch for itself.
    anchors = tuple(authority for authority in bundle.x509_authorities if authority != leaf)
    if not anchors:
        raise VerificationError(Fault.UNTRUSTED, f"the bundle of {bundle.trust_domain} holds no CA (BD-05)")
    verifier = (
        PolicyBuilder()
        .store(_store_of(anchors))
        .time(now)
        .extension_policies(ee_policy=_LEAF_POLICY, ca_policy=_CA_POLICY)
        .max_chain_depth(MAX_CHAIN)
        .build_client_verifier()
    )
    try:
        verifier.verify(leaf, [issuer for issuer in intermediates if _bounded_key(issuer)])
    except PathError as error:
        raise VerificationError(Fault.UNTRUSTED, f"no path to the bundle of {bundle.trust_domain} ({error})") from error


@functools.lru_cache(maxsize=64)
def _store_of(anchors: tuple[x509.Certificate, ...]) -> Store:
    """A store of these certificates. It is cached, because a store reads the keys of its certificates only once."""
    return Store(list(anchors))


def _bounded_key(issuer: x509.Certificate) -> bool:
    try:
        key = issuer.public_key()
    except (ValueError, UnsupportedAlgorithm):
        return False
    return not isinstance(key, rsa.RSAPublicKey) or key.key_size <= MAX_RSA_BITS


def _signs_certificates(_policy: Policy, _issuer: x509.Certificate, usage: x509.KeyUsage) -> None:
    if not usage.key_cert_sign:
        raise ValueError("the issuer's key may not sign certificates (XC-02)")


# The leaf's rules are checked above, in our own words and with our own faults.
_LEAF_POLICY = ExtensionPolicy.permit_all().require_present(x509.SubjectAlternativeName, Criticality.AGNOSTIC, None)
_CA_POLICY = (
    ExtensionPolicy.permit_all()
    .require_present(x509.BasicConstraints, Criticality.CRITICAL, None)
    .require_present(x509.KeyUsage, Criticality.CRITICAL, _signs_certificates)
)
