"""Whatever the bytes: they are read, or refused as what they are; no parser's own error gets out, and no key either."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from hypothesis import given
from hypothesis import strategies as st

from istio_auth import pem
from istio_auth.errors import InvalidPEM, KeyRejected
from istio_auth.keys import new_private_key
from tests.vectors.x509_svid import LOCAL

_KEY = new_private_key()
_CSR = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([])).sign(_KEY, hashes.SHA256())
GOOD = (
    pem.write_certificates(LOCAL.chain()),
    pem.write_der(LOCAL.certificate),
    pem.write_private_key(_KEY),
    pem.write_csr(_CSR),
    b"-----BEGIN EC PARAMETERS-----\nBggqhkjOPQMBBw==\n-----END EC PARAMETERS-----\n",
)
READERS: tuple[Callable[[bytes], object], ...] = (
    pem.read_certificates,
    pem.read_der_certificates,
    pem.read_der_certificate,
    pem.read_private_key,
    pem.read_csr,
)


@st.composite
def near_good(draw: st.DrawFn) -> bytes:
    """Something good with a part of it replaced, cut or doubled."""
    content = draw(st.sampled_from(GOOD))
    start = draw(st.integers(0, len(content)))
    end = draw(st.integers(start, len(content)))
    middle = draw(st.binary(max_size=30) | st.sampled_from([*GOOD, content[start:end] * 2]))
    return content[:start] + middle + content[end:]


@pytest.mark.parametrize("reader", READERS, ids=lambda reader: reader.__name__)
@given(content=st.binary() | near_good())
def test_bytes_are_read_or_refused(reader: Callable[[bytes], object], content: bytes) -> None:
    with suppress(InvalidPEM, KeyRejected):
        reader(content)


@given(near_good())
def test_a_refusal_of_a_key_quotes_nothing(content: bytes) -> None:
    refusal = None
    try:
        pem.read_private_key(content)
    except (InvalidPEM, KeyRejected) as error:
        refusal = error
    if refusal is not None:
        assert refusal.__cause__ is None
        assert not any(line[:16] in str(refusal) for line in GOOD[2].decode().splitlines()[1:-1])
