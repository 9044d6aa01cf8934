"""Whatever the sources hold: file < environment < flags, for each setting by itself."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from istio_auth.daemon.settings import Sources, load
from istio_auth.daemon.values import to_word
from istio_auth.spiffe_id import TrustDomain

PREFIX = "APP__"
DEFAULT = TrustDomain("default")


@dataclass(frozen=True, slots=True)
class Table:
    ttl: timedelta = timedelta(hours=1)
    share: float = 0.5


@dataclass(frozen=True, slots=True)
class Config:
    name: str = "name"
    count: int = 0
    on: bool = False
    trust_domain: TrustDomain = DEFAULT
    folders: tuple[Path, ...] = ()
    limit: int | None = 9
    table: Table = Table()


TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\0", exclude_categories=["Cs"]), max_size=20)
VALUES: dict[str, st.SearchStrategy[object]] = {
    "name": TEXT,
    "count": st.integers(-(2**60), 2**60),
    "on": st.booleans(),
    "trust_domain": st.from_regex(r"[a-z0-9._-]{1,20}", fullmatch=True).map(TrustDomain),
    "folders": st.lists(st.from_regex(r"/[a-z/]{1,9}", fullmatch=True).map(Path), max_size=3).map(tuple),
    "limit": st.none() | st.integers(0, 9),
    "table.ttl": st.integers(1, 10**9).map(lambda ms: timedelta(milliseconds=ms)),
    "table.share": st.floats(allow_nan=False, allow_infinity=False),
}
SOURCE = st.fixed_dictionaries({}, optional=VALUES)


def toml_line(name: str, value: object) -> str:
    if isinstance(value, (bool, int, float)):
        return f"{name} = {json.dumps(value)}"
    if isinstance(value, tuple):
        return f"{name} = {json.dumps([str(item) for item in value])}"
    return f"{name} = {json.dumps(to_word(value), ensure_ascii=False).replace(chr(0x7F), chr(92) + 'u007f')}"


@given(SOURCE, SOURCE, SOURCE)
def test_the_strongest_source_that_gives_a_setting_wins(
    in_file: dict[str, object], in_environment: dict[str, object], in_flags: dict[str, object]
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "app.toml"
        file.write_bytes("\n".join(toml_line(name, value) for name, value in in_file.items()).encode())
        variables = {PREFIX + name.replace(".", "__").upper(): to_word(value) for name, value in in_environment.items()}
        flags = {"--" + name.replace(".", "-").replace("_", "-"): to_word(value) for name, value in in_flags.items()}
        loaded = load(Config, Sources(file, prefix=PREFIX, environment=variables, flags=flags))
    defaults = {"name": "name", "count": 0, "on": False, "trust_domain": DEFAULT, "folders": ()}
    defaults |= {"limit": 9, "table.ttl": timedelta(hours=1), "table.share": 0.5}
    origins = dict.fromkeys(defaults, "default")
    origins |= dict.fromkeys(in_file, "file") | dict.fromkeys(in_environment, "environment")
    origins |= dict.fromkeys(in_flags, "flag")
    assert {s.name: s.value for s in loaded.settings} == defaults | in_file | in_environment | in_flags
    assert {s.name: s.origin.split()[0] for s in loaded.settings} == origins
