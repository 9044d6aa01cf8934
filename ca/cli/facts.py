"""What can be said of a certificate or a CSR: as JSON with stable names, and as lines for people."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from ca.cli.certificate_view import (
    Names,
    extended_usages,
    is_ca,
    key_words,
    name_words,
    names_of,
    part,
    self_signed,
    signature_hash,
    usages,
)
from ca.cli.unusual import Finding, certificate_findings, csr_findings
from istio_auth.bundle import JSON
from istio_auth.clock import in_words
from istio_auth.daemon.output import Fact, Section, Tone, iso, life_in_words, shown


def certificate_json(certificate: x509.Certificate, now: datetime) -> dict[str, JSON]:
    """A certificate as JSON."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    constraints = part(certificate, x509.BasicConstraints)
    return {
        **_names_json(names_of(certificate)),
        "subject": name_words(certificate.subject),
        "issuer": name_words(certificate.issuer),
        "serial": f"{certificate.serial_number:x}",
        "ca": is_ca(certificate),
        "path_length": constraints.value.path_length if constraints else None,
        "self_signed": self_signed(certificate),
        "key": key_words(certificate),
        "signature_hash": signature_hash(certificate),
        "key_usage": list[JSON](usages(certificate)),
        "extended_key_usage": list[JSON](extended_usages(certificate)),
        "not_before": iso(begin),
        "not_after": iso(end),
        "valid_now": begin <= now <= end,
        "remaining_seconds": int((end - now).total_seconds()),
        "fingerprint_sha256": certificate.fingerprint(hashes.SHA256()).hex(),
        "unusual": findings_json(certificate_findings(certificate, now)),
    }


def certificate_section(title: str, certificate: x509.Certificate, now: datetime) -> Section:
    """A certificate as lines."""
    begin, end = certificate.not_valid_before_utc, certificate.not_valid_after_utc
    valid = begin <= now <= end
    life = f"{shown(begin)} to {shown(end)} ({in_words(end - begin)})"
    used = [*usages(certificate), *extended_usages(certificate)]
    return Section(
        title,
        [
            *_name_facts(names_of(certificate)),
            Fact.of("subject", name_words(certificate.subject)),
            Fact.of("issuer", "itself" if self_signed(certificate) else name_words(certificate.issuer)),
            Fact.of("serial", f"{certificate.serial_number:x}"),
            Fact.of("key", f"{key_words(certificate)}, signed with {signature_hash(certificate) or 'unknown'}"),
            Fact.of("usage", ", ".join(used) or "(none)"),
            Fact.of("valid", life),
            Fact.of("now", life_in_words(begin, end, now), tone=Tone.GOOD if valid else Tone.BAD),
            Fact.of("SHA-256", certificate.fingerprint(hashes.SHA256()).hex()),
            *findings_facts(certificate_findings(certificate, now)),
        ],
    )


def csr_json(csr: x509.CertificateSigningRequest) -> dict[str, JSON]:
    """A CSR as JSON."""
    return {
        **_names_json(names_of(csr)),
        "subject": name_words(csr.subject),
        "key": key_words(csr),
        "signature_hash": signature_hash(csr),
        "unusual": findings_json(csr_findings(csr)),
    }


def csr_section(title: str, csr: x509.CertificateSigningRequest) -> Section:
    """A CSR as lines."""
    return Section(
        title,
        [
            *_name_facts(names_of(csr)),
            Fact.of("subject", name_words(csr.subject)),
            Fact.of("key", f"{key_words(csr)}, signed with {signature_hash(csr) or 'unknown'}"),
            *findings_facts(csr_findings(csr)),
            Fact.of("note", "names in a CSR are wishes: the CA issues what the caller is proven to be"),
        ],
    )


def findings_json(findings: Iterable[Finding]) -> list[JSON]:
    """Remarks as JSON."""
    return [{"code": finding.code, "text": finding.text} for finding in findings]


def findings_facts(findings: Iterable[Finding]) -> list[Fact]:
    """Remarks as lines, if there are any."""
    texts = [finding.text for finding in findings]
    return [Fact("unusual", texts, Tone.ODD)] if texts else []


def _names_json(names: Names) -> Mapping[str, JSON]:
    return {
        "spiffe_id": None if names.spiffe_id is None else str(names.spiffe_id),
        "uri_names": list[JSON](names.uris),
        "dns_names": list[JSON](names.dns),
        "other_names": list[JSON](names.others),
    }


def _name_facts(names: Names) -> list[Fact]:
    facts = [Fact("URI names", names.uris) if names.uris else Fact.of("SPIFFE ID", "(none)")]
    if names.spiffe_id is not None:
        facts = [Fact.of("SPIFFE ID", str(names.spiffe_id), tone=Tone.GOOD)]
    also = [*(f"DNS {name}" for name in names.dns), *names.others]
    return [*facts, Fact("also", also)] if also else facts
