"""`ca-cli issue` on a store: the first command on a fresh machine, and every one after it."""

from __future__ import annotations

import json
import os
import re
import stat
import threading
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ca.authority.store import FileAuthorityStore
from istio_auth.bundle import TrustBundle
from istio_auth.pem import write_certificates, write_private_key
from istio_auth.spiffe_id import TrustDomain
from istio_auth.svid import X509SVID
from istio_auth.system_clock import SystemClock
from istio_auth.verify import verify_chain
from tests.command import Done, ca_cli
from tests.fakes.authority import FakeAuthority

WEB = "spiffe://cluster.local/ns/default/sa/web"
FILES = {"key.pem", "cert-chain.pem", "root-cert.pem"}


def issue(state: Path, out: object, *more: object, spiffe_id: str = WEB) -> Done:
    return ca_cli("issue", "--id", spiffe_id, "--out", out, "--state-folder", state, *more)


def svid_in(folder: Path) -> X509SVID:
    svid = X509SVID.parse((folder / "cert-chain.pem").read_bytes(), (folder / "key.pem").read_bytes())
    bundle = TrustBundle.from_pem(TrustDomain("cluster.local"), (folder / "root-cert.pem").read_bytes())
    assert verify_chain(svid.chain, bundle, SystemClock().now()) == svid.id
    return svid


def test_the_very_first_command_makes_a_ca_and_says_so(state: Path, tmp_path: Path) -> None:
    done = issue(state, tmp_path / "web")
    assert done.code == 0
    assert str(state) in done.err
    assert str(svid_in(tmp_path / "web").id) == WEB
    assert WEB in done.out
    again = issue(state, tmp_path / "again")
    assert (again.code, again.err) == (0, "")
    assert (tmp_path / "again/root-cert.pem").read_bytes() == (tmp_path / "web/root-cert.pem").read_bytes()


def test_the_default_folder_is_the_cas_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 4711)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg"))
    assert str(tmp_path / "xdg") in ca_cli("token", "list").err


def test_files_are_for_our_eyes_only_whatever_the_umask(state: Path, tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        assert issue(state, tmp_path / "deep/web").code == 0
    finally:
        os.umask(old)
    folder = tmp_path / "deep/web"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()} == dict.fromkeys(FILES, 0o600)


def test_files_that_are_there_stay_unless_force_is_used(state: Path, tmp_path: Path) -> None:
    folder = tmp_path / "web"
    folder.mkdir()
    (folder / "key.pem").write_text("precious")
    refused = issue(state, folder)
    assert (refused.code, refused.out) == (2, "")
    assert (folder / "key.pem").read_text() == "precious"
    assert not state.exists()  # nothing was issued for nothing
    assert issue(state, folder, "--force").code == 0
    assert str(svid_in(folder).id) == WEB


def test_standard_output_must_be_meant(state: Path) -> None:
    without = ca_cli("issue", "--id", WEB, "--state-folder", state)
    assert (without.code, without.out) == (2, "")
    done = issue(state, "-")
    assert [line for line in done.out.splitlines() if "BEGIN" in line] == [
        "-----BEGIN PRIVATE KEY-----",
        "-----BEGIN CERTIFICATE-----",
        "-----BEGIN CERTIFICATE-----",
    ]


def test_scripts_get_json(state: Path, tmp_path: Path) -> None:
    done = issue(state, tmp_path / "web", "-o", "json")
    assert done.json["certificate"]["spiffe_id"] == WEB
    assert done.json["certificate"]["unusual"] == []
    assert done.json["files"] == {name: str(tmp_path / "web" / name) for name in FILES}
    inline = issue(state, "-", "-o", "json")
    assert inline.json.keys() == {"certificate", *FILES}
    X509SVID.parse(inline.json["cert-chain.pem"].encode(), inline.json["key.pem"].encode())


@pytest.mark.parametrize(
    ("kind", "size", "key"),
    [
        ("p256", 256, ec.EllipticCurvePrivateKey),
        ("p384", 384, ec.EllipticCurvePrivateKey),
        ("rsa-2048", 2048, rsa.RSAPrivateKey),
    ],
)
def test_the_kind_of_key_can_be_chosen(state: Path, tmp_path: Path, kind: str, size: int, key: type[object]) -> None:
    assert issue(state, tmp_path / "web", "--key-type", kind).code == 0
    made = svid_in(tmp_path / "web").private_key
    assert isinstance(made, key)
    assert made.key_size == size


def test_lifetime_and_names_are_those_asked_for(state: Path, tmp_path: Path) -> None:
    more = ("--ttl", "90m", "--dns", "web.default.svc", "--dns", "web", "-o", "json")
    done = issue(state, tmp_path / "web", *more)
    certificate = done.json["certificate"]
    assert certificate["dns_names"] == ["web.default.svc", "web"]
    assert 5000 < certificate["remaining_seconds"] <= 5400
    assert svid_in(tmp_path / "web").not_after - SystemClock().now() <= timedelta(minutes=90)


def test_a_lifetime_beyond_the_cas_is_refused(state: Path, tmp_path: Path) -> None:
    done = issue(state, tmp_path / "web", "--ttl", "91d")
    assert (done.code, done.out) == (2, "")
    assert not (tmp_path / "web").exists()
    assert issue(state, tmp_path / "web", "--ttl", "90d").code == 0


@pytest.mark.parametrize("path", ["/ca", ""])
def test_the_cas_own_names_are_nobodys(state: Path, tmp_path: Path, path: str) -> None:
    done = issue(state, tmp_path / "x", spiffe_id=f"spiffe://cluster.local{path}")
    assert (done.code, done.out) == (3, "")
    assert not (tmp_path / "x").exists()
    assert issue(state, tmp_path / "x", spiffe_id="spiffe://cluster.local/cab").code == 0


@pytest.mark.parametrize("name", ["istiod.istio-system.svc", "localhost"])
def test_the_names_of_the_cas_server_are_nobodys(state: Path, tmp_path: Path, name: str) -> None:
    done = issue(state, tmp_path / "x", "--dns", name)
    assert (done.code, done.out) == (3, "")
    assert issue(state, tmp_path / "x", "--dns", f"not-{name}").code == 0


def test_the_configuration_is_the_cas_own(state: Path, tmp_path: Path) -> None:
    file = tmp_path / "ca.toml"
    file.write_text(
        f'state_folder = "{state}"\nserving_names = ["ca.test"]\nsigning = {{default_ttl = "1h", max_ttl = "2h"}}\n'
    )
    command = ("issue", "--id", WEB, "--config", file, "--force", "-o", "json", "--out", tmp_path / "web")
    assert 3000 < ca_cli(*command).json["certificate"]["remaining_seconds"] <= 3600
    assert (state / "authority.json").exists()
    assert ca_cli(*command, "--ttl", "3h").code == 2
    assert ca_cli(*command, "--dns", "ca.test").code == 3
    assert ca_cli(*command, "--dns", "localhost").code == 0


def timeless(text: str) -> str:
    """Without how long something still lives, which is another a second later."""
    return re.sub(r"\d+ (minutes?|seconds?)", "", text)


def test_a_state_folder_that_is_configured_is_every_commands(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISTIO_AUTH_CA__STATE_FOLDER", str(state))
    assert ca_cli("issue", "--id", WEB, "--out", tmp_path / "web").code == 0
    assert ca_cli("token", "create", "node-1").code == 0
    for command in (["token", "list"], ["agent", "list"], ["trust-bundle"], ["log"]):
        assert timeless(ca_cli(*command).out) == timeless(ca_cli(*command, "--state-folder", state).out)
    assert "node-1" in ca_cli("token", "list", "--state-folder", state).out


def test_a_new_ca_is_that_of_the_configured_trust_domain(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ISTIO_AUTH_CA__TRUST_DOMAIN", "prod.test")
    done = issue(state, tmp_path / "web")
    assert (done.code, done.out) == (2, "")
    assert not (state / "authority.json").exists()
    assert issue(state, tmp_path / "web", spiffe_id="spiffe://prod.test/web").code == 0


def test_a_plugged_in_ca_issues_too(state: Path, tmp_path: Path) -> None:
    root = FakeAuthority(now=SystemClock().now())
    signing = FakeAuthority(parent=root, now=SystemClock().now())
    folder = plugged_in(tmp_path / "plugged", signing, root)
    assert issue(state, tmp_path / "web", "--ca-folder", folder).code == 0
    assert svid_in(tmp_path / "web").chain[1] == signing.certificate
    assert (tmp_path / "web/root-cert.pem").read_bytes() == write_certificates([root.certificate])
    without = issue(state, tmp_path / "again")
    assert (without.code, without.out) == (2, "")
    assert "--ca-folder" in without.err


def plugged_in(folder: Path, signing: FakeAuthority, root: FakeAuthority) -> Path:
    folder.mkdir()
    (folder / "tls.crt").write_bytes(write_certificates([signing.certificate]))
    (folder / "ca.crt").write_bytes(write_certificates([root.certificate]))
    (folder / "tls.key").touch(mode=0o600)
    (folder / "tls.key").write_bytes(write_private_key(signing.key))
    return folder


@pytest.mark.parametrize(
    "more",
    [
        ["--id", "web"],
        ["--id", "spiffe://cluster.local/a/../b"],
        ["--id", WEB, "--ttl", "soon"],
        ["--id", WEB, "--ttl", "0s"],
        ["--id", WEB, "--dns", "not a name"],
        ["--id", WEB, "--key-type", "rsa-1024"],
        ["--id", WEB, "--token-file", "token"],
        ["--id", WEB, "--trust-bundle", "bundle"],
        ["--id", WEB, "--output", "xml"],
        [],
    ],
    ids=" ".join,
)
def test_wrong_usage_makes_nothing(state: Path, tmp_path: Path, more: list[str]) -> None:
    done = ca_cli("issue", "--out", tmp_path / "web", "--state-folder", state, *more)
    assert (done.code, done.out) == (2, "")
    assert done.err
    assert not state.exists()


def test_another_trust_domain_than_the_stores_is_refused(state: Path, tmp_path: Path) -> None:
    assert issue(state, tmp_path / "web").code == 0
    before = (state / "authority.json").read_bytes()
    done = issue(state, tmp_path / "other", spiffe_id="spiffe://other.test/web")
    assert (done.code, done.out) == (2, "")
    assert "other.test" in done.err
    assert (state / "authority.json").read_bytes() == before


def test_a_store_that_can_not_be_read_never_gets_a_new_root(state: Path, tmp_path: Path) -> None:
    assert issue(state, tmp_path / "web").code == 0
    (state / "authority.json").write_text("{}")
    done = issue(state, tmp_path / "again")
    assert (done.code, done.out) == (2, "")
    assert (state / "authority.json").read_text() == "{}"


def test_a_running_ca_is_pointed_at(state: Path, tmp_path: Path) -> None:
    with FileAuthorityStore(state).hold():
        done = issue(state, tmp_path / "web")
    assert (done.code, done.out) == (1, "")
    assert "--server" in done.err
    assert issue(state, tmp_path / "web").code == 0


def test_two_first_commands_at_once_end_with_one_root(state: Path, tmp_path: Path) -> None:
    # As programs: in one process the lock of the first would not keep out the second's threads.
    import subprocess
    import sys

    def first(number: int) -> None:
        out = tmp_path / str(number)
        command = [sys.executable, "-c", "from ca.cli import main; main()", "issue", "--id", WEB]
        done = subprocess.run(
            [*command, "--out", str(out), "--state-folder", str(state)], capture_output=True, check=False, timeout=60
        )
        codes.append(done.returncode)

    codes: list[int] = []
    threads = [threading.Thread(target=first, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert 0 in codes
    assert set(codes) <= {0, 1}
    roots = {path.read_bytes() for path in tmp_path.glob("?/root-cert.pem")}
    assert len(roots) == 1
    assert ca_cli("trust-bundle", "--format", "pem", "--state-folder", state).out.encode() in roots


def test_every_certificate_is_on_record_with_the_operator_who_asked(state: Path, tmp_path: Path) -> None:
    assert issue(state, tmp_path / "web", "--ttl", "1h").code == 0
    [line] = (state / "issuance.log").read_text().splitlines()
    record = json.loads(line)
    assert record["serial"] == f"{svid_in(tmp_path / 'web').leaf.serial_number:x}"
    assert record["attested"]["method"] == "operator"
    assert record["attested"]["details"]["uid"] == str(os.getuid())
    assert record["granted_ttl"] == 3600


def test_nothing_leaves_that_is_not_on_record(state: Path, tmp_path: Path) -> None:
    assert issue(state, tmp_path / "web").code == 0
    (state / "issuance.log").write_text("something else\n")
    done = issue(state, tmp_path / "again")
    assert done.code != 0
    assert done.out == ""
    assert not (tmp_path / "again").exists()


def test_no_second_root_is_made_in_a_folder_where_the_ca_keeps_its_own_on_kubernetes(
    state: Path, tmp_path: Path
) -> None:
    settings = tmp_path / "ca.toml"
    settings.write_text('platform = "kubernetes"')
    refused = issue(state, tmp_path / "web", "--config", settings)
    assert refused.code == 2
    assert "Kubernetes" in refused.err
    assert "--server" in refused.err
    assert not state.exists()
    settings.write_text('platform = "standalone"')
    assert issue(state, tmp_path / "web", "--config", settings).code == 0
