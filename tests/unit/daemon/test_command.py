"""The command line that a schema becomes."""

from __future__ import annotations

import json
import signal
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import pytest

from istio_auth.daemon.command import LogSettings, Program, run_command_line
from istio_auth.daemon.folders import Folders
from istio_auth.daemon.lifecycle import Daemon
from istio_auth.daemon.settings import Setting
from istio_auth.errors import ConfigurationError, NotReady

LOG = LogSettings()


@dataclass(frozen=True, slots=True)
class Signing:
    ttl: Annotated[timedelta, Setting("how long")] = timedelta(hours=24)


@dataclass(frozen=True, slots=True)
class Row:
    name: str


@dataclass(frozen=True, slots=True)
class Config:
    strict: bool = True
    limit: int | None = None
    state: Path = Path("/default")
    signing: Signing = Signing()
    row: tuple[Row, ...] = ()
    log: LogSettings = LOG


async def serve(_config: Config, _daemon: Daemon) -> None:
    raise AssertionError("nothing here runs it")


def program(fault: Exception | None = None) -> Program[Config]:
    def check(_config: Config) -> None:
        if fault:
            raise fault

    return Program("prog", "A program.", Config, "PROG__", "prog.toml", serve, check)


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folders = Folders(tmp_path / "etc", tmp_path / "state", tmp_path / "run")
    monkeypatch.setattr(Folders, "here", lambda: folders)
    monkeypatch.setenv("COLUMNS", "500")
    folders.config.mkdir()


def call(*arguments: str, fault: Exception | None = None) -> int:
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    try:
        with pytest.raises(SystemExit) as ended:
            run_command_line(program(fault), arguments)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)  # a daemon holds signals back from its first moment on
    assert isinstance(ended.value.code, int)
    return ended.value.code


def effective(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, tuple[str, str]]:
    """Each setting's value and origin."""
    capsys.readouterr()
    assert call(*arguments) == 0
    return {row["name"]: (row["value"], row["origin"]) for row in json.loads(capsys.readouterr().out)["settings"]}


def test_help_shows_every_setting_with_its_default_and_the_folders(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert call("--help") == 0
    shown = capsys.readouterr().out
    for word in ("--signing-ttl", "[default: 1d]", "--strict / --no-strict", "--log-level", "PROG__"):
        assert word in shown
    for folder in ("etc", "state", "run"):
        assert str(tmp_path / folder) in shown
    assert str(tmp_path / "etc" / "prog.toml") in "".join(shown.split())  # a long default is wrapped
    assert "--row" not in shown


def test_flags_count_before_and_after_the_command_and_the_later_ones_win(capsys: pytest.CaptureFixture[str]) -> None:
    json_ = ("check-config", "--output", "json")
    assert effective(capsys, *json_, "--no-strict")["strict"] == ("false", "flag --strict")
    assert effective(capsys, "--no-strict", *json_)["strict"] == ("false", "flag --strict")
    assert effective(capsys, "--signing-ttl", "1h", *json_, "--signing-ttl", "2h")["signing.ttl"][0] == "2h"
    assert effective(capsys, *json_)["strict"] == ("true", "default")


def test_the_file_is_the_default_one_or_the_one_named_by_flag_or_variable(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    json_ = ("check-config", "--output", "json")
    for name, limit in (("etc/prog.toml", 1), ("variable.toml", 2), ("flag.toml", 3)):
        (tmp_path / name).write_text(f"limit = {limit}")
    assert effective(capsys, *json_)["limit"] == ("1", f"file {tmp_path / 'etc/prog.toml'}")
    monkeypatch.setenv("PROG__CONFIG", str(tmp_path / "variable.toml"))
    assert effective(capsys, *json_)["limit"][0] == "2"
    assert effective(capsys, "--config", str(tmp_path / "flag.toml"), *json_)["limit"][0] == "3"
    assert call("--config", str(tmp_path / "none.toml"), "check-config") == 2


def test_the_table_shows_the_same(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROG__LIMIT", "7")
    assert call("check-config") == 0
    line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("limit"))
    assert line.split() == ["limit", "7", "environment", "PROG__LIMIT"]


def test_each_problem_is_one_line_and_the_exit_code_says_configuration(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PROG__LIMIT", "many")
    monkeypatch.setenv("PROG__LIMITS", "7")
    for command in ((), ("run",), ("check-config",)):
        capsys.readouterr()
        assert call(*command) == 2
        lines = capsys.readouterr().err.splitlines()
        assert [line.split(":")[:2] for line in lines] == [["prog", " PROG__LIMIT"], ["prog", " PROG__LIMITS"]]


@pytest.mark.parametrize(("fault", "expected"), [(ConfigurationError("bad file"), 2), (NotReady("disk"), 1)])
def test_what_the_deeper_check_finds_is_told_beside_the_settings(
    capsys: pytest.CaptureFixture[str], fault: Exception, expected: int
) -> None:
    assert call("check-config", fault=fault) == expected
    shown = capsys.readouterr()
    assert str(fault) in shown.err
    assert "signing.ttl" in shown.out


@pytest.mark.parametrize("arguments", [("--nonsense",), ("nonsense",), ("--signing-ttl",), ("check-config", "x")])
def test_wrong_usage_has_its_exit_code(arguments: tuple[str, ...]) -> None:
    assert call(*arguments) == 2


def test_the_version_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert call("--version") == 0
    assert capsys.readouterr().out[0].isdigit()
