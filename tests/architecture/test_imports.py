"""Who may import whom, and what an import costs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import istio_auth

HEAVY = {"grpc", "google", "aiohttp", "structlog", "apscheduler", "typer", "rich", "prometheus_client", "jwt"}


def loaded_by(statement: str) -> set[str]:
    """The top-level packages and our own modules that a fresh interpreter holds after a statement."""
    probe = f"{statement}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, check=True, timeout=60)
    names: list[str] = json.loads(done.stdout)
    return {name.partition(".")[0] for name in names} | {name for name in names if name.startswith("istio_auth.")}


def test_the_import_contracts_hold() -> None:
    done = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=Path(istio_auth.__file__).parent.parent,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout


def test_importing_the_library_loads_nothing_of_it() -> None:
    loaded = loaded_by("import istio_auth")
    assert not loaded & (HEAVY | {"cryptography", "asyncio", "ssl"})
    assert not any(name.startswith("istio_auth.") for name in loaded)


def test_the_public_names_cost_cryptography_and_no_extra() -> None:
    loaded = loaded_by("from istio_auth import *")
    assert "cryptography" in loaded
    assert not loaded & HEAVY


@pytest.mark.parametrize("name", sorted(istio_auth._HOME_OF))
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(istio_auth, name) is not None
    assert name in dir(istio_auth)


def test_public_names_stand_in_one_list() -> None:
    assert sorted(istio_auth.__all__) == sorted(name for names in istio_auth._HOMES.values() for name in names)
    assert len(set(istio_auth.__all__)) == len(istio_auth.__all__)
    with_extra = [name for homes in istio_auth._HOMES_WITH_EXTRA.values() for names in homes.values() for name in names]
    assert not set(with_extra) & set(istio_auth.__all__)
    assert sorted(istio_auth._HOME_OF) == sorted([*istio_auth.__all__, *with_extra])


@pytest.mark.parametrize(
    ("name", "missing", "extra"),
    [("serve_grpc", "grpc", "grpc"), ("TokenVerifier", "jwt", "jwt"), ("WorkloadAPISource", "grpc", "workload-api")],
)
def test_a_name_whose_extra_is_not_installed_says_which_that_is(name: str, missing: str, extra: str) -> None:
    # To the import system, None in the place of a module says that there is none.
    code = f"import sys; sys.modules[{missing!r}] = None; import istio_auth; istio_auth.{name}"
    command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=Path(istio_auth.__file__).parent.parent
    )
    assert done.returncode
    assert f"istio_auth.{name} needs {missing}: install 'istio-auth[{extra}]'" in done.stderr


def test_a_name_that_is_not_public_is_told_as_such() -> None:
    with pytest.raises(AttributeError):
        istio_auth.nothing_of_this_name  # noqa: B018  # the look-up is the test
