"""X509SVID: an identity and its proof belong together, or there is no SVID."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest
from cryptography import x509

from istio_auth.errors import InvalidSVID, KeyRejected
from istio_auth.keys import new_private_key
from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import X509SVID, spiffe_id_of, uri_names
from tests.fakes.authority import FakeAuthority
from tests.fakes.der import with_bytes
from tests.unit.test_keys import rsa_public_key


def test_an_svid_knows_its_identity_from_the_leaf(authority: FakeAuthority) -> None:
    key = new_private_key()
    chain = authority.chain(key=key)
    svid = X509SVID.of(chain, key, hint="internal")
    assert str(svid.id) == "spiffe://cluster.local/ns/default/sa/web"
    assert svid.leaf == chain[0]
    assert svid.hint == "internal"


def test_it_goes_through_pem_and_is_the_same(authority: FakeAuthority) -> None:
    svid = FakeAuthority(parent=authority).svid()
    again = X509SVID.parse(svid.chain_pem(), svid.key_pem())
    assert again == svid
    assert hash(again) == hash(svid)
    assert again.chain_pem() == svid.chain_pem()
    assert again.key_pem() == svid.key_pem()


def test_its_life_is_the_overlap_of_its_chain(authority: FakeAuthority) -> None:
    short = FakeAuthority(parent=authority, now=authority.now, lifetime=timedelta(minutes=10))
    svid = short.svid()
    assert svid.not_after == short.certificate.not_valid_after_utc
    assert svid.not_after < svid.leaf.not_valid_after_utc
    assert svid.not_before == svid.leaf.not_valid_before_utc


def test_a_key_of_another_makes_no_svid(authority: FakeAuthority) -> None:
    svid = authority.svid()
    with pytest.raises(InvalidSVID):
        X509SVID.of(svid.chain, new_private_key())
    with pytest.raises(InvalidSVID):
        dataclasses.replace(svid, private_key=new_private_key())


def test_an_id_that_is_not_in_the_leaf_makes_no_svid(authority: FakeAuthority) -> None:
    with pytest.raises(InvalidSVID):
        dataclasses.replace(authority.svid(), id=SpiffeID.parse("spiffe://cluster.local/ns/default/sa/admin"))


def test_an_empty_chain_makes_no_svid(authority: FakeAuthority) -> None:
    with pytest.raises(InvalidSVID):
        X509SVID.of((), new_private_key())
    with pytest.raises(InvalidSVID):
        dataclasses.replace(authority.svid(), chain=())


@pytest.mark.parametrize(
    "uris",
    [[], ["spiffe://cluster.local/a", "spiffe://cluster.local/b"], ["https://cluster.local/a"], ["spiffe://A/b"]],
)
def test_a_leaf_names_exactly_one_spiffe_id(authority: FakeAuthority, uris: list[str]) -> None:
    key = new_private_key()
    leaf = authority.sign(authority.leaf(uris=uris), key.public_key())
    assert uri_names(leaf) == uris
    with pytest.raises(InvalidSVID):
        spiffe_id_of(leaf)
    with pytest.raises(InvalidSVID):
        X509SVID.of([leaf], key)


def test_names_beside_the_uri_do_not_matter(authority: FakeAuthority) -> None:
    svid = authority.svid(dns_names=["web.default.svc"])
    assert uri_names(svid.leaf) == [str(svid.id)]


def test_a_leaf_without_extensions_names_nobody(authority: FakeAuthority) -> None:
    key = new_private_key()
    leaf = authority.sign(authority.leaf(uris=[], uses=None, usage_present=False), key.public_key())
    with pytest.raises(InvalidSVID):
        spiffe_id_of(leaf)


def test_extensions_that_do_not_parse_are_refused_and_not_a_crash(authority: FakeAuthority) -> None:
    leaf = authority.svid(dns_names=["web"]).leaf
    # A DNS name (tag 82) becomes an x400Address (83), which cryptography does not know; then a damaged ASN.1 length.
    for old, new in (("8203776562", "8303776562"), ("8203776562", "8209776562")):
        with pytest.raises(InvalidSVID):
            uri_names(with_bytes(leaf, old, new))
        with pytest.raises(InvalidSVID):
            spiffe_id_of(with_bytes(leaf, old, new))


def test_an_extension_that_occurs_twice_is_refused(authority: FakeAuthority) -> None:
    unknown = "1.2.3.4.5", "1.2.3.4.6"
    extra = [(x509.UnrecognizedExtension(x509.ObjectIdentifier(oid), b"\x05\x00"), False) for oid in unknown]
    leaf = authority.sign(authority.leaf(extra=extra), new_private_key().public_key())
    with pytest.raises(InvalidSVID):
        spiffe_id_of(with_bytes(leaf, "06042a030406", "06042a030405"))


def test_a_weak_leaf_key_makes_no_svid(authority: FakeAuthority) -> None:
    leaf = authority.sign(authority.leaf(), rsa_public_key(1024))
    with pytest.raises(KeyRejected):
        X509SVID.of([leaf], new_private_key())
