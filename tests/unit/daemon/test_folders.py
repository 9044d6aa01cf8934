"""Where a daemon keeps its things, for root and for everybody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from istio_auth.daemon.folders import Folders
from istio_auth.errors import ConfigurationError

HOME = Path("/home/u")


def test_root_uses_the_folders_of_the_system_whatever_its_environment() -> None:
    expected = Folders(Path("/etc/istio-auth"), Path("/var/lib/istio-auth"), Path("/run/istio-auth"))
    assert Folders.of_user(0, {"XDG_STATE_HOME": "/elsewhere"}, lambda: HOME) == expected


def test_a_user_has_folders_at_home_and_sockets_below_the_state_without_a_session() -> None:
    expected = Folders(
        HOME / ".config/istio-auth", HOME / ".local/state/istio-auth", HOME / ".local/state/istio-auth/run"
    )
    assert Folders.of_user(1000, {}, lambda: HOME) == expected


def test_a_user_can_move_each_folder() -> None:
    environment = {"XDG_CONFIG_HOME": "/c", "XDG_STATE_HOME": "/s", "XDG_RUNTIME_DIR": "/r"}
    expected = Folders(Path("/c/istio-auth"), Path("/s/istio-auth"), Path("/r/istio-auth"))
    assert Folders.of_user(1000, environment, lambda: HOME) == expected


def test_a_variable_without_an_absolute_path_counts_as_unset() -> None:
    environment = {"XDG_CONFIG_HOME": "c", "XDG_STATE_HOME": "", "XDG_RUNTIME_DIR": "./r"}
    assert Folders.of_user(1000, environment, lambda: HOME) == Folders.of_user(1000, {}, lambda: HOME)


def homeless() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_a_user_without_a_home_needs_none_if_the_variables_say_it_all() -> None:
    environment = {"XDG_CONFIG_HOME": "/c", "XDG_STATE_HOME": "/s"}
    expected = Folders(Path("/c/istio-auth"), Path("/s/istio-auth"), Path("/s/istio-auth/run"))
    assert Folders.of_user(1000, environment, homeless) == expected


@pytest.mark.parametrize("missing", ["XDG_CONFIG_HOME", "XDG_STATE_HOME"])
def test_a_user_without_a_home_is_told_which_variable_to_set(missing: str) -> None:
    environment = {"XDG_CONFIG_HOME": "/c", "XDG_STATE_HOME": "/s"}
    del environment[missing]
    with pytest.raises(ConfigurationError, match=missing):
        Folders.of_user(1000, environment, homeless)
