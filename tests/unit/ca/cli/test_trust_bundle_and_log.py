"""`ca-cli trust-bundle` prints what to pin; `ca-cli log` what was issued."""

from __future__ import annotations

import asyncio
import json
import os
import stat
from pathlib import Path

import pytest

from istio_auth.bundle import TrustBundle
from istio_auth.spiffe_id import TrustDomain
from tests.command import Done, ca_cli
from tests.fakes.waiting import until

WEB = "spiffe://cluster.local/ns/default/sa/web"
DB = "spiffe://cluster.local/ns/default/sa/db"


@pytest.fixture
def ca(state: Path, tmp_path: Path) -> Path:
    """A CA that issued three certificates."""
    for number, (spiffe_id, ttl) in enumerate([(WEB, "1h"), (DB, "3s"), (WEB, "2h")]):
        out = tmp_path / f"svid-{number}"
        assert ca_cli("issue", "--id", spiffe_id, "--ttl", ttl, "--out", out, "--state-folder", state).code == 0
    return state


def log(ca: Path, *more: object) -> Done:
    return ca_cli("log", "--state-folder", ca, "-o", "json", *more)


def test_the_bundle_is_what_certificates_verify_under(ca: Path, tmp_path: Path) -> None:
    for form in ("spiffe", "pem"):
        done = ca_cli("trust-bundle", "--format", form, "--state-folder", ca)
        assert done.code == 0
        (tmp_path / form).write_text(done.out)
        assert ca_cli("verify", tmp_path / "svid-0", "--trust-bundle", tmp_path / form).code == 0
    bundle = TrustBundle.from_json(TrustDomain("cluster.local"), (tmp_path / "spiffe").read_text())
    assert bundle.sequence == 1
    assert bundle.to_pem().decode() == (tmp_path / "pem").read_text()


def test_the_bundle_can_go_to_a_file_that_everybody_reads(ca: Path, tmp_path: Path) -> None:
    file = tmp_path / "bundle.json"
    done = ca_cli("trust-bundle", "--out", file, "--state-folder", ca)
    assert (done.code, done.out) == (0, "")
    assert stat.S_IMODE(file.stat().st_mode) == 0o644
    assert ca_cli("verify", tmp_path / "svid-0", "--trust-bundle", file).code == 0


def test_scripts_get_the_bundle_with_its_trust_domain(ca: Path) -> None:
    done = ca_cli("trust-bundle", "--state-folder", ca, "-o", "json")
    assert (done.json["trust_domain"], done.json["sequence"]) == ("cluster.local", 1)
    assert done.json["bundle"] == json.loads(ca_cli("trust-bundle", "--state-folder", ca).out)
    [fingerprint] = done.json["sha256"]
    assert fingerprint in ca_cli("trust-bundle", "--state-folder", ca).err
    pem = ca_cli("trust-bundle", "--state-folder", ca, "--format", "pem")
    assert ca_cli("trust-bundle", "--state-folder", ca, "--format", "pem", "-o", "json").json["bundle"] == pem.out


def test_no_bundle_without_a_ca(state: Path) -> None:
    state.mkdir(mode=0o700)
    done = ca_cli("trust-bundle", "--state-folder", state)
    assert (done.code, done.out) == (1, "")


def test_the_bundle_of_a_ca_on_kubernetes_is_not_looked_for_in_a_folder(
    ca: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISTIO_AUTH_CA__STATE_FOLDER", str(ca))
    assert ca_cli("trust-bundle").code == 0
    monkeypatch.setenv("ISTIO_AUTH_CA__PLATFORM", "kubernetes")
    refused = ca_cli("trust-bundle")
    assert (refused.code, refused.out) == (2, "")
    assert "configmap/istio-ca-root-cert" in refused.err


def test_a_state_that_others_can_read_is_not_used(ca: Path) -> None:
    (ca / "authority.json").chmod(0o644)
    done = ca_cli("trust-bundle", "--state-folder", ca)
    assert (done.code, done.out) == (2, "")
    assert "chmod" in done.err


def test_the_log_tells_what_was_issued_the_newest_last(ca: Path, tmp_path: Path) -> None:
    records = log(ca).json
    assert [record["sequence"] for record in records] == [1, 2, 3]
    assert [record["spiffe_id"] for record in records] == [WEB, DB, WEB]
    assert {record["method"] for record in records} == {"operator"}
    assert {record["proof"]["uid"] for record in records} == {str(os.getuid())}
    shown = ca_cli("inspect", tmp_path / "svid-2", "-o", "json").json["documents"][0]["certificates"][0]
    assert records[2]["serial"] == shown["serial"]
    assert records[2]["not_after"] == shown["not_after"]
    assert WEB in ca_cli("log", "--state-folder", ca).out


def test_the_log_can_be_asked(ca: Path) -> None:
    serial = log(ca).json[1]["serial"]

    def numbers(*more: object) -> list[int]:
        return [record["sequence"] for record in log(ca, *more).json]

    assert numbers("--id", WEB) == [1, 3]
    assert numbers("--id", WEB, "--last", 1) == [3]
    assert numbers("--serial", serial.upper()) == [2]
    assert numbers("--serial", "0" + serial) == [2]
    assert numbers("--serial", "0") == []
    assert ca_cli("log", "--state-folder", ca, "--serial", "not hex").code == 2
    assert numbers("--caller", "spiffe://cluster.local/ca") == [1, 2, 3]
    assert numbers("--caller", WEB) == []
    assert numbers("--since", "2020-01-01") == [1, 2, 3]
    assert numbers("--since", "2199-01-01") == []
    asyncio.run(until(lambda: numbers("--valid") == [1, 3]))  # the second one has ended
    assert ca_cli("log", "--state-folder", ca, "--id", "spiffe://cluster.local/nobody").code == 0


def test_a_line_that_is_being_written_is_not_on_record_yet(ca: Path) -> None:
    with (ca / "issuance.log").open("ab") as file:
        file.write(b'{"sequence": 4, "ti')
    assert [record["sequence"] for record in log(ca).json] == [1, 2, 3]


def test_a_file_that_is_no_log_is_told_with_its_line(ca: Path) -> None:
    with (ca / "issuance.log").open("ab") as file:
        file.write(b"junk\n")
    done = log(ca)
    assert (done.code, done.out) == (2, "")
    assert "issuance.log:4" in done.err


def test_numbers_that_go_on_from_an_older_file_are_no_record(ca: Path) -> None:
    content = (ca / "issuance.log").read_bytes()
    (ca / "issuance.log").write_bytes(b'{"continues":7}\n' + content)
    assert [record["sequence"] for record in log(ca).json] == [1, 2, 3]


def test_before_the_first_certificate_there_is_no_log(state: Path) -> None:
    state.mkdir(mode=0o700)
    done = log(state)
    assert (done.code, done.out) == (1, "")
