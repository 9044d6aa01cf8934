"""The certificates of a cluster: its CA, its API server, and clients known by name and groups."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from istio_auth.keys import PrivateKey
from istio_auth.pem import write_certificates, write_private_key

_LIFE = timedelta(days=7)
_BACKDATE = timedelta(hours=1)


@dataclass(frozen=True)
class Credential:
    """A certificate with its private key, both in PEM."""

    certificate: bytes
    key: bytes


class ClusterAuthority:
    """The CA of a cluster's own connections; it has nothing to do with the CA under test."""

    def __init__(self) -> None:
        self._key, self._name = ec.generate_private_key(ec.SECP256R1()), _name("kubernetes")
        constraints = x509.BasicConstraints(ca=True, path_length=0)
        usage = _key_usage(key_cert_sign=True)
        self._root = self._signed(self._name, self._key, (constraints, usage))
        self.certificate = write_certificates([self._root])

    def server(self, names: Sequence[str], addresses: Sequence[str]) -> Credential:
        """What a server shows that is reached by these DNS names and IP addresses."""
        alternative = x509.SubjectAlternativeName(
            [*map(x509.DNSName, names), *(x509.IPAddress(ipaddress.ip_address(address)) for address in addresses)]
        )
        return self._leaf(_name(names[0]), ExtendedKeyUsageOID.SERVER_AUTH, alternative)

    def client(self, user: str, *groups: str) -> Credential:
        """What makes a client this user, a member of these groups."""
        return self._leaf(_name(user, *groups), ExtendedKeyUsageOID.CLIENT_AUTH)

    def _leaf(self, subject: x509.Name, use: ObjectIdentifier, *extensions: x509.ExtensionType) -> Credential:
        key = ec.generate_private_key(ec.SECP256R1())
        usage = _key_usage(digital_signature=True)
        basic = x509.BasicConstraints(ca=False, path_length=None)
        certificate = self._signed(subject, key, (basic, usage, x509.ExtendedKeyUsage([use]), *extensions))
        return Credential(write_certificates([certificate]), write_private_key(key))

    def _signed(
        self, subject: x509.Name, key: PrivateKey, extensions: Sequence[x509.ExtensionType]
    ) -> x509.Certificate:
        now = datetime.now(UTC)
        builder = (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - _BACKDATE)
            .not_valid_after(now + _LIFE)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False)
        )
        for extension in extensions:
            critical = isinstance(extension, x509.BasicConstraints | x509.KeyUsage)
            builder = builder.add_extension(extension, critical=critical)
        return builder.sign(self._key, hashes.SHA256())


def _name(common_name: str, *organizations: str) -> x509.Name:
    groups = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, name) for name in organizations]
    return x509.Name([*groups, x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, digital_signature: bool = False, key_cert_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
