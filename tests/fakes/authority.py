"""A throw-away CA that shares no code with ours and breaks any single rule on request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from istio_auth.bundle import TrustBundle
from istio_auth.keys import PrivateKey
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.svid import X509SVID

HOUR = timedelta(hours=1)
BOTH_USES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


@dataclass(frozen=True)
class Leaf:
    """How a leaf looks; `replace` one field to break one rule."""

    uris: Sequence[str]
    not_before: datetime
    not_after: datetime
    dns_names: Sequence[str] = ()
    subject: x509.Name = field(default_factory=lambda: x509.Name([]))
    san_critical: bool = True
    ca: bool = False
    digital_signature: bool = True
    key_encipherment: bool = False
    key_cert_sign: bool = False
    crl_sign: bool = False
    usage_present: bool = True
    usage_critical: bool = True
    uses: Sequence[ObjectIdentifier] | None = BOTH_USES
    extra: Sequence[tuple[x509.ExtensionType, bool]] = ()  # with whether each is critical


class FakeAuthority:
    """A root, or with `parent` an intermediate, that issues whatever a test asks for.

    Args:
        trust_domain: the name of its trust domain.
        parent: the authority that signs this one; none makes a root.
        now: the instant around which its certificates are valid.
        key: its key; P-256 by default.
    """

    def __init__(
        self,
        trust_domain: str = "cluster.local",
        *,
        parent: FakeAuthority | None = None,
        now: datetime | None = None,
        key: PrivateKey | None = None,
        lifetime: timedelta = 100 * HOUR,
        key_cert_sign: bool = True,
        ca: bool = True,
        path_length: int | None = None,
        usage_present: bool = True,
        key_identifier_present: bool = True,
        extra: Sequence[tuple[x509.ExtensionType, bool]] = (),
        name: x509.Name | None = None,
    ) -> None:
        self.trust_domain = TrustDomain(trust_domain)
        self.now = (now or datetime.now(UTC)).replace(microsecond=0)
        self.parent = parent
        self.key = key or ec.generate_private_key(ec.SECP256R1())
        serial = x509.random_serial_number()
        self.name = name or x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{trust_domain} {serial:x}"[:60])])
        issuer = parent or self
        builder = (
            x509.CertificateBuilder()
            .subject_name(self.name)
            .issuer_name(issuer.name)
            .public_key(self.key.public_key())
            .serial_number(serial)
            .not_valid_before(self.now - HOUR)
            .not_valid_after(self.now + lifetime)
            .add_extension(x509.BasicConstraints(ca=ca, path_length=path_length), critical=True)
            .add_extension(issuer.key_identifier(), critical=False)
            .add_extension(_names([str(self.trust_domain.id)]), critical=False)
        )
        if key_identifier_present:
            identifier = x509.SubjectKeyIdentifier.from_public_key(self.key.public_key())
            builder = builder.add_extension(identifier, critical=False)
        if usage_present:
            usage = _usage(key_cert_sign=key_cert_sign, crl_sign=True, digital_signature=not key_cert_sign)
            builder = builder.add_extension(usage, critical=True)
        for extension, critical in extra:
            builder = builder.add_extension(extension, critical=critical)
        self.certificate = builder.sign(issuer.key, hashes.SHA256())

    def key_identifier(self) -> x509.AuthorityKeyIdentifier:
        """What its leaves say of their issuer."""
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())

    @property
    def root(self) -> x509.Certificate:
        return self.parent.root if self.parent else self.certificate

    @property
    def intermediates(self) -> tuple[x509.Certificate, ...]:
        """The certificates between a leaf and the root, nearest first."""
        return (self.certificate, *self.parent.intermediates) if self.parent else ()

    def bundle(self, *, sequence: int | None = 1) -> TrustBundle:
        return TrustBundle(self.trust_domain, (self.root,), sequence)

    def leaf(self, path: str = "/ns/default/sa/web", **changes: object) -> Leaf:
        """A faultless leaf for a path of its trust domain, with these fields changed."""
        faultless = Leaf([f"{self.trust_domain.id}{path}"], self.now - timedelta(minutes=5), self.now + HOUR)
        return replace(faultless, **changes)  # type: ignore[arg-type]  # the fields of Leaf, by name

    def sign(
        self, leaf: Leaf, public_key: ec.EllipticCurvePublicKey | rsa.RSAPublicKey, *, serial: int | None = None
    ) -> x509.Certificate:
        """The certificate of a leaf, signed by this authority."""
        builder = (
            x509.CertificateBuilder()
            .subject_name(leaf.subject)
            .issuer_name(self.name)
            .public_key(public_key)
            .serial_number(serial or x509.random_serial_number())
            .not_valid_before(leaf.not_before)
            .not_valid_after(leaf.not_after)
            .add_extension(x509.BasicConstraints(ca=leaf.ca, path_length=None), critical=True)
            .add_extension(self.key_identifier(), critical=False)
        )
        if leaf.uris or leaf.dns_names:
            builder = builder.add_extension(_names(leaf.uris, leaf.dns_names), critical=leaf.san_critical)
        if leaf.usage_present:
            usage = _usage(
                digital_signature=leaf.digital_signature,
                key_encipherment=leaf.key_encipherment,
                key_cert_sign=leaf.key_cert_sign,
                crl_sign=leaf.crl_sign,
            )
            builder = builder.add_extension(usage, critical=leaf.usage_critical)
        if leaf.uses is not None:
            builder = builder.add_extension(x509.ExtendedKeyUsage(leaf.uses), critical=False)
        for extension, critical in leaf.extra:
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self.key, hashes.SHA256())

    def chain(self, leaf: Leaf | None = None, *, key: PrivateKey | None = None) -> tuple[x509.Certificate, ...]:
        """The chain of a leaf: itself and the intermediates."""
        signing = key or ec.generate_private_key(ec.SECP256R1())
        return (self.sign(leaf or self.leaf(), signing.public_key()), *self.intermediates)

    def svid(self, path: str = "/ns/default/sa/web", *, key: PrivateKey | None = None, **changes: object) -> X509SVID:
        """An SVID for a path of its trust domain, valid unless a change of the leaf breaks it."""
        private = key or ec.generate_private_key(ec.SECP256R1())
        leaf = self.leaf(path, **changes)
        return X509SVID(SpiffeID.parse(leaf.uris[0]), self.chain(leaf, key=private), private)


def _names(uris: Sequence[str], dns_names: Sequence[str] = ()) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName(
        [*map(x509.UniformResourceIdentifier, uris), *map(x509.DNSName, dns_names)],
    )


def _usage(
    *, digital_signature: bool, key_cert_sign: bool, crl_sign: bool, key_encipherment: bool = False
) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        content_commitment=False,
        key_encipherment=key_encipherment,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        encipher_only=False,
        decipher_only=False,
    )
