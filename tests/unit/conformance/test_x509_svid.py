"""X509-SVID, requirement by requirement, as the validator of a peer's chain keeps it.

Vectors are chains with one fault each; each is refused for that fault, and its mended twin passes.
"""

from __future__ import annotations

import ipaddress

import pytest
from cryptography import x509

from istio_auth.bundle import BundleSet, TrustBundle
from istio_auth.errors import Fault, VerificationError
from istio_auth.verify import verify_chain
from tests.fakes.authority import BOTH_USES, FakeAuthority, Leaf
from tests.unit.test_verify import SUBJECT
from tests.vectors.x509_svid import ALL, BUNDLES, FEDERATED, LOCAL, NOW, sound_intermediate

WEB = "spiffe://cluster.local/ns/default/sa/web"


def refused(*names: str) -> None:
    """Each of these vectors is refused for its fault, and passes once it is mended."""
    for name in names:
        vector = ALL[name]
        with pytest.raises(VerificationError) as caught:
            verify_chain(vector.wrong, BUNDLES, NOW)
        assert caught.value.fault is vector.fault, name
        verify_chain(vector.mended, BUNDLES, NOW)


def accepted(leaf: Leaf | None = None, *, issuer: FakeAuthority = LOCAL) -> None:
    assert str(verify_chain(issuer.chain(leaf), BUNDLES, NOW)) == WEB


def refused_root(**changes: bool) -> None:
    """A root of a bundle that lacks what makes a CA vouches for nobody."""
    wrong, mended = FakeAuthority(now=NOW, **changes), FakeAuthority(now=NOW)  # type: ignore[arg-type]  # by name
    with pytest.raises(VerificationError) as caught:
        verify_chain(wrong.chain(), wrong.bundle(), NOW)
    assert caught.value.fault is Fault.UNTRUSTED
    verify_chain(mended.chain(), mended.bundle(), NOW)


class TestLeaf:
    def test_xl_01_there_is_exactly_one_uri_name(self) -> None:
        refused("no-uri-name", "no-names-at-all", "two-uri-names", "uri-beside-the-spiffe-id", "the-same-uri-twice")

    def test_xl_02_there_may_be_names_of_other_kinds(self) -> None:
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(WEB), x509.DNSName("a"), x509.DNSName("b")]
        names += [x509.IPAddress(ipaddress.ip_address("10.0.0.1")), x509.RFC822Name("a@example.org")]
        accepted(LOCAL.leaf(uris=[], extra=[(x509.SubjectAlternativeName(names), True)]))

    def test_xl_03_the_id_has_a_path(self) -> None:
        refused("id-without-path")

    def test_xl_04_the_names_are_critical_where_the_subject_is_empty(self) -> None:
        refused("empty-subject-and-names-not-critical")
        accepted(LOCAL.leaf(subject=SUBJECT, san_critical=False))

    def test_xl_05_it_is_no_ca(self) -> None:
        refused("leaf-is-a-ca")

    def test_xl_06_there_is_a_critical_key_usage(self) -> None:
        refused("no-key-usage", "key-usage-not-critical")

    def test_xl_07_its_key_may_sign(self) -> None:
        refused("no-digital-signature")

    def test_xl_08_its_key_may_be_for_encipherment_too(self) -> None:
        accepted(LOCAL.leaf(key_encipherment=True))
        both = x509.KeyUsage(True, False, True, False, True, False, False, False, False)  # agreement, too
        accepted(LOCAL.leaf(usage_present=False, extra=[(both, True)]))

    def test_xl_09_its_key_signs_neither_certificates_nor_crls(self) -> None:
        refused("leaf-signs-certificates", "leaf-signs-crls")

    def test_xl_10_it_need_not_say_what_else_it_is_for(self) -> None:
        accepted(LOCAL.leaf(uses=None))

    def test_xl_11_it_is_for_servers_and_for_clients_if_it_says(self) -> None:
        refused("client-use-only", "server-use-only", "other-use", "any-use")

    def test_xl_12_what_it_says_of_that_may_be_critical(self) -> None:
        accepted(LOCAL.leaf(uses=None, extra=[(x509.ExtendedKeyUsage(BOTH_USES), True)]))


class TestSigningCertificate:
    def test_xc_01_it_is_a_ca(self) -> None:
        refused("intermediate-that-is-no-ca")
        refused_root(ca=False)

    def test_xc_02_its_key_may_sign_certificates_and_it_says_so_critically(self) -> None:
        refused("intermediate-without-key-cert-sign", "intermediate-without-key-usage")
        refused_root(key_cert_sign=False)
        refused_root(usage_present=False)

    def test_xc_03_its_key_may_sign_crls_too(self) -> None:
        usage = LOCAL.certificate.extensions.get_extension_for_class(x509.KeyUsage)
        assert usage.value.crl_sign
        accepted()

    def test_xc_05_it_may_bound_the_length_of_the_path_which_holds_then(self) -> None:
        accepted(issuer=sound_intermediate(path_length=0))
        refused("path-longer-than-allowed")

    def test_xc_09_it_may_issue_further_cas(self) -> None:
        accepted(issuer=FakeAuthority(parent=sound_intermediate(), now=NOW))

    def test_xc_10_it_never_authenticates(self) -> None:
        refused("leaf-is-a-ca", "root-as-leaf", "intermediate-before-leaf")

    def test_xc_11_it_may_say_what_else_it_is_for(self) -> None:
        accepted(issuer=sound_intermediate(extra=[(x509.ExtendedKeyUsage(BOTH_USES), False)]))

    def test_xc_12_its_limits_to_names_never_go_unseen(self) -> None:
        # Nothing here can judge limits to URI names, so none of them lets anybody in.
        refused("intermediate-constrained-to-other-names")
        limits = x509.NameConstraints([x509.DNSName("web.test")], None)
        between = sound_intermediate(extra=[(limits, True)])
        accepted(between.leaf(dns_names=["a.web.test"]), issuer=between)
        with pytest.raises(VerificationError) as caught:
            verify_chain(between.chain(between.leaf(dns_names=["db.test"])), BUNDLES, NOW)
        assert caught.value.fault is Fault.UNTRUSTED


class TestValidation:
    def test_xv_a_there_is_a_path_to_a_ca_of_the_bundle(self) -> None:
        refused("stranger-with-the-right-names", "intermediate-of-a-stranger", "missing-intermediate")
        refused("expired", "not-yet-valid", "expired-intermediate", "broken-signature", "sha1-signature")
        refused("unknown-critical-extension", "intermediate-with-unknown-critical-extension", "no-certificate")

    def test_xv_a_a_leaf_that_signed_itself_has_no_path(self) -> None:
        leaf = FakeAuthority(now=NOW).chain()[0]
        with pytest.raises(VerificationError) as caught:
            verify_chain([leaf], TrustBundle(LOCAL.trust_domain, (leaf,)), NOW)
        assert caught.value.fault is Fault.UNTRUSTED

    def test_xv_b_the_leaf_is_no_ca(self) -> None:
        refused("leaf-is-a-ca")

    def test_xv_c_the_leafs_key_signs_neither_certificates_nor_crls(self) -> None:
        refused("leaf-signs-certificates", "leaf-signs-crls")

    def test_xv_d_the_scheme_is_spiffe(self) -> None:
        refused("https-uri", "upper-case-scheme")

    def test_xv_e_the_id_has_a_path(self) -> None:
        refused("id-without-path")

    def test_xv_f_several_uri_names_are_refused(self) -> None:
        refused("two-uri-names", "uri-beside-the-spiffe-id", "the-same-uri-twice")

    def test_xv_g_the_bundle_is_that_of_the_peers_trust_domain_and_never_pooled(self) -> None:
        refused("local-name-signed-by-federated-ca", "federated-name-signed-by-local-ca")

    def test_xv_g_an_intermediate_of_another_trust_domain_that_ours_signed_vouches_for_no_name_of_its_own(self) -> None:
        # XC-09 lets a CA issue one for another trust domain; whose names count is still a matter of bundles.
        between = FakeAuthority("partner.test", parent=LOCAL, now=NOW)
        with pytest.raises(VerificationError) as caught:
            verify_chain(between.chain(), BUNDLES, NOW)
        assert caught.value.fault is Fault.UNTRUSTED
        verify_chain(FEDERATED.chain(), BUNDLES, NOW)

    def test_xv_h_without_a_bundle_nobody_is_trusted(self) -> None:
        refused("unknown-trust-domain")
        with pytest.raises(VerificationError) as caught:
            verify_chain(LOCAL.chain(), BundleSet(), NOW)
        assert caught.value.fault is Fault.FOREIGN_TRUST_DOMAIN


def test_fe_17_a_federated_ca_can_not_impersonate_local_workloads_nor_the_local_ca_federated_ones() -> None:
    forged = FEDERATED.chain(FEDERATED.leaf(uris=[WEB]))
    with pytest.raises(VerificationError):
        verify_chain(forged, BUNDLES, NOW)
    merged = TrustBundle(LOCAL.trust_domain, (LOCAL.certificate, FEDERATED.certificate))
    assert str(verify_chain(forged, merged, NOW)) == WEB  # what merging would do
    refused("federated-name-signed-by-local-ca")
