"""The settings of `istio-ca`."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from ca.composition import check_files
from ca.config import PREFIX, Config
from ca.platform.platform import ca_settings
from istio_auth.daemon.settings import Sources, leaves, load
from istio_auth.errors import ConfigurationError
from istio_auth.spiffe_id import TrustDomain


def config(tmp_path: Path, **variables: str) -> Config:
    given = {PREFIX + name: word for name, word in variables.items()}
    return load(Config, Sources(tmp_path / "none.toml", prefix=PREFIX, environment=given)).config


def test_the_usual_settings_have_short_flags_and_no_two_share_one() -> None:
    flags = [leaf.flag for leaf in leaves(Config)]
    assert len(set(flags)) == len(flags)
    assert set(flags) >= {
        "--trust-domain",
        "--listen",
        "--metrics-listen",
        "--state-folder",
        "--registrations",
        "--ca-folder",
        "--default-ttl",
        "--max-ttl",
        "--log-level",
        "--log-format",
    }
    assert all(leaf.setting.about for leaf in leaves(Config))


def test_every_setting_of_the_ca_comes_from_the_configuration(tmp_path: Path) -> None:
    settings = ca_settings(
        config(
            tmp_path,
            TRUST_DOMAIN="example.org",
            STATE_FOLDER="/s",
            REGISTRATIONS="/r.toml",
            SERVING_NAMES="ca.example.org,192.0.2.1",
            SIGNING__DEFAULT_TTL="1h",
            SIGNING__MAX_TTL="2h",
            SIGNING__BACKDATE="1s",
            SIGNING__CLAMP_EXCESS_TTL="true",
            AGENTS__RECOVERY_WINDOW="3d",
            AGENTS__RENEWAL_NEEDS_REGISTRATION="true",
            ISSUANCE_LOG_REQUIRED="false",
        )
    )
    assert settings.trust_domain == TrustDomain("example.org")
    assert (settings.state_folder, settings.registrations) == (Path("/s"), Path("/r.toml"))
    assert settings.serving_names == ("ca.example.org", "192.0.2.1")
    assert (settings.profile.default_ttl, settings.profile.max_ttl) == (timedelta(hours=1), timedelta(hours=2))
    assert (settings.profile.backdate, settings.profile.clamp_excess_ttl) == (timedelta(seconds=1), True)
    assert settings.recovery_window == timedelta(days=3)
    assert settings.renewal_needs_registration
    assert not settings.record_required


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("SIGNING__DEFAULT_TTL", "91d"),
        ("AUTHORITY__ROOT_LIFETIME", "23h"),
        ("SERVING_NAMES", "localhost,Not A Name"),
        ("LIMITS__REQUESTS", "0"),
        ("LIMITS__CONNECTIONS", "-1"),
    ],
)
def test_what_can_not_work_is_refused_before_anything_runs(tmp_path: Path, name: str, word: str) -> None:
    with pytest.raises(ConfigurationError):
        config(tmp_path, **{name: word})


def test_a_check_looks_into_the_files(tmp_path: Path) -> None:
    registrations, plugged = tmp_path / "registrations.toml", tmp_path / "plugged"
    where = {"STATE_FOLDER": str(tmp_path / "state"), "REGISTRATIONS": str(registrations)}
    check_files(config(tmp_path, **where))
    assert not (tmp_path / "state").exists()
    registrations.write_text("[[registration]]\nspiffe_id = 3")
    with pytest.raises(ConfigurationError):
        check_files(config(tmp_path, **where))
    registrations.write_text("")
    check_files(config(tmp_path, **where))
    plugged.mkdir()
    with pytest.raises(ConfigurationError):
        check_files(config(tmp_path, **where, AUTHORITY__FOLDER=str(plugged)))
    (tmp_path / "state").mkdir(mode=0o700)
    (tmp_path / "state" / "authority.json").write_text("garbage")
    (tmp_path / "state" / "authority.json").chmod(0o600)
    with pytest.raises(ConfigurationError):
        check_files(config(tmp_path, **where))
