"""openssl accepts what we issue, and we read what openssl and Go make."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.command import ca_cli
from tests.unit.ca.cli.test_issue import issue
from tests.vectors.x509_svid import LOCAL

WEB = "spiffe://cluster.local/ns/default/sa/web"


def openssl(*words: object, check: bool = True) -> subprocess.CompletedProcess[str]:
    command = ["openssl", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, check=check, timeout=60)


def accepted(folder: Path, *more: object) -> subprocess.CompletedProcess[str]:
    """What openssl says of the chain in a folder, by the strict rules of RFC 5280."""
    chain, root = folder / "cert-chain.pem", folder / "root-cert.pem"
    return openssl("verify", "-x509_strict", *more, "-CAfile", root, "-untrusted", chain, chain, check=False)


@pytest.fixture(scope="module")
def state(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("openssl") / "state"


@pytest.mark.parametrize("kind", ["p256", "p384", "rsa-2048"])
@pytest.mark.parametrize("purpose", ["sslserver", "sslclient"])
def test_openssl_accepts_every_kind_of_certificate_strictly(
    state: Path, tmp_path: Path, kind: str, purpose: str
) -> None:
    out = tmp_path / "web"
    assert issue(state, out, "--key-type", kind, "--dns", "web.default.svc").code == 0
    done = accepted(out, "-purpose", purpose)
    assert done.returncode == 0, done.stderr


def test_openssl_refuses_it_under_another_root(state: Path, tmp_path: Path) -> None:
    assert issue(state, tmp_path / "web").code == 0
    assert accepted(tmp_path / "web").returncode == 0
    (tmp_path / "web/root-cert.pem").write_bytes(LOCAL.bundle().to_pem())
    assert accepted(tmp_path / "web").returncode != 0


def test_openssl_agrees_on_the_root_by_itself(state: Path, tmp_path: Path) -> None:
    assert issue(state, tmp_path / "web").code == 0
    root = tmp_path / "web/root-cert.pem"
    assert openssl("verify", "-x509_strict", "-CAfile", root, root).returncode == 0


def test_openssl_takes_the_key_and_finds_it_to_be_the_certificates(state: Path, tmp_path: Path) -> None:
    assert issue(state, tmp_path / "web").code == 0
    of_key = openssl("pkey", "-in", tmp_path / "web/key.pem", "-pubout").stdout
    of_certificate = openssl("x509", "-in", tmp_path / "web/cert-chain.pem", "-noout", "-pubkey").stdout
    assert of_key == of_certificate


def test_we_tell_the_same_of_our_certificate_as_openssl(state: Path, tmp_path: Path) -> None:
    assert issue(state, tmp_path / "web").code == 0
    chain = tmp_path / "web/cert-chain.pem"
    [leaf] = ca_cli("inspect", chain, "-o", "json").json["documents"][0]["certificates"]
    told = openssl(
        "x509", "-in", chain, "-noout", "-serial", "-fingerprint", "-sha256", "-ext", "subjectAltName"
    ).stdout
    assert int(told.split("serial=")[1].split()[0], 16) == int(leaf["serial"], 16)
    assert told.split("Fingerprint=")[1].split()[0].replace(":", "").lower() == leaf["fingerprint_sha256"]
    assert "critical" in told
    assert f"URI:{WEB}" in told


def test_a_certificate_of_openssls_own_habits_is_told_with_its_oddities(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    new = ("req", "-x509", "-newkey", "rsa:2048", "-noenc", "-keyout", key, "-out", certificate)
    openssl(*new, "-days", "365", "-subj", "/CN=old habits", "-addext", f"subjectAltName=URI:{WEB},DNS:web,IP:10.0.0.1")
    [document] = ca_cli("inspect", certificate, "-o", "json").json["documents"]
    assert document["kind"] == "ca-certificate"  # its default is a CA
    assert document["self_signed"] is True
    assert document["other_names"] == ["10.0.0.1"]
    assert {finding["code"] for finding in document["unusual"]} == {"ca-with-path", "ca-can-not-sign"}
    done = ca_cli("verify", certificate, "--trust-bundle", certificate, "--trust-domain", "cluster.local", "-o", "json")
    assert (done.code, done.json["fault"]) == (3, "IS_CA")


def test_a_certificate_as_istiod_makes_them_is_accepted(tmp_path: Path) -> None:
    """Istiod's: an RSA root named by its organisation alone, a leaf with empty subject, both usages, no SKI."""
    root_key, root, key, csr, leaf = (
        tmp_path / name for name in ("rk.pem", "root.pem", "k.pem", "csr.pem", "leaf.pem")
    )
    openssl(
        "req", "-x509", "-newkey", "rsa:2048", "-noenc", "-keyout", root_key, "-out", root, "-days", "3650",
        "-subj", "/O=cluster.local", "-addext", "keyUsage=critical,keyCertSign",
        "-addext", "subjectAltName=URI:spiffe://cluster.local",
    )  # fmt: skip
    openssl(
        "req",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:P-256",
        "-noenc",
        "-keyout",
        key,
        "-out",
        csr,
        "-subj",
        "/",
    )
    extensions = tmp_path / "extensions"
    extensions.write_text(
        "keyUsage=critical,digitalSignature,keyEncipherment\nextendedKeyUsage=serverAuth,clientAuth\n"
        f"basicConstraints=critical,CA:FALSE\nauthorityKeyIdentifier=keyid\nsubjectAltName=critical,URI:{WEB}\n"
    )
    signing = ("x509", "-req", "-in", csr, "-CA", root, "-CAkey", root_key, "-CAcreateserial", "-days", "1")
    openssl(*signing, "-extfile", extensions, "-out", leaf)
    [document] = ca_cli("inspect", leaf, "-o", "json").json["documents"]
    assert document["certificates"][0]["spiffe_id"] == WEB
    assert {finding["code"] for finding in document["certificates"][0]["unusual"]} <= {
        "encipherment-without-rsa",
        "no-subject-key-id",
    }
    assert ca_cli("verify", leaf, "--trust-bundle", root, "--id", WEB).code == 0
    [request] = ca_cli("inspect", csr, "-o", "json").json["documents"]
    assert (request["kind"], request["unusual"]) == ("csr", [])


def test_a_certificate_that_go_made_is_read_and_accepted_in_its_day() -> None:
    vector = Path(__file__).parent.parent / "vectors/istiod_go.pem"
    [document] = ca_cli("inspect", vector, "-o", "json").json["documents"]
    leaf, root = document["certificates"]
    assert (leaf["spiffe_id"], leaf["key"], leaf["valid_now"]) == (WEB, "P-256", False)
    assert (root["subject"], root["key"], root["self_signed"]) == ("O=cluster.local", "RSA-2048", True)
    assert [finding["code"] for finding in root["unusual"]] == ["ca-without-id"]
    trusting = ("--trust-bundle", vector, "--trust-domain", "cluster.local", "--at", "2026-01-01T12:00:00")
    assert ca_cli("verify", vector, *trusting).code == 0


def test_a_sha1_certificate_is_told_and_refused(tmp_path: Path) -> None:
    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    new = (
        "req",
        "-x509",
        "-sha1",
        "-newkey",
        "rsa:1024",
        "-noenc",
        "-keyout",
        key,
        "-out",
        certificate,
        "-subj",
        "/CN=x",
    )
    openssl(*new, "-addext", "basicConstraints=critical,CA:FALSE", "-addext", f"subjectAltName=URI:{WEB}")
    [leaf] = ca_cli("inspect", certificate, "-o", "json").json["documents"][0]["certificates"]
    assert {finding["code"] for finding in leaf["unusual"]} >= {"weak-key", "weak-signature", "no-key-usage"}
    done = ca_cli("verify", certificate, "--trust-bundle", certificate, "--trust-domain", "cluster.local")
    assert done.code == 3


def test_a_server_of_openssl_is_looked_at(state: Path, tmp_path: Path) -> None:
    assert issue(state, tmp_path / "web").code == 0
    folder = tmp_path / "web"
    command = ["openssl", "s_server", "-accept", "127.0.0.1:0", "-cert", folder / "cert-chain.pem"]
    with subprocess.Popen(
        [*map(str, command), "-key", str(folder / "key.pem")], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as server:
        try:
            assert server.stdout is not None
            address = next(line.split()[1] for line in server.stdout if line.startswith("ACCEPT "))
            done = ca_cli("verify", address, "--trust-bundle", folder / "root-cert.pem", "--id", WEB, "-o", "json")
        finally:
            server.kill()
    assert (done.code, done.json["accepted"]) == (0, True)
