"""Settings from file, environment and flags: nothing mistyped passes, and everything says where it came from."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Annotated

import pytest

from istio_auth.daemon.settings import Loaded, Setting, Sources, leaves, load
from istio_auth.errors import ConfigurationError
from istio_auth.host_port import HostPort
from istio_auth.spiffe_id import TrustDomain

PREFIX = "APP__"
LOCAL = TrustDomain("cluster.local")
ANYWHERE = HostPort("", 15012)


@dataclass(frozen=True, slots=True)
class Signing:
    default_ttl: Annotated[timedelta, Setting("how long")] = timedelta(hours=24)
    max_ttl: timedelta = timedelta(days=90)

    def __post_init__(self) -> None:
        if self.default_ttl > self.max_ttl:
            raise ConfigurationError("default_ttl is longer than max_ttl")


@dataclass(frozen=True, slots=True)
class Socket:
    path: Path
    uids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Inner:
    signing: Signing = Signing(default_ttl=timedelta(hours=1))


@dataclass(frozen=True, slots=True)
class Config:
    trust_domain: TrustDomain = LOCAL
    listen: Annotated[HostPort, Setting("where to listen", flag="--listen")] = ANYWHERE
    also: tuple[HostPort, ...] = ()
    signing: Signing = Signing()
    inner: Inner = Inner()
    socket: tuple[Socket, ...] = ()
    state: Path = field(default_factory=lambda: Path("/default"))


@dataclass(frozen=True, slots=True)
class Demanding:
    name: str
    signing: Signing = Signing()


def read(tmp_path: Path, toml: str = "", *, flags: dict[str, str] | None = None, **environment: str) -> Loaded[Config]:
    file = tmp_path / "app.toml"
    file.write_text(toml)
    variables = {PREFIX + name: word for name, word in environment.items()} | {"PATH": "/bin", "APP_PORT": "x"}
    return load(Config, Sources(file, prefix=PREFIX, environment=variables, flags=flags or {}))


def problems(refused: pytest.ExceptionInfo[ConfigurationError]) -> list[str]:
    return str(refused.value).splitlines()


def origin(loaded: Loaded[Config], name: str) -> str:
    return next(setting.origin for setting in loaded.settings if setting.name == name)


def test_without_any_source_the_defaults_hold(tmp_path: Path) -> None:
    loaded = load(Config, Sources(tmp_path / "none.toml"))
    assert loaded.config == Config()
    assert {setting.origin for setting in loaded.settings} == {"default"}
    assert loaded.config.inner.signing.default_ttl == timedelta(hours=1)
    assert [s.word for s in loaded.settings if s.name == "inner.signing.default_ttl"] == ["1h"]


def test_a_file_that_somebody_asked_for_must_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        load(Config, Sources(tmp_path / "none.toml", file_required=True))


def test_each_source_overrides_the_weaker_ones_and_is_named(tmp_path: Path) -> None:
    toml = '[signing]\ndefault_ttl = "1h"\nmax_ttl = "3h"'
    file = read(tmp_path, toml)
    assert file.config.signing == Signing(timedelta(hours=1), timedelta(hours=3))
    assert origin(file, "signing.default_ttl") == f"file {tmp_path / 'app.toml'}"
    variable = read(tmp_path, toml, SIGNING__DEFAULT_TTL="2h")
    assert variable.config.signing.default_ttl == timedelta(hours=2)
    assert origin(variable, "signing.default_ttl") == "environment APP__SIGNING__DEFAULT_TTL"
    assert origin(variable, "signing.max_ttl") == f"file {tmp_path / 'app.toml'}"
    flag = read(tmp_path, toml, SIGNING__DEFAULT_TTL="2h", flags={"--signing-default-ttl": "3h"})
    assert flag.config.signing.default_ttl == timedelta(hours=3)
    assert origin(flag, "signing.default_ttl") == "flag --signing-default-ttl"


@pytest.mark.parametrize(
    ("toml", "nearest"),
    [
        ('trustdomain = "x"', "trust_domain"),
        ('[signing]\ndefault_tll = "1h"', "signing.default_ttl"),
        ('[sining]\nmax_ttl = "1h"', "signing.max_ttl"),
        ('[inner.signing]\ndefault-ttl = "1h"', "inner.signing.default_ttl"),
        ('[[socket]]\npath = "/s"\nuid = [1]', "socket[0].uids"),
        ("[inner.signing.default_ttl_extra]\nx = 1", "inner.signing.default_ttl"),
    ],
)
def test_an_unknown_key_is_an_error_that_names_the_nearest_one(tmp_path: Path, toml: str, nearest: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        read(tmp_path, toml)
    assert problems(refused)[0].endswith(f" {nearest}")
    assert str(tmp_path / "app.toml") in str(refused.value)


def test_an_unknown_variable_under_the_prefix_is_an_error_that_names_the_nearest_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        read(tmp_path, SIGNING__DEFAULT_TLL="1h")
    assert problems(refused)[0].startswith("APP__SIGNING__DEFAULT_TLL")
    assert problems(refused)[0].endswith(" APP__SIGNING__DEFAULT_TTL")
    with pytest.raises(ConfigurationError):
        read(tmp_path, flags={"--signing-default-tll": "1h"})


def test_all_problems_are_told_at_once_one_to_a_line(tmp_path: Path) -> None:
    toml = 'trust_domain = "Not Valid"\nlisten = 7\nsigning = 3\n[[socket]]\nuids = ["x"]\n[[socket]]\nuids = []'
    with pytest.raises(ConfigurationError) as refused:
        read(tmp_path, toml, LISTEN="nowhere", NONE="", flags={"--state": ""})
    told = problems(refused)
    assert len(told) == 8
    for name in ("trust_domain", ": listen", "signing is a table", "socket[0].uids", "socket[1].path", "APP__LISTEN"):
        assert sum(name in line for line in told) == 1


def test_a_wrong_value_is_an_error_even_where_a_stronger_source_overrides_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        read(tmp_path, 'listen = "nowhere"', LISTEN="127.0.0.1:1")
    assert read(tmp_path, 'listen = "[::1]:2"', LISTEN="127.0.0.1:1").config.listen == HostPort("127.0.0.1", 1)


def test_a_check_of_a_table_names_the_table(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        read(tmp_path, '[inner.signing]\nmax_ttl = "1s"')
    assert str(refused.value).startswith("inner.signing: ")


def test_an_array_of_tables_becomes_a_tuple_and_shows_each_row(tmp_path: Path) -> None:
    loaded = read(tmp_path, '[[socket]]\npath = "/a"\nuids = [1, 2]\n[[socket]]\npath = "b"')
    assert loaded.config.socket == (Socket(Path("/a"), (1, 2)), Socket(tmp_path / "b"))
    shown = {setting.name: setting.word for setting in loaded.settings}
    assert (shown["socket[0].uids"], shown["socket[1].path"]) == ("1,2", str(tmp_path / "b"))
    assert origin(loaded, "socket[1].uids") == "default"
    for toml in ("socket = 3", 'socket = ["x"]', "[socket]\npath = '/a'"):
        with pytest.raises(ConfigurationError):
            read(tmp_path, toml)
    with pytest.raises(ConfigurationError):
        read(tmp_path, SOCKET="/a")


def test_a_path_is_relative_to_the_file_that_names_it_or_to_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cwd").mkdir()
    monkeypatch.chdir(tmp_path / "cwd")
    assert read(tmp_path, 'state = "x"').config.state == tmp_path / "x"
    assert read(tmp_path, STATE="x").config.state == tmp_path / "cwd" / "x"


@pytest.mark.parametrize("toml", ["= 1", 'listen = "a"\nlisten = "b"', "[signing]\n[signing]", "\x00"])
def test_a_file_that_is_no_toml_is_refused(tmp_path: Path, toml: str) -> None:
    with pytest.raises(ConfigurationError) as refused:
        read(tmp_path, toml)
    assert str(tmp_path / "app.toml") in str(refused.value)


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "app.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigurationError):
        load(Config, Sources(tmp_path / "app.toml"))
    with pytest.raises(ConfigurationError):
        load(Config, Sources(tmp_path))


def test_a_setting_without_default_must_be_given_and_the_error_says_how(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError) as refused:
        load(Demanding, Sources(tmp_path / "none", prefix=PREFIX))
    assert "APP__NAME" in str(refused.value)
    assert "--name" in str(refused.value)
    assert load(Demanding, Sources(tmp_path / "none", flags={"--name": "x"})).config == Demanding("x")


def test_every_setting_has_one_flag_and_one_variable() -> None:
    known = {leaf.flag: leaf.variable(PREFIX) for leaf in leaves(Config)}
    assert known["--listen"] == "APP__LISTEN"
    assert known["--signing-default-ttl"] == "APP__SIGNING__DEFAULT_TTL"
    assert known["--inner-signing-max-ttl"] == "APP__INNER__SIGNING__MAX_TTL"


def test_a_schema_with_a_type_that_no_setting_can_have_is_a_mistake_of_ours() -> None:
    @dataclass(frozen=True)
    class Wrong:
        when: complex = 0j

    with pytest.raises(TypeError):
        list(leaves(Wrong))
