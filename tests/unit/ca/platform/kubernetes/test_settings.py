"""What the settings of Kubernetes can not be is told before anything is done, by `check-config` and at the start."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ca.composition import check_files
from ca.config import PREFIX, Config
from istio_auth.daemon.settings import Sources, load
from istio_auth.errors import ConfigurationError


def config(folder: Path, **variables: str) -> Config:
    own = {"PLATFORM": "kubernetes", "STATE_FOLDER": str(folder / "state"), "REGISTRATIONS": str(folder / "none.toml")}
    given = {PREFIX + name: word for name, word in (own | variables).items()}
    return load(Config, Sources(folder / "none.toml", prefix=PREFIX, environment=given)).config


@pytest.mark.parametrize(
    ("name", "word", "good"),
    [
        ("LEASE", "1500ms", "2s"),
        ("SIGNER", "workload", "example.org/workload"),
        ("SIGNER", "kubernetes.io/kubelet-serving", "example.org/kubelet-serving"),
        ("TOKENS__NODE_ACCOUNTS", "ztunnel", "istio-system/ztunnel"),
        ("CONTROLLER__NAMESPACE_SELECTOR", "team in (a", "team in (a)"),
        ("CONTROLLER__GRACE_RATIO", "0.9", "0.8"),
        ("CONTROLLER__MIN_GRACE", "-1m", "1m"),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(tmp_path: Path, name: str, word: str, good: str) -> None:
    with pytest.raises(ConfigurationError):
        check_files(config(tmp_path, **{f"KUBERNETES__{name}": word}))
    check_files(config(tmp_path, **{f"KUBERNETES__{name}": good}))


def test_a_kubeconfig_must_be_there_and_name_a_cluster(tmp_path: Path) -> None:
    path = tmp_path / "kubeconfig"
    settings = config(tmp_path, KUBERNETES__KUBECONFIG=str(path))
    with pytest.raises(ConfigurationError, match=str(path)):
        check_files(settings)
    path.write_text("garbage")
    with pytest.raises(ConfigurationError, match=str(path)):
        check_files(settings)
    cluster = {"name": "test", "cluster": {"server": "https://127.0.0.1:1"}}
    context = {"name": "test", "context": {"cluster": "test", "user": "test"}}
    user = {"name": "test", "user": {"token": "none"}}
    document = {"current-context": "test", "contexts": [context], "clusters": [cluster], "users": [user]}
    path.write_text(json.dumps(document))
    check_files(settings)


def test_the_authority_of_another_platform_is_not_looked_at(tmp_path: Path) -> None:
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / "authority.json").write_text("garbage")
    check_files(config(tmp_path))


def test_the_folder_of_a_plugged_in_ca_may_be_empty_and_not_be_missing(tmp_path: Path) -> None:
    folder = tmp_path / "cacerts"
    settings = config(tmp_path, AUTHORITY__FOLDER=str(folder))
    with pytest.raises(ConfigurationError, match=str(folder)):
        check_files(settings)
    folder.mkdir()
    check_files(settings)
    (folder / "ca-cert.pem").write_text("garbage")
    with pytest.raises(ConfigurationError, match="incomplete"):
        check_files(settings)
