"""Whatever is granted, the certificate says exactly that, and the two readers of it agree."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from ipaddress import IPv4Address, IPv6Address

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from ca.certificate.build import Leaf, LeafTemplate, Names
from ca.certificate.check import CertificateCheck
from ca.profile import Validity
from istio_auth.keys import PrivateKey, public_key_der, sign
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from tests.fakes.authority import FakeAuthority

START = datetime(2030, 1, 1, tzinfo=UTC)
CENTURY = timedelta(days=36500)
KEYS: list[PrivateKey] = [ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP384R1())]
RSA_KEY: PrivateKey = rsa.generate_private_key(65537, 2048)
ISSUERS = [FakeAuthority(now=START, key=key, lifetime=CENTURY) for key in (*KEYS, RSA_KEY)]

SEGMENTS = st.text("abcXYZ019.-_", min_size=1, max_size=40).filter(lambda segment: segment not in (".", ".."))
PATHS = st.lists(SEGMENTS, min_size=1, max_size=8).map(lambda segments: "".join(f"/{segment}" for segment in segments))
LABELS = st.from_regex(r"[a-z0-9]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)
DNS_NAMES = st.lists(LABELS, min_size=1, max_size=5).map(".".join)
SECONDS = st.integers(0, int(CENTURY.total_seconds()) - 2)


@st.composite
def leaves(draw: st.DrawFn) -> Leaf:
    key = draw(st.sampled_from([*KEYS, RSA_KEY]))
    first, last = sorted((draw(SECONDS), draw(SECONDS)))
    return Leaf(
        Names(
            SpiffeID(TrustDomain("cluster.local"), draw(PATHS)),
            tuple(draw(st.lists(DNS_NAMES, max_size=4))),
            tuple(draw(st.lists(st.builds(IPv4Address, st.integers(0, 2**32 - 1)), max_size=2)))
            + tuple(draw(st.lists(st.builds(IPv6Address, st.integers(0, 2**128 - 1)), max_size=2))),
        ),
        draw(st.integers(1, 2**128 - 1)),
        Validity(START + timedelta(seconds=first), START + timedelta(seconds=last + 1)),
        public_key_der(key.public_key()),
        key is RSA_KEY,
    )


@given(leaf=leaves(), issuer=st.sampled_from(ISSUERS))
def test_every_certificate_says_what_was_meant(leaf: Leaf, issuer: FakeAuthority) -> None:
    template = LeafTemplate(issuer.certificate)
    to_be_signed = template.to_be_signed(leaf)
    der = template.signed(to_be_signed, sign(issuer.key, to_be_signed))
    CertificateCheck(issuer.certificate, check_signature=True).check(der, leaf)
    found = x509.load_der_x509_certificate(der)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert found.tbs_certificate_bytes == to_be_signed
    assert names.get_values_for_type(x509.UniformResourceIdentifier) == [str(leaf.names.spiffe_id)]
    assert names.get_values_for_type(x509.DNSName) == list(leaf.names.dns_names)
    assert names.get_values_for_type(x509.IPAddress) == list(leaf.names.ip_addresses)
    assert found.serial_number == leaf.serial
    assert Validity(found.not_valid_before_utc, found.not_valid_after_utc) == leaf.validity
