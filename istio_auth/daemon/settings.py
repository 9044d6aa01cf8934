"""Settings: a frozen dataclass is the schema, and file < environment < flags fill it.

A field is a setting, a field that is a dataclass is a TOML table, and a `tuple` of dataclasses is an array of tables
(in the file only). `Annotated[type, Setting("what it does")]` gives a field its help. Every setting has one name in
each source: `signing.default_ttl` in the file, `<PREFIX>SIGNING__DEFAULT_TTL` in the environment and
`--signing-default-ttl` as a flag, unless its `Setting` names a shorter one.

Nothing is ignored. A key in the file, or a variable with the prefix, that is no setting is an error, which names the
nearest setting. A value that does not fit is an error, even if a stronger source overrides it. All these problems are
told at once; if there are none, the first that a schema's own checks find is told. Secrets are never settings, only
the paths of their files are; so every value may be shown, together with where it came from.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import tomllib
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Generic, TypeGuard, TypeVar

from istio_auth.daemon import values
from istio_auth.daemon.folders import Folders
from istio_auth.errors import ConfigurationError, MissingError
from istio_auth.files import read_bounded

Schema = TypeVar("Schema")
Key = tuple[str, ...]
CONFIG = "config"  # the flag and the variable that name the file
_MAX_FILE = 1 << 20
DEFAULT = "default"  # the origin of what nobody has set


@dataclass(frozen=True, slots=True)
class Setting:
    """What the help says about a field.

    Args:
        about: what it does, in one line.
        flag: its flag, if that is not made from its name.
    """

    about: str
    flag: str = ""


@dataclass(frozen=True, slots=True)
class Effective:
    """One setting with the value that is in effect.

    Args:
        name: as in the file, for instance `signing.default_ttl`.
        value: the value.
        origin: where it came from: `default`, or the file, variable or flag.
    """

    name: str
    value: object
    origin: str

    @property
    def word(self) -> str:
        """The value as one writes it in the environment."""
        return values.to_word(self.value)


@dataclass(frozen=True, slots=True)
class Loaded(Generic[Schema]):
    """A configuration, and where each of its settings came from."""

    config: Schema
    settings: tuple[Effective, ...]


@dataclass(frozen=True, slots=True)
class Sources:
    """Where settings come from, the weakest first.

    Args:
        file: the TOML file.
        file_required: whether it must exist, because somebody asked for it.
        prefix: what the names of the variables start with.
        environment: the variables.
        flags: the flags that were given, with their words.
    """

    file: Path
    file_required: bool = False
    prefix: str = ""
    environment: Mapping[str, str] = field(default_factory=dict)
    flags: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Leaf:
    """One setting of a schema: its place, its type, its default and its help."""

    key: Key
    kind: object
    default: object
    setting: Setting

    @property
    def flag(self) -> str:
        """Its flag, for instance `--signing-default-ttl`."""
        return self.setting.flag or "--" + "-".join(self.key).replace("_", "-")

    @property
    def row(self) -> type | None:
        """The dataclass of its rows, if it is an array of tables."""
        item = values.item_of(self.kind)
        return item if _is_table(item) else None

    def variable(self, prefix: str) -> str:
        """Its environment variable."""
        return prefix + "__".join(self.key).upper()


def load(schema: type[Schema], sources: Sources) -> Loaded[Schema]:
    """The configuration that the sources make together.

    Raises:
        ConfigurationError: one line for each thing that is wrong with them.
        NotReady: the file could not be read, for a reason that may pass.
    """
    loading = _Loading({leaf.key: leaf for leaf in leaves(schema)})
    loading.read_file(sources)
    loading.read_environment(sources)
    loading.read_flags(sources)
    for leaf in loading.leaves.values():
        if leaf.key not in loading.given and leaf.default is dataclasses.MISSING:
            ways = f"in the file, as {leaf.variable(sources.prefix)}, or by {leaf.flag}"
            loading.problems.append(f"{_dotted(leaf.key)} is not set: give it {ways}")
    loading.raise_problems()
    return Loaded(loading.build(schema, ()), tuple(loading.effective()))


def configured(schema: type[Schema], *, prefix: str, file_name: str, flags: Mapping[str, str]) -> Loaded[Schema]:
    """The configuration of a program on this machine: its file, the environment of this process, and the flags given.

    Args:
        schema: its settings.
        prefix: what its variables start with.
        file_name: its file in the folder for configuration, unless `--config` or `<prefix>CONFIG` names another.
        flags: the flags that were given, with their words.

    Raises:
        ConfigurationError, NotReady: see `load`.
    """
    environment, given = dict(os.environ), dict(flags)
    variable = environment.pop(prefix + CONFIG.upper(), None)
    asked_for = given.pop(f"--{CONFIG}", variable)
    file = Path(asked_for) if asked_for is not None else Folders.here().config / file_name
    return load(schema, Sources(file, asked_for is not None, prefix, environment, given))


def leaves(schema: type, above: Key = (), whole: object = None) -> Iterator[Leaf]:
    """Every setting of a schema, in the order of its fields.

    Args:
        schema: the dataclass.
        above: the tables around it.
        whole: the default of a whole table; None if the defaults of its own dataclass count.
    """
    hints = typing.get_type_hints(schema, include_extras=True)
    for item in dataclasses.fields(schema):
        kind, setting = hints[item.name], Setting("")
        if hasattr(kind, "__metadata__"):
            setting = next((note for note in kind.__metadata__ if isinstance(note, Setting)), setting)
            kind = kind.__origin__
        key = (*above, item.name)
        factory = item.default_factory
        default = item.default if factory is dataclasses.MISSING else factory()
        if whole is not None:
            default = getattr(whole, item.name)
        if _is_table(kind):
            yield from leaves(kind, key, None if default is dataclasses.MISSING else default)
            continue
        leaf = Leaf(key, kind, default, setting)
        if not leaf.row and not values.is_known(kind):
            raise TypeError(f"{schema.__name__}.{item.name}: no setting can be a {kind}")
        yield leaf


class _Loading:
    """One run of `load`: what was given so far, and what is wrong with it."""

    def __init__(self, schema: Mapping[Key, Leaf], place: str = "") -> None:
        self.leaves = schema
        self.given: dict[Key, tuple[object, str]] = {}
        self.problems: list[str] = []
        self._place = place  # of a row in the file, for instance "socket[0]."
        self._rows: dict[Key, list[_Loading]] = {}

    def read_file(self, sources: Sources) -> None:
        try:
            tables = tomllib.loads(read_bounded(sources.file, _MAX_FILE).decode())
        except MissingError as error:
            if sources.file_required:
                raise ConfigurationError(str(error)) from error
            return
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{sources.file}: {error}") from error
        self._read_table(tables, (), sources.file)

    def read_environment(self, sources: Sources) -> None:
        names = {leaf.variable(sources.prefix): leaf for leaf in self.leaves.values()}
        for name, word in sorted(sources.environment.items()):
            if sources.prefix and name.startswith(sources.prefix):
                self._read_word(name, word, names, f"environment {name}")

    def read_flags(self, sources: Sources) -> None:
        names = {leaf.flag: leaf for leaf in self.leaves.values()}
        for name, word in sources.flags.items():
            self._read_word(name, word, names, f"flag {name}")

    def effective(self) -> Iterator[Effective]:
        for leaf in self.leaves.values():
            for row in self._rows.get(leaf.key, ()):
                yield from row.effective()
            if not leaf.row:
                value, origin = self.given.get(leaf.key, (leaf.default, DEFAULT))
                yield Effective(self._place + _dotted(leaf.key), value, origin)

    def build(self, schema: type[Schema], above: Key) -> Schema:
        """The dataclass made of what was given.

        Raises:
            ConfigurationError: its own checks refuse what was given.
        """
        arguments: dict[str, object] = {}
        for item in dataclasses.fields(schema):  # type: ignore[arg-type]  # a schema is a dataclass
            key = (*above, item.name)
            if key in self.leaves:
                arguments[item.name] = self.given.get(key, (self.leaves[key].default, ""))[0]
            else:
                arguments[item.name] = self.build(_table_type(schema, item.name), key)
        try:
            return schema(**arguments)
        except ConfigurationError as error:
            where = (self._place + _dotted(above)).rstrip(".")
            raise ConfigurationError(f"{where}: {error}" if where else str(error)) from error

    def raise_problems(self) -> None:
        if self.problems:
            raise ConfigurationError("\n".join(self.problems))

    def _read_table(self, table: Mapping[str, object], above: Key, file: Path) -> None:
        for name, value in table.items():
            key = (*above, name)
            where = f"{file}: {self._place}{_dotted(key)}"
            is_table = any(known[: len(key)] == key for known in self.leaves if known != key)
            if leaf := self.leaves.get(key):
                self._note(leaf, where, f"file {file}", partial(self._toml, leaf, value, file))
            elif is_table and isinstance(value, dict):
                self._read_table(value, key, file)
            elif is_table:
                self.problems.append(f"{where} is a table, not a single setting")
            else:
                nearest = self._place + _nearest(_dotted(key), map(_dotted, self.leaves))
                self.problems.append(f"{where}: there is no such setting; the nearest is {nearest}")

    def _toml(self, leaf: Leaf, value: object, file: Path) -> object:
        if not leaf.row:
            return values.from_toml(value, leaf.kind, folder=file.absolute().parent)
        if not isinstance(value, list) or not all(isinstance(row, dict) for row in value):
            raise ConfigurationError(f"expected an array of tables: [[{_dotted(leaf.key)}]]")
        rows: list[object] = []
        for index, table in enumerate(value):
            row = _Loading({part.key: part for part in leaves(leaf.row)}, f"{_dotted(leaf.key)}[{index}].")
            row._read_table(table, (), file)
            row._require(file)
            self._rows.setdefault(leaf.key, []).append(row)
            self.problems += row.problems
            if not row.problems:
                rows.append(row.build(leaf.row, ()))
        return tuple(rows)

    def _require(self, file: Path) -> None:
        for leaf in self.leaves.values():
            if leaf.key not in self.given and leaf.default is dataclasses.MISSING and not self.problems:
                self.problems.append(f"{file}: {self._place}{_dotted(leaf.key)} is not set")

    def _read_word(self, name: str, word: str, names: Mapping[str, Leaf], origin: str) -> None:
        if not (leaf := names.get(name)):
            self.problems.append(f"{name}: there is no such setting; the nearest is {_nearest(name, names)}")
        elif leaf.row:
            self.problems.append(f"{name}: an array of tables can be set in the file only")
        else:
            self._note(leaf, name, origin, lambda: values.from_word(word, leaf.kind, folder=Path.cwd()))

    def _note(self, leaf: Leaf, where: str, origin: str, convert: Callable[[], object]) -> None:
        try:
            self.given[leaf.key] = convert(), origin
        except ConfigurationError as error:
            self.problems.append(f"{where}: {error}")


def _is_table(kind: object) -> TypeGuard[type]:
    return isinstance(kind, type) and dataclasses.is_dataclass(kind) and not values.is_known(kind)


def _table_type(schema: type, name: str) -> type:
    kind = typing.get_type_hints(schema)[name]
    assert isinstance(kind, type)
    return kind


def _dotted(key: Key) -> str:
    return ".".join(key)


def _nearest(name: str, known: Iterable[str]) -> str:
    return difflib.get_close_matches(name, list(known), n=1, cutoff=0)[0]
