"""What is read from the data of a secret, with real keys and certificates."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID

from ca.authority.state import AuthorityState, IssuerState
from ca.controller.action import Reason
from ca.controller.material import Damaged, Material, authority_id, digest, read_material
from ca.controller.snapshot import Desired
from ca.profile import Validity
from istio_auth.bundle import TrustBundle
from istio_auth.keys import PrivateKey, new_private_key
from istio_auth.pem import write_certificates, write_private_key
from tests.fakes.authority import HOUR, FakeAuthority

OLD, NEW = FakeAuthority(), FakeAuthority()
INTERMEDIATE = FakeAuthority(parent=OLD)
EMPTY = TrustBundle(OLD.trust_domain)


def data_of(
    authority: FakeAuthority = OLD, *, key: PrivateKey | None = None, root: bytes | None = None, **changes: object
) -> dict[str, bytes]:
    """What is in a secret whose leaf this authority signed, with these fields of the leaf changed."""
    key = key or new_private_key()
    chain = authority.chain(authority.leaf(**changes), key=key)  # type: ignore[arg-type]  # the fields of Leaf, by name
    return {
        "cert-chain.pem": write_certificates(chain),
        "key.pem": write_private_key(key),
        "root-cert.pem": authority.bundle().to_pem() if root is None else root,
    }


def good(data: dict[str, bytes], ours: TrustBundle = EMPTY) -> Material:
    material = read_material(data, ours)
    assert isinstance(material, Material), material
    return material


def damage(data: dict[str, bytes]) -> Damaged:
    material = read_material(data, OLD.bundle())
    assert isinstance(material, Damaged), material
    return material


@pytest.mark.parametrize(
    "key", [new_private_key(), ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)]
)
def test_the_facts_of_a_sound_secret_are_read(key: PrivateKey) -> None:
    data = data_of(key=key, dns_names=["web.default.svc"])
    leaf = x509.load_pem_x509_certificate(data["cert-chain.pem"])
    assert good(data) == Material(
        "spiffe://cluster.local/ns/default/sa/web",
        frozenset({"web.default.svc"}),
        leaf.serial_number,
        leaf.not_valid_before_utc,
        leaf.not_valid_after_utc,
        authority_id(OLD.certificate),
        frozenset({authority_id(OLD.certificate)}),
        digest(data["root-cert.pem"]),
    )


def test_keys_in_the_form_that_citadel_wrote_are_read() -> None:
    key = rsa.generate_private_key(65537, 2048)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, NoEncryption())
    good(data_of(key=key) | {"key.pem": pem})


def test_the_chain_ends_with_the_first_of_its_certificates_and_its_issuer_is_the_intermediate() -> None:
    short = FakeAuthority(parent=OLD, lifetime=HOUR / 2)
    material = good(data_of(short))
    assert material.not_after == short.certificate.not_valid_after_utc
    assert material.issuer == authority_id(short.certificate)
    assert material.anchors == {authority_id(OLD.certificate)}


@pytest.mark.parametrize("missing", ["cert-chain.pem", "key.pem"])
def test_a_missing_or_empty_key_is_named(missing: str) -> None:
    data = data_of()
    for damaged in (damage(data | {missing: b""}), damage({key: data[key] for key in data if key != missing})):
        assert damaged.reason is Reason.INCOMPLETE
        assert damaged.detail == f"{missing} missing"
        assert damaged.root_digest == digest(data["root-cert.pem"])


def test_junk_is_unparsable_and_none_of_it_is_repeated() -> None:
    data = data_of()
    for key in ("cert-chain.pem", "key.pem"):
        for junk in (b"junk", data[key][: len(data[key]) // 2], data[key][:100] + b"JUNK" + data[key][104:]):
            damaged = damage(data | {key: junk})
            assert damaged.reason is Reason.UNPARSABLE
            assert data[key][40:52].decode() not in repr(damaged)
    assert damage(data | {"key.pem": data["cert-chain.pem"]}).reason is Reason.UNPARSABLE


def test_another_key_is_told() -> None:
    assert damage(data_of() | {"key.pem": write_private_key(new_private_key())}).reason is Reason.WRONG_KEY


def test_a_key_that_looks_like_the_right_one_and_does_not_work_is_told() -> None:
    key = rsa.generate_private_key(65537, 2048)
    numbers = key.private_numbers()
    broken = rsa.RSAPrivateNumbers(
        numbers.p, numbers.q, numbers.d + 2, numbers.dmp1 + 2, numbers.dmq1, numbers.iqmp, numbers.public_numbers
    ).private_key(unsafe_skip_rsa_key_validation=True)
    assert damage(data_of(key=key) | {"key.pem": write_private_key(broken)}).reason is Reason.WRONG_KEY


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"uris": []}, Reason.WRONG_NAMES),
        ({"uris": [], "dns_names": ["web"]}, Reason.WRONG_NAMES),
        ({"uris": ["spiffe://cluster.local/a", "spiffe://cluster.local/b"]}, Reason.WRONG_NAMES),
        ({"uris": ["https://cluster.local/a"]}, Reason.WRONG_NAMES),
        ({"uris": ["spiffe://cluster.local"]}, Reason.WRONG_NAMES),
        ({"ca": True}, Reason.UNUSABLE),
        ({"usage_present": False}, Reason.UNUSABLE),
        ({"san_critical": False}, Reason.UNUSABLE),
        ({"uses": [ExtendedKeyUsageOID.CLIENT_AUTH]}, Reason.UNUSABLE),
    ],
)
def test_a_leaf_that_breaks_a_rule_is_told(changes: dict[str, Any], reason: Reason) -> None:
    assert damage(data_of(**changes)).reason is reason


def test_a_weak_key_is_unusable() -> None:
    weak = rsa.generate_private_key(65537, 1024)  # noqa: S505  # the point of the test
    assert damage(data_of(key=weak)).reason is Reason.UNUSABLE


def test_a_chain_that_leads_to_no_root_at_hand_is_read_and_has_no_anchor() -> None:
    material = good(data_of(root=NEW.bundle().to_pem()), NEW.bundle())
    assert (material.issuer, material.anchors) == ("", frozenset())


def test_a_changed_root_bundle_does_not_hide_that_ours_vouches_for_the_chain() -> None:
    for root in (b"", b"junk", NEW.bundle().to_pem()):
        material = good(data_of(INTERMEDIATE, root=root), OLD.bundle())
        assert material.anchors == {authority_id(OLD.certificate)}
        assert material.root_digest == (digest(root) if root else "")


def test_what_is_read_does_not_depend_on_the_bundle_of_that_moment() -> None:
    data = data_of(INTERMEDIATE)
    assert good(data, NEW.bundle()) == good(data, OLD.bundle()) == good(data, EMPTY)


def test_an_ended_certificate_is_read_like_any_other() -> None:
    material = good(data_of(not_before=OLD.now - 0.9 * HOUR, not_after=OLD.now - 0.5 * HOUR))
    assert material.anchors == {authority_id(OLD.certificate)}


def test_a_forged_leaf_in_the_name_of_our_root_has_no_anchor() -> None:
    forger = FakeAuthority(name=OLD.name)
    material = good(data_of(forger, root=OLD.bundle().to_pem()), OLD.bundle())
    assert (material.issuer, material.anchors) == ("", frozenset())


def test_of_several_issuers_of_one_name_the_one_that_signed_is_known() -> None:
    twin = FakeAuthority(parent=OLD, name=INTERMEDIATE.name)
    for signer, other in ((INTERMEDIATE, twin), (twin, INTERMEDIATE)):
        data = data_of(signer)
        data["cert-chain.pem"] += write_certificates([other.certificate])
        assert good(data).issuer == authority_id(signer.certificate)
        leaf = x509.load_pem_x509_certificate(data["cert-chain.pem"])
        data["cert-chain.pem"] = write_certificates([leaf, other.certificate, signer.certificate])
        assert good(data).issuer == authority_id(signer.certificate)


def test_a_root_renewed_with_its_key_vouches_for_what_the_old_one_signed() -> None:
    renewed = FakeAuthority(key=OLD.key, name=OLD.name, now=OLD.now + timedelta(minutes=50))
    assert renewed.certificate != OLD.certificate
    assert authority_id(renewed.certificate) == authority_id(OLD.certificate) != authority_id(NEW.certificate)
    data = data_of(OLD, root=renewed.bundle().to_pem())
    assert good(data).anchors == {authority_id(OLD.certificate)}


def test_what_is_desired_follows_from_the_state_of_the_authority() -> None:
    renewed = FakeAuthority(key=OLD.key, name=OLD.name, now=OLD.now + 20 * HOUR, lifetime=10 * HOUR)
    issuer = IssuerState(INTERMEDIATE.certificate, OLD.certificate, other_roots=(renewed.certificate,))
    state = AuthorityState(OLD.trust_domain, issuer, prepared=IssuerState(NEW.certificate, NEW.certificate), sequence=3)
    desired = Desired.of(state)
    assert desired == Desired(
        OLD.trust_domain,
        digest(state.bundle().to_pem()),
        {
            authority_id(OLD.certificate): OLD.certificate.not_valid_after_utc,
            authority_id(NEW.certificate): NEW.certificate.not_valid_after_utc,
        },
        frozenset({authority_id(INTERMEDIATE.certificate), authority_id(NEW.certificate)}),
        Validity(issuer.not_before, issuer.not_after),
    )
    retired = replace(state, active=IssuerState(NEW.certificate, NEW.certificate), prepared=None, retired=(issuer,))
    assert Desired.of(retired).issuers == desired.issuers
