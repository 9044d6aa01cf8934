"""Describes bytes from anywhere, for people and for scripts: certificates, chains, bundles, CSRs and keys."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from cryptography import x509

from ca.cli.certificate_view import is_ca, is_chain
from ca.cli.facts import (
    certificate_json,
    certificate_section,
    csr_json,
    csr_section,
    findings_facts,
    findings_json,
)
from ca.cli.material import LAYOUTS, STDIN, Layout, certificates_in, layout_of, pem_blocks, read_input
from ca.cli.unusual import Finding, bundle_findings, chain_findings
from istio_auth.bundle import JSON, BundleSet, TrustBundle
from istio_auth.daemon.output import Fact, Section
from istio_auth.errors import ConfigurationError, InvalidPEM, IstioAuthError, MalformedError
from istio_auth.keys import key_type, public_key_of, same_key
from istio_auth.pem import read_csr, read_private_key
from istio_auth.spiffe_id import TrustDomain

_ANONYMOUS = TrustDomain("unknown")  # a bundle does not say whose it is (BD-11)


@dataclass(frozen=True, slots=True)
class Document:
    """Something that was inspected, for scripts and for people."""

    json: dict[str, JSON]
    sections: Sequence[Section]


def inspected(source: str, now: datetime) -> Iterator[Document]:
    """What a file, a folder or standard input holds.

    Raises:
        ConfigurationError, MalformedError: it can not be read, or holds nothing that can be inspected.
    """
    if source != STDIN and Path(source).is_dir():
        yield from _folder(Path(source), now)
        return
    content = read_input(source)
    name = "standard input" if source == STDIN else source
    try:
        yield from _content(content, name, now)
    except MalformedError as error:
        raise ConfigurationError(f"{name}: {error}") from error


def _content(content: bytes, name: str, now: datetime) -> Iterator[Document]:
    if content.lstrip()[:1] == b"{":
        yield from _spiffe_bundles(content, name, now)
        return
    blocks = pem_blocks(content)
    labels = {label for label, _ in blocks}
    if not blocks or "CERTIFICATE" in labels:
        yield _certificates(certificates_in(content, name), name, now)
    for label, block in blocks:
        if label.endswith("CERTIFICATE REQUEST"):
            csr = read_csr(block)
            yield Document({"kind": "csr", "source": name, **csr_json(csr)}, [csr_section(f"CSR in {name}", csr)])
        elif label.endswith("PRIVATE KEY"):
            yield _key(block, name)
        elif label not in {"CERTIFICATE", "EC PARAMETERS"}:
            raise InvalidPEM(f"a PEM block of type {label!r} is nothing that is inspected here")


def _certificates(certificates: Sequence[x509.Certificate], name: str, now: datetime) -> Document:
    if is_chain(certificates):
        return _chain(certificates, name, now)
    if len(certificates) == 1:
        return Document(
            {"kind": "ca-certificate", "source": name, **certificate_json(certificates[0], now)},
            [certificate_section(f"CA certificate in {name}", certificates[0], now)],
        )
    return _bundle(TrustBundle(_ANONYMOUS, tuple(certificates)), name, now, with_sequence=False)


def _chain(chain: Sequence[x509.Certificate], name: str, now: datetime) -> Document:
    findings = chain_findings(chain)
    sections = [certificate_section(_title(chain, place, name), one, now) for place, one in enumerate(chain)]
    if findings:
        sections.append(Section("the chain", findings_facts(findings)))
    json: dict[str, JSON] = {
        "kind": "chain",
        "source": name,
        "certificates": [certificate_json(one, now) for one in chain],
        "unusual": findings_json(findings),
    }
    return Document(json, sections)


def _title(chain: Sequence[x509.Certificate], place: int, name: str) -> str:
    kind = "CA certificate" if is_ca(chain[place]) else "certificate"
    return f"{kind} {place + 1} of {len(chain)} in {name}" if len(chain) > 1 else f"{kind} in {name}"


def _spiffe_bundles(content: bytes, name: str, now: datetime) -> Iterator[Document]:
    if b'"trust_domains"' not in content:
        yield _bundle(TrustBundle.from_json(_ANONYMOUS, content), name, now, with_sequence=True)
        return
    for bundle in BundleSet.from_json(content):
        yield _bundle(bundle, name, now, with_sequence=True)


def _bundle(bundle: TrustBundle, name: str, now: datetime, *, with_sequence: bool) -> Document:
    owner = None if bundle.trust_domain == _ANONYMOUS else bundle.trust_domain.name
    findings = bundle_findings(bundle, with_sequence=with_sequence)
    hint = None if bundle.refresh_hint is None else int(bundle.refresh_hint.total_seconds())
    json: dict[str, JSON] = {
        "kind": "bundle",
        "source": name,
        "trust_domain": owner,
        "sequence": bundle.sequence,
        "refresh_hint_seconds": hint,
        "authorities": [certificate_json(one, now) for one in bundle.x509_authorities],
        "unusual": findings_json(findings),
    }
    facts = [Fact.of("authorities", str(len(bundle.x509_authorities)))]
    facts += [Fact.of("trust domain", owner)] if owner else []
    facts += [Fact.of("sequence", str(bundle.sequence))] if bundle.sequence is not None else []
    facts += [Fact.of("refresh hint", f"{hint} seconds")] if hint is not None else []
    total = len(bundle.x509_authorities)
    sections = [
        certificate_section(f"authority {place} of {total} in {name}", one, now)
        for place, one in enumerate(bundle.x509_authorities, start=1)
    ]
    return Document(json, [Section(f"bundle in {name}", [*facts, *findings_facts(findings)]), *sections])


def _key(block: bytes, name: str) -> Document:
    words = key_type(read_private_key(block).public_key())
    json: dict[str, JSON] = {"kind": "private-key", "source": name, "key": words}
    return Document(json, [Section(f"private key in {name}", [Fact.of("key", f"{words} (not shown)")])])


def inspected_object(source: str, data: Mapping[str, bytes], now: datetime) -> Iterator[Document]:
    """What a secret or ConfigMap of Kubernetes holds: an SVID or an authority in a known layout, or certificates.

    Args:
        source: its name, for people.
        data: its data, by key.
        now: the present instant.

    Raises:
        ConfigurationError: it holds no certificate, or one that can not be read.
    """
    layout = next((layout for layout in LAYOUTS if layout.chain in data), None)
    try:
        if layout is not None:
            yield from _svid(layout, data, source, now)
            return
        found = [name for name, content in data.items() if b"-----BEGIN CERTIFICATE-----" in content]
        for name in found:
            yield _certificates(certificates_in(data[name], name), f"{source}, {name}", now)
    except MalformedError as error:
        raise ConfigurationError(f"{source}: {error}") from error
    if not found:
        raise ConfigurationError(f"{source} holds no certificate")


def _folder(folder: Path, now: datetime) -> Iterator[Document]:
    layout = layout_of(folder)
    there = [folder / name for name in (layout.chain, layout.key, layout.root) if (folder / name).exists()]
    key = folder / layout.key
    exposed = key.exists() and bool(key.stat().st_mode & (stat.S_IRWXG | stat.S_IRWXO))
    yield from _svid(layout, {path.name: read_input(str(path)) for path in there}, str(folder), now, exposed=exposed)


def _svid(
    layout: Layout, files: Mapping[str, bytes], where: str, now: datetime, *, exposed: bool = False
) -> Iterator[Document]:
    chain = certificates_in(files[layout.chain], f"{where}/{layout.chain}")
    yield _certificates(chain, f"{where}/{layout.chain}", now)
    if layout.root in files:
        roots = certificates_in(files[layout.root], f"{where}/{layout.root}")
        yield _bundle(TrustBundle(_ANONYMOUS, tuple(roots)), f"{where}/{layout.root}", now, with_sequence=False)
    if layout.key in files:
        yield _key_beside(chain[0], files[layout.key], f"{where}/{layout.key}", exposed=exposed)


def _key_beside(leaf: x509.Certificate, content: bytes, name: str, *, exposed: bool) -> Document:
    """The key beside a chain: whether it fits, and whether others can read it."""
    findings: list[Finding] = []
    words = "unknown"
    try:
        key = read_private_key(content)
        words = key_type(key.public_key())
        if not same_key(public_key_of(leaf), key.public_key()):
            findings.append(Finding("wrong-key", "it is not the key of the certificate beside it"))
    except IstioAuthError as error:
        findings.append(Finding("unreadable-key", str(error)))
    if exposed:
        findings.append(Finding("exposed-key", f"others can read it: run `chmod 600 {name}`"))
    json: dict[str, JSON] = {
        "kind": "private-key",
        "source": name,
        "key": words,
        "unusual": findings_json(findings),
    }
    facts = [Fact.of("key", f"{words} (not shown)"), *findings_facts(findings)]
    return Document(json, [Section(f"private key in {name}", facts)])
