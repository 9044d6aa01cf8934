"""Finds what is unusual about a certificate, chain, bundle or CSR: every rule it breaks, not only the first.

The rules are those of X509-SVID 2 to 4, of RFC 5280 4 and of common sense (weak keys, long lives, ends that are near).
A finding is a remark for people; only `istio_auth.verify` decides what is trusted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from itertools import pairwise

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import rsa

from ca.cli.certificate_view import (
    Holder,
    Names,
    extended_usages,
    extensions_of,
    is_ca,
    issued_by,
    names_of,
    part,
    self_signed,
    signature_hash,
    usages,
)
from istio_auth.bundle import TrustBundle
from istio_auth.clock import in_words
from istio_auth.errors import InvalidSpiffeID, KeyRejected
from istio_auth.keys import public_key_of
from istio_auth.rotation import remaining_share
from istio_auth.spiffe_id import SpiffeID

LONG_LEAF_LIFE = timedelta(days=90)
NEAR_END_SHARE = 0.2
NEAR_END_OF_CA = timedelta(days=30)
_SOUND_HASHES = {"sha256", "sha384", "sha512"}
_ONLY_FOR_LEAVES = {"digitalSignature", "keyEncipherment", "keyAgreement"}
_KNOWN = (
    x509.AuthorityKeyIdentifier,
    x509.BasicConstraints,
    x509.CertificatePolicies,
    x509.ExtendedKeyUsage,
    x509.IssuerAlternativeName,
    x509.KeyUsage,
    x509.NameConstraints,
    x509.PolicyConstraints,
    x509.SubjectAlternativeName,
    x509.SubjectKeyIdentifier,
)


@dataclass(frozen=True, slots=True)
class Finding:
    """One remark.

    Args:
        code: its stable name, for scripts.
        text: a sentence for people, with the clause that it is about.
    """

    code: str
    text: str


def certificate_findings(certificate: x509.Certificate, now: datetime) -> list[Finding]:
    """What is unusual about a certificate by itself."""
    if extensions_of(certificate) is None:
        return [Finding("unreadable-extensions", "its extensions can not be read; everybody will refuse it")]
    by_kind = _ca_findings if is_ca(certificate) else _leaf_findings
    return [
        *by_kind(certificate),
        *_form_findings(certificate),
        *_key_findings(certificate),
        *_life_findings(certificate, now),
    ]


def chain_findings(chain: Sequence[x509.Certificate]) -> list[Finding]:
    """What is unusual about the order and the fit of a chain, leaf first."""
    findings: list[Finding] = []
    for place, (lower, upper) in enumerate(pairwise(chain), start=1):
        if not issued_by(lower, upper):
            text = f"certificate {place + 1} did not issue certificate {place}: each should be followed by its issuer"
            findings.append(Finding("chain-order", text))
        elif lower.not_valid_after_utc > upper.not_valid_after_utc:
            text = f"certificate {place} ends after its issuer, and is accepted only until the issuer ends"
            findings.append(Finding("outlives-issuer", text))
    if len(chain) > 1 and self_signed(chain[-1]):
        findings.append(Finding("root-in-chain", "the last certificate is a root: peers hold it already (RFC 8446)"))
    findings += [
        Finding("leaf-among-issuers", f"certificate {place} is no CA certificate")
        for place, certificate in enumerate(chain[1:], start=2)
        if not is_ca(certificate)
    ]
    domains = {spiffe_id.trust_domain.name for one in chain if (spiffe_id := names_of(one).spiffe_id) is not None}
    if len(domains) > 1:
        findings.append(Finding("several-trust-domains", f"it spans the trust domains {', '.join(sorted(domains))}"))
    return findings


def bundle_findings(bundle: TrustBundle, *, with_sequence: bool) -> list[Finding]:
    """What is unusual about a bundle. `with_sequence`: its format can hold a sequence and a refresh hint."""
    findings: list[Finding] = []
    authorities = bundle.x509_authorities
    if not authorities:
        findings.append(
            Finding("empty-bundle", "it has no X.509 authority: every SVID of its domain is refused (BD-05)")
        )
    for place, authority in enumerate(authorities, start=1):
        if not is_ca(authority):
            findings.append(Finding("no-ca", f"authority {place} is no CA certificate and vouches for nobody"))
        elif not self_signed(authority):
            findings.append(Finding("not-self-signed", f"authority {place} is not self-signed (XB-04)"))
    subjects = [authority.subject for authority in authorities]
    if len(set(subjects)) < len(subjects):
        text = "several authorities have one subject: some verifiers try only the first of them"
        findings.append(Finding("same-subject", text))
    if with_sequence and bundle.sequence is None:
        findings.append(
            Finding("no-sequence", "it has no spiffe_sequence: consumers can not tell old from new (BD-02)")
        )
    if with_sequence and bundle.refresh_hint is None:
        findings.append(Finding("no-refresh-hint", "it has no spiffe_refresh_hint: consumers use 5 minutes (BD-10)"))
    return findings


def csr_findings(csr: x509.CertificateSigningRequest) -> list[Finding]:
    """What is unusual about a certificate signing request."""
    if extensions_of(csr) is None:
        return [Finding("unreadable-extensions", "its extensions can not be read; no CA will sign it")]
    findings = [*_key_findings(csr), *_csr_wish_findings(csr)]
    try:
        sound = csr.is_signature_valid
    except (ValueError, InvalidSignature, UnsupportedAlgorithm):
        sound = False
    if not sound:
        findings.append(Finding("bad-signature", "it is not signed by the key in it: no proof of possession"))
    return findings


def _csr_wish_findings(csr: x509.CertificateSigningRequest) -> Iterator[Finding]:
    constraints = part(csr, x509.BasicConstraints)
    if (constraints and constraints.value.ca) or {"keyCertSign", "cRLSign"} & set(usages(csr)):
        yield Finding("asks-for-ca", "it asks for a CA certificate, which no workload gets")
    names = names_of(csr)
    if len(names.uris) > 1:
        yield Finding("several-uri-names", f"it names {len(names.uris)} URIs; an X509-SVID has exactly one (XL-01)")
    elif names.uris and names.spiffe_id is None:
        yield Finding("bad-spiffe-id", "its URI name is no SPIFFE ID")


def _leaf_findings(certificate: x509.Certificate) -> Iterator[Finding]:
    names = names_of(certificate)
    yield from _leaf_name_findings(certificate, names)
    yield from _leaf_usage_findings(certificate)
    life = certificate.not_valid_after_utc - certificate.not_valid_before_utc
    if life > LONG_LEAF_LIFE:
        yield Finding(
            "long-life", f"it lives {in_words(life)}; an SVID lives hours, at most {LONG_LEAF_LIFE.days} days"
        )
    if any("*" in name for name in names.dns):
        yield Finding("wildcard", "it has a wildcard among its DNS names")


def _leaf_name_findings(certificate: x509.Certificate, names: Names) -> Iterator[Finding]:
    if not names.uris:
        yield Finding("no-uri-name", "it has no URI name, so no SPIFFE ID (XL-01)")
    elif len(names.uris) > 1:
        yield Finding("several-uri-names", f"it has {len(names.uris)} URI names; an X509-SVID has exactly one (XL-01)")
    else:
        yield from _id_findings(names.uris[0])
    alternative = part(certificate, x509.SubjectAlternativeName)
    if alternative and not alternative.critical and not certificate.subject.rdns:
        yield Finding("names-not-critical", "its subject is empty, so its names must be marked critical (XL-04)")


def _id_findings(uri: str) -> Iterator[Finding]:
    try:
        spiffe_id = SpiffeID.parse(uri)
    except InvalidSpiffeID as error:
        yield Finding("bad-spiffe-id", str(error))
        return
    if not spiffe_id.path:
        yield Finding("id-without-path", "its SPIFFE ID names a trust domain and no workload (XL-03)")


def _leaf_usage_findings(certificate: x509.Certificate) -> Iterator[Finding]:
    usage, words = part(certificate, x509.KeyUsage), set(usages(certificate))
    if usage is None:
        yield Finding("no-key-usage", "it has no key usage (XL-06)")
    else:
        if not usage.critical:
            yield Finding("key-usage-not-critical", "its key usage is not marked critical (XL-06)")
        if "digitalSignature" not in words:
            yield Finding("no-digital-signature", "its key may not sign (XL-07)")
        if words & {"keyCertSign", "cRLSign"}:
            yield Finding("leaf-signs", "its key may sign certificates or CRLs, which is a CA's business (XL-09)")
        if "keyEncipherment" in words and not _has_rsa_key(certificate):
            yield Finding("encipherment-without-rsa", "keyEncipherment means something for RSA keys only (XL-08)")
    extended = extended_usages(certificate)
    if not extended:
        yield Finding("no-extended-key-usage", "it has no extended key usage, and should (XL-10)")
    elif missing := {"serverAuth", "clientAuth"} - set(extended):
        yield Finding("extended-key-usage", f"its extended key usage lacks {' and '.join(sorted(missing))} (XL-11)")


def _ca_findings(certificate: x509.Certificate) -> Iterator[Finding]:
    names, words = names_of(certificate), set(usages(certificate))
    if len(names.uris) != 1:
        yield Finding("ca-without-id", "it should carry the SPIFFE ID of its trust domain, and nothing else (XC-06)")
    elif (spiffe_id := names.spiffe_id) is None:
        yield Finding("bad-spiffe-id", "its URI name is no SPIFFE ID")
    elif spiffe_id.path:
        yield Finding("ca-with-path", "a CA's SPIFFE ID has no path (XC-07)")
    usage = part(certificate, x509.KeyUsage)
    if usage is None or "keyCertSign" not in words:
        yield Finding("ca-can-not-sign", "its key usage lacks keyCertSign: nobody accepts what it issues (XC-02)")
    elif not usage.critical:
        yield Finding("key-usage-not-critical", "its key usage is not marked critical (XC-02)")
    if extra := words & _ONLY_FOR_LEAVES:
        yield Finding("ca-with-leaf-usage", f"{', '.join(sorted(extra))}: for leaves only (X509-SVID appendix A)")
    constraints = part(certificate, x509.BasicConstraints)
    if constraints and not constraints.critical:
        yield Finding("constraints-not-critical", "its basic constraints are not marked critical (RFC 5280 4.2.1.9)")
    if extended_usages(certificate):
        yield Finding("ca-with-extended-usage", "its extended key usage limits what it issues in some programs (XC-11)")
    if part(certificate, x509.NameConstraints):
        yield Finding("name-constraints", "it has name constraints, which many programs do not support (XC-12)")


def _form_findings(certificate: x509.Certificate) -> Iterator[Finding]:
    number = certificate.serial_number
    if number.bit_length() < 64:
        yield Finding("short-serial", "its serial number is short: it should be 64 random bits or more")
    elif number.bit_length() > 159:
        yield Finding("long-serial", "its serial number is longer than 20 bytes (RFC 5280 4.1.2.2)")
    if part(certificate, x509.SubjectKeyIdentifier) is None:
        yield Finding("no-subject-key-id", "it has no subject key identifier (RFC 5280 4.2.1.2)")
    if part(certificate, x509.AuthorityKeyIdentifier) is None and not self_signed(certificate):
        yield Finding("no-authority-key-id", "it has no authority key identifier (RFC 5280 4.2.1.1)")
    for extension in certificate.extensions:
        if extension.critical and not isinstance(extension.value, _KNOWN):
            text = f"it has the critical extension {extension.oid.dotted_string}: who does not know it refuses it"
            yield Finding("unknown-critical-extension", text)


def _key_findings(holder: Holder) -> Iterator[Finding]:
    try:
        public_key_of(holder)
    except KeyRejected as error:
        yield Finding("weak-key", str(error))
    if (digest := signature_hash(holder)) not in _SOUND_HASHES:
        yield Finding("weak-signature", f"it is signed with {digest.upper() or 'an unknown algorithm'}")


def _life_findings(certificate: x509.Certificate, now: datetime) -> Iterator[Finding]:
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    if begin > end:
        yield Finding("never-valid", "it ends before it begins")
    elif now > end:
        yield Finding("expired", "it has ended")
    elif now < begin:
        yield Finding("not-yet-valid", "it is not valid yet: is the clock right?")
    elif is_ca(certificate) and end - now < min(NEAR_END_OF_CA, (end - begin) / 2):
        yield Finding("ends-soon", f"it ends in {in_words(end - now)}: renew it now, before what it issued fails")
    elif not is_ca(certificate) and remaining_share(begin, end, now) < NEAR_END_SHARE:
        yield Finding("ends-soon", "less than a fifth of its life is left: was it not renewed?")


def _has_rsa_key(certificate: x509.Certificate) -> bool:
    try:
        return isinstance(certificate.public_key(), rsa.RSAPublicKey)
    except (ValueError, UnsupportedAlgorithm):
        return False
