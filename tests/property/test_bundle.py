"""Bundles survive their formats, and no JSON crashes the reader."""

from __future__ import annotations

import json
from contextlib import suppress
from datetime import timedelta

from hypothesis import given
from hypothesis import strategies as st

from istio_auth.bundle import BundleSet, TrustBundle
from istio_auth.errors import IstioAuthError
from istio_auth.spiffe_id import TrustDomain
from tests.fakes.authority import FakeAuthority

CERTIFICATES = tuple(FakeAuthority(f"domain-{number}").certificate for number in range(5))

domains = st.text("abcdefghijklmnopqrstuvwxyz0123456789.-_", min_size=1, max_size=255).map(TrustDomain)
bundles = st.builds(
    TrustBundle,
    domains,
    st.lists(st.sampled_from(CERTIFICATES), unique=True).map(tuple),
    st.none() | st.integers(0, 2**64),
    st.none() | st.integers(0, 366 * 86400).map(lambda seconds: timedelta(seconds=seconds)),
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)
keys_members = ("kty", "use", "x5c", "kid", "n")
near_entries = st.dictionaries(
    st.sampled_from(keys_members), st.sampled_from(["EC", "RSA", "x509-svid", ["AAAA"], ["\x80"]]) | json_values
)
near_documents = st.fixed_dictionaries(
    {"keys": st.lists(near_entries | json_values)},
    optional={"spiffe_sequence": json_values, "spiffe_refresh_hint": json_values},
)


@given(bundles)
def test_a_bundle_is_the_same_after_json(bundle: TrustBundle) -> None:
    again = TrustBundle.from_json(bundle.trust_domain, bundle.to_json())
    assert again == bundle
    assert again.to_json() == bundle.to_json()


@given(st.lists(bundles, unique_by=lambda bundle: bundle.trust_domain))
def test_a_set_is_the_same_after_json_but_for_the_hints(members: list[TrustBundle]) -> None:
    again = BundleSet.from_json(BundleSet(tuple(members)).to_json())
    assert [(one.trust_domain, one.x509_authorities, one.sequence) for one in again] == [
        (one.trust_domain, one.x509_authorities, one.sequence) for one in members
    ]


@given(near_documents | json_values)
def test_any_json_makes_a_bundle_or_a_clear_refusal(document: object) -> None:
    with suppress(IstioAuthError):
        TrustBundle.from_json(TrustDomain("td"), json.dumps(document))
    with suppress(IstioAuthError):
        BundleSet.from_json(json.dumps({"trust_domains": {"td": document}}))


@given(st.binary())
def test_any_bytes_make_a_bundle_or_a_clear_refusal(document: bytes) -> None:
    with suppress(IstioAuthError):
        TrustBundle.from_json(TrustDomain("td"), document)
    with suppress(IstioAuthError):
        TrustBundle.from_pem(TrustDomain("td"), document)
