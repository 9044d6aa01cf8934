"""The registrations file on disk: a bad edit takes nothing away."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import pytest

from ca.registrations.file import RegistrationFile
from ca.registrations.rules import RegistrationRules
from istio_auth.errors import ConfigurationError
from istio_auth.spiffe_id import TrustDomain

RULES = RegistrationRules(TrustDomain("cluster.local"), timedelta(days=90), lambda _grant: None)


def entry(name: str) -> str:
    return (
        f'[[registration]]\nspiffe_id = "spiffe://cluster.local/ns/default/sa/{name}"\n'
        'agents = ["node-1"]\nselectors = ["unix:uid:1"]\n'
    )


def names(file: RegistrationFile) -> list[str]:
    return [registration.spiffe_id.path[-3:] for registration in file.table.of_agent("node-1").values()]


def write(path: Path, text: str | None) -> None:
    """Replace the content as an editor does; None removes the file."""
    if text is None:
        path.unlink()
    else:
        path.write_text(text)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "registrations.toml"
    path.write_text(entry("web"))
    return path


async def test_a_changed_file_is_taken_and_told(path: Path) -> None:
    file = RegistrationFile(path, RULES)
    heard: list[int] = []
    file.subscribe(lambda: heard.append(file.history.revision))
    assert names(file) == ["web"]
    assert not await file.reload_if_changed()
    write(path, entry("web") + entry("two"))
    assert await file.reload_if_changed()
    assert sorted(names(file)) == ["two", "web"]
    assert (heard, file.reloads) == ([2], 1)


async def test_a_file_that_is_rewritten_with_the_same_content_changes_nothing(path: Path) -> None:
    file = RegistrationFile(path, RULES)
    write(path, "# a comment\n" + entry("web"))
    assert not await file.reload_if_changed()
    assert file.history.revision == 1


async def test_a_bad_edit_is_reported_and_the_last_good_file_stays(path: Path) -> None:
    file = RegistrationFile(path, RULES)
    write(path, entry("web") + "typo = 1\n")
    assert not await file.reload_if_changed()
    assert names(file) == ["web"]
    assert file.fault is not None
    assert "'typo'" in file.fault
    assert not await file.reload_if_changed()
    assert file.failures == 1  # told once, not at each look
    write(path, entry("new"))
    assert await file.reload_if_changed()
    assert names(file) == ["new"]
    assert file.fault is None


async def test_mending_the_edit_back_to_what_it_was_ends_the_report(path: Path) -> None:
    file = RegistrationFile(path, RULES)
    write(path, "[[")
    await file.reload_if_changed()
    write(path, entry("web"))
    assert not await file.reload_if_changed()
    assert file.fault is None


async def test_a_file_that_went_away_takes_nothing_away(path: Path) -> None:
    file = RegistrationFile(path, RULES)
    write(path, None)
    assert not await file.reload_if_changed()
    assert names(file) == ["web"]
    assert file.fault is not None


async def test_a_file_may_come_later(tmp_path: Path) -> None:
    path = tmp_path / "registrations.toml"
    file = RegistrationFile(path, RULES)
    assert names(file) == []
    assert not await file.reload_if_changed()
    assert file.fault is None
    write(path, entry("web"))
    assert await file.reload_if_changed()
    assert names(file) == ["web"]


@pytest.mark.parametrize("content", ["[[", entry("web") + "typo = 1\n", "x" * (17 << 20)], ids=["toml", "key", "size"])
def test_at_the_start_a_bad_file_is_an_error(path: Path, content: str) -> None:
    path.write_text(content)
    with pytest.raises(ConfigurationError):
        RegistrationFile(path, RULES)
    path.write_text(entry("web"))
    RegistrationFile(path, RULES)


def test_a_file_that_everybody_may_write_to_is_refused(path: Path) -> None:
    path.chmod(0o666)
    with pytest.raises(ConfigurationError):
        RegistrationFile(path, RULES)
    path.chmod(0o664)
    RegistrationFile(path, RULES)


def test_a_folder_in_the_place_of_the_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        RegistrationFile(tmp_path, RULES)
