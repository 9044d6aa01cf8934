"""`ca-cli verify` says whether a chain would be accepted, and if not, why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from istio_auth.pem import write_certificates
from tests.command import ca_cli
from tests.vectors.x509_svid import ALL, BUNDLES, FEDERATED, LOCAL, NOW, Vector, sound_intermediate

WEB = "spiffe://cluster.local/ns/default/sa/web"
AT = f"{NOW:%Y-%m-%dT%H:%M:%S}"


@pytest.fixture
def bundles(tmp_path: Path) -> Path:
    file = tmp_path / "bundles.json"
    file.write_bytes(BUNDLES.to_json())
    return file


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    file = tmp_path / "chain.pem"
    file.write_bytes(write_certificates(sound_intermediate().chain()))
    return file


@pytest.mark.parametrize("vector", [one for one in ALL.values() if one.wrong], ids=lambda one: one.name)
def test_each_fault_is_told_by_its_name(tmp_path: Path, bundles: Path, vector: Vector) -> None:
    file = tmp_path / "chain.pem"
    file.write_bytes(write_certificates(vector.wrong))
    wrong = ca_cli("verify", file, "--trust-bundle", bundles, "--at", AT, "-o", "json")
    assert (wrong.code, wrong.json["accepted"], wrong.json["fault"]) == (3, False, vector.fault.name)
    assert wrong.json["reason"]
    assert wrong.json["remedy"]
    assert len(wrong.json["presented"]) == len(vector.wrong)
    file.write_bytes(write_certificates(vector.mended))
    mended = ca_cli("verify", file, "--trust-bundle", bundles, "--at", AT, "-o", "json")
    assert (mended.code, mended.json["accepted"], mended.json["fault"]) == (0, True, None)


def test_people_read_the_verdict_at_the_end(chain: Path, bundles: Path) -> None:
    good = ca_cli("verify", chain, "--trust-bundle", bundles)
    assert (good.code, good.err) == (0, "")
    assert WEB in good.out.splitlines()[-1]
    bad = ca_cli("verify", chain, "--trust-bundle", bundles, "--id", "spiffe://cluster.local/other")
    assert (bad.code, bad.err) == (3, "")
    assert "spiffe://cluster.local/other" in bad.out


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (["--id", WEB], 0),
        (["--id", "SPIFFE://CLUSTER.LOCAL/ns/default/sa/web"], 0),
        (["--id", "spiffe://cluster.local/x", "--id", WEB], 0),
        (["--trust-domain", "cluster.local"], 0),
        (["--id", WEB + "2"], 3),
        (["--id", "spiffe://partner.test/ns/default/sa/web"], 3),
        (["--trust-domain", "partner.test"], 3),
    ],
    ids=str,
)
def test_only_the_expected_identity_is_accepted(chain: Path, bundles: Path, options: list[str], code: int) -> None:
    done = ca_cli("verify", chain, "--trust-bundle", bundles, *options, "-o", "json")
    assert done.code == code
    assert done.json["spiffe_id"] == WEB
    assert done.json["fault"] == (None if code == 0 else "NOT_WELCOME")


def test_every_form_of_bundle_will_do(tmp_path: Path, chain: Path) -> None:
    forms = {"roots.pem": LOCAL.bundle().to_pem(), "bundle.json": LOCAL.bundle().to_json(), "map": BUNDLES.to_json()}
    for name, content in forms.items():
        (tmp_path / name).write_bytes(content)
        assert ca_cli("verify", chain, "--trust-bundle", tmp_path / name).code == 0


def test_a_bundle_is_nobodys_but_its_trust_domains(tmp_path: Path, chain: Path) -> None:
    (tmp_path / "theirs.pem").write_bytes(FEDERATED.bundle().to_pem())
    done = ca_cli("verify", chain, "--trust-bundle", tmp_path / "theirs.pem", "-o", "json")
    assert (done.code, done.json["fault"]) == (3, "FOREIGN_TRUST_DOMAIN")
    done = ca_cli("verify", chain, "--trust-bundle", tmp_path / "theirs.pem", "--id", WEB, "-o", "json")
    assert (done.code, done.json["fault"]) == (3, "UNTRUSTED")


def test_a_bundle_of_which_nobody_says_whose_it_is_needs_a_name(tmp_path: Path, chain: Path) -> None:
    both = tmp_path / "both.pem"
    both.write_bytes(LOCAL.bundle().to_pem() + FEDERATED.bundle().to_pem())
    done = ca_cli("verify", chain, "--trust-bundle", both)
    assert (done.code, done.out) == (2, "")
    assert "--trust-domain" in done.err
    assert ca_cli("verify", chain, "--trust-bundle", both, "--trust-domain", "cluster.local").code == 0


def test_a_folder_is_held_against_its_own_root(tmp_path: Path, chain: Path) -> None:
    folder = tmp_path / "svid"
    folder.mkdir()
    (folder / "cert-chain.pem").write_bytes(chain.read_bytes())
    (folder / "root-cert.pem").write_bytes(LOCAL.bundle().to_pem())
    assert ca_cli("verify", folder).code == 0
    (folder / "root-cert.pem").write_bytes(FEDERATED.bundle().to_pem())
    assert ca_cli("verify", folder).code == 3


def test_a_chain_is_read_from_standard_input(chain: Path, bundles: Path) -> None:
    assert ca_cli("verify", "-", "--trust-bundle", bundles, stdin=chain.read_bytes()).code == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["chain.pem"],
        ["nothing.pem", "--trust-bundle", "bundles.json"],
        ["chain.pem", "--trust-bundle", "nothing.pem"],
        ["chain.pem", "--trust-bundle", "bundles.json", "--id", "web"],
        ["chain.pem", "--trust-bundle", "bundles.json", "--trust-domain", "CLUSTER"],
        ["bundles.json", "--trust-bundle", "bundles.json"],
        ["chain.pem", "--trust-bundle", "bundles.json", "--at", "soon"],
        ["localhost:1", "--trust-bundle", "bundles.json", "--timeout", "soon"],
        ["localhost:99999", "--trust-bundle", "bundles.json"],
    ],
    ids=" ".join,
)
def test_wrong_usage_has_its_own_exit_code(
    chain: Path, bundles: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(chain.parent)
    done = ca_cli("verify", *arguments)
    assert (done.code, done.out) == (2, "")
    assert done.err
