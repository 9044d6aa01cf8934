"""Nobody can change what was signed: damage of any byte is refused, and nothing else than a refusal comes out.

The signature itself has a few spellings (a count of unused bits that libraries ignore), so a chain counts as changed
when a signed byte of it is.
"""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from istio_auth.errors import InvalidPEM, IstioAuthError, VerificationError
from istio_auth.pem import read_der_certificate, write_der
from istio_auth.verify import verify_chain
from tests.vectors.x509_svid import BUNDLES, LOCAL, NOW, sound_intermediate

CHAIN = [write_der(certificate) for certificate in sound_intermediate().chain(LOCAL.leaf(dns_names=["web"]))]


@pytest.mark.parametrize("which", [0, 1], ids=["leaf", "intermediate"])
def test_no_bit_of_a_chain_can_be_flipped(which: int) -> None:
    _verify(which, CHAIN[which])
    for place in range(len(CHAIN[which])):
        for bit in (0x01, 0x20, 0x80):
            damaged = bytearray(CHAIN[which])
            damaged[place] ^= bit
            _refused_or_unchanged(which, bytes(damaged))


@given(st.integers(0, 1), st.data())
def test_any_damage_is_refused_as_such(which: int, data: st.DataObject) -> None:
    good = CHAIN[which]
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, len(good)))
    _refused_or_unchanged(which, good[:start] + data.draw(st.binary(max_size=20)) + good[end:])


@given(st.binary(max_size=600))
def test_any_bytes_are_read_or_refused(der: bytes) -> None:
    with pytest.raises(IstioAuthError):
        _verify(0, der)


def _refused_or_unchanged(which: int, der: bytes) -> None:
    with suppress(InvalidPEM, VerificationError):
        _verify(which, der)
        assert _signed(der) == _signed(CHAIN[which])


def _verify(which: int, der: bytes) -> None:
    chain = [der if place == which else good for place, good in enumerate(CHAIN)]
    verify_chain([read_der_certificate(one) for one in chain], BUNDLES, NOW)


def _signed(der: bytes) -> bytes:
    return read_der_certificate(der).tbs_certificate_bytes
