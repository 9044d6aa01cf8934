"""`ca-cli inspect` shows what a file says, to people and to scripts, and never a secret."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.x509.oid import NameOID

from istio_auth.keys import new_private_key
from istio_auth.pem import write_certificates, write_csr, write_der, write_private_key
from istio_auth.svid import X509SVID
from tests.command import ca_cli
from tests.fakes.authority import FakeAuthority
from tests.vectors.x509_svid import BUNDLES, FEDERATED, LOCAL, sound_intermediate

WEB = "spiffe://cluster.local/ns/default/sa/web"


@pytest.fixture
def svid() -> X509SVID:
    return sound_intermediate().svid(dns_names=["web.default.svc"])


@pytest.fixture
def folder(tmp_path: Path, svid: X509SVID) -> Path:
    (tmp_path / "cert-chain.pem").write_bytes(svid.chain_pem())
    (tmp_path / "root-cert.pem").write_bytes(LOCAL.bundle().to_pem())
    (tmp_path / "key.pem").touch(0o600)
    (tmp_path / "key.pem").write_bytes(svid.key_pem())
    return tmp_path


def test_a_chain_is_told_certificate_by_certificate(folder: Path, svid: X509SVID) -> None:
    done = ca_cli("inspect", folder / "cert-chain.pem", "--output", "json")
    assert (done.code, done.err) == (0, "")
    [document] = done.json["documents"]
    assert document["kind"] == "chain"
    leaf, issuer = document["certificates"]
    assert leaf["spiffe_id"] == WEB
    assert leaf["dns_names"] == ["web.default.svc"]
    assert leaf["serial"] == f"{svid.leaf.serial_number:x}"
    assert leaf["key"] == "P-256"
    assert leaf["extended_key_usage"] == ["serverAuth", "clientAuth"]
    assert leaf["not_after"] == f"{svid.leaf.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}"
    assert leaf["valid_now"] is True
    assert 600 < leaf["remaining_seconds"] <= 3600
    assert [finding["code"] for finding in leaf["unusual"]] == ["no-subject-key-id"]
    assert (issuer["ca"], issuer["spiffe_id"], issuer["self_signed"]) == (True, "spiffe://cluster.local", False)
    assert document["unusual"] == []


def test_people_read_the_times_in_words_and_the_id_in_one_piece(folder: Path) -> None:
    done = ca_cli("inspect", folder / "cert-chain.pem")
    assert done.code == 0
    assert WEB in done.out.split()
    assert re.search(r"ends in \d+ minutes", done.out)
    assert "\x1b" not in done.out
    assert all(line == line.rstrip() for line in done.out.splitlines())


def test_a_folder_is_told_whole(folder: Path) -> None:
    documents = ca_cli("inspect", folder, "-o", "json").json["documents"]
    assert [document["kind"] for document in documents] == ["chain", "bundle", "private-key"]
    assert documents[2] == {"kind": "private-key", "source": str(folder / "key.pem"), "key": "P-256", "unusual": []}


def test_a_key_that_does_not_fit_or_that_others_can_read_is_told(folder: Path) -> None:
    (folder / "key.pem").write_bytes(write_private_key(new_private_key()))
    (folder / "key.pem").chmod(0o644)
    key = ca_cli("inspect", folder, "-o", "json").json["documents"][-1]
    assert {finding["code"] for finding in key["unusual"]} == {"wrong-key", "exposed-key"}


def test_a_key_is_never_shown(folder: Path, svid: X509SVID) -> None:
    both = folder / "both.pem"
    both.write_bytes(svid.key_pem() + svid.chain_pem())
    broken = folder / "broken"
    broken.mkdir()
    (broken / "cert-chain.pem").write_bytes(svid.chain_pem())
    (broken / "key.pem").write_bytes(svid.key_pem()[:90])
    secret = svid.key_pem().decode().splitlines()[1][:20]
    for source in (folder, both, folder / "key.pem", broken):
        for output in ("table", "json"):
            done = ca_cli("inspect", source, "-o", output)
            assert done.code == 0
            assert "key" in done.out
            assert secret not in done.out + done.err


def test_a_collection_of_authorities_is_a_bundle(tmp_path: Path) -> None:
    roots = tmp_path / "roots.pem"
    roots.write_bytes(LOCAL.bundle().to_pem() + FEDERATED.bundle().to_pem())
    [document] = ca_cli("inspect", roots, "-o", "json").json["documents"]
    assert document["kind"] == "bundle"
    assert [one["spiffe_id"] for one in document["authorities"]] == ["spiffe://cluster.local", "spiffe://partner.test"]
    assert document["unusual"] == []


def test_a_spiffe_bundle_is_told_with_its_sequence(tmp_path: Path) -> None:
    file = tmp_path / "bundle.json"
    file.write_bytes(LOCAL.bundle(sequence=7).to_json())
    [document] = ca_cli("inspect", file, "-o", "json").json["documents"]
    assert (document["kind"], document["trust_domain"], document["sequence"]) == ("bundle", None, 7)
    assert [finding["code"] for finding in document["unusual"]] == ["no-refresh-hint"]
    assert "sequence" in ca_cli("inspect", file).out


def test_a_bundle_map_is_told_domain_by_domain(tmp_path: Path) -> None:
    file = tmp_path / "map.json"
    file.write_bytes(BUNDLES.to_json())
    documents = ca_cli("inspect", file, "-o", "json").json["documents"]
    assert [document["trust_domain"] for document in documents] == ["cluster.local", "partner.test"]


def test_a_request_is_told_with_its_wishes(tmp_path: Path) -> None:
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(WEB), x509.DNSName("web")])
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web")]))
        .add_extension(names, critical=False)
        .sign(new_private_key(), hashes.SHA256())
    )
    file = tmp_path / "web.csr"
    file.write_bytes(write_csr(csr))
    [document] = ca_cli("inspect", file, "-o", "json").json["documents"]
    assert document == {
        "kind": "csr",
        "source": str(file),
        "spiffe_id": WEB,
        "uri_names": [WEB],
        "dns_names": ["web"],
        "other_names": [],
        "subject": "CN=web",
        "key": "P-256",
        "signature_hash": "sha256",
        "unusual": [],
    }
    assert WEB in ca_cli("inspect", file).out


def test_der_and_standard_input_are_read_too(svid: X509SVID) -> None:
    for content in (svid.chain_pem(), write_der(svid.leaf), b"".join(map(write_der, svid.chain))):
        done = ca_cli("inspect", "-", "-o", "json", stdin=content)
        assert done.json["documents"][0]["certificates"][0]["spiffe_id"] == WEB


def test_several_files_are_told_in_their_order(folder: Path) -> None:
    documents = ca_cli("inspect", folder / "root-cert.pem", folder / "cert-chain.pem", "-o", "json").json["documents"]
    assert [document["kind"] for document in documents] == ["ca-certificate", "chain"]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"junk",
        b"{}",
        b'{"trust_domains": 1}',
        b"0\x82\x01",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE REQUEST-----\nAAAA\n-----END CERTIFICATE REQUEST-----\n",
        b"-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n",
        b"-----BEGIN CERTIFICATE-----\nAAAA\n",
        b"-----BEGIN CERTIFICATE-----" * 200_000,
    ],
    ids=lambda content: repr(content[:30]),
)
def test_what_is_nothing_of_the_kind_is_a_usage_error_in_one_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "odd"
    file.write_bytes(content)
    done = ca_cli("inspect", file)
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("ca-cli: ")
    assert done.err.count("\n") == 1


def test_a_file_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    for wrong in (tmp_path / "nothing", tmp_path):
        done = ca_cli("inspect", wrong)
        assert (done.code, done.out) == (2, "")
        assert str(wrong) in done.err


def test_text_of_strangers_reaches_no_terminal_as_it_is(tmp_path: Path) -> None:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "\x1b]0;owned\x07 \x1b[31mred\nforged: yes")])
    odd = FakeAuthority(name=name)
    file = tmp_path / "odd.pem"
    file.write_bytes(write_certificates(odd.chain()))
    for output in ("table", "json"):
        done = ca_cli("inspect", file, "-o", output)
        assert done.code == 0
        assert "\x1b" not in done.out
        assert "\x07" not in done.out
        assert "\nforged" not in done.out


def test_json_is_json_also_for_what_is_odd(tmp_path: Path) -> None:
    file = tmp_path / "odd.pem"
    file.write_bytes(write_certificates(FakeAuthority("xn--bcher-kva.example").chain()))
    assert json.loads(ca_cli("inspect", file, "-o", "json").out)
