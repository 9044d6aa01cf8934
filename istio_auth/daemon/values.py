"""The types that a setting can have, and how each is written: as a word (environment, flag) and in TOML.

`bool`, `int`, `float`, `str`, `Path`, `timedelta` (`24h`), `TrustDomain`, `SpiffeID`, `HostPort`, every `Enum` (by its
value), and of all these `X | None` and `tuple[X, ...]`. An empty word, or an empty string in TOML, stands for None;
in a word, commas separate the items of a tuple. In TOML booleans, numbers and lists are written as such, and everything
else as a string.
"""

from __future__ import annotations

import enum
import math
import types
import typing
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Final

from istio_auth.clock import duration_text, parse_duration
from istio_auth.errors import ConfigurationError, MalformedError
from istio_auth.host_port import HostPort
from istio_auth.spiffe_id import SpiffeID, TrustDomain

_YES: Final = frozenset({"true", "yes", "on", "1"})
_NO: Final = frozenset({"false", "no", "off", "0"})


_PARSERS: Final[Mapping[object, Callable[[str], object]]] = {
    str: str,
    int: int,
    float: lambda word: _finite(float(word)),
    timedelta: parse_duration,
    TrustDomain: TrustDomain,
    SpiffeID: SpiffeID.parse,
    HostPort: HostPort.parse,
}


def from_word(word: str, kind: object, *, folder: Path) -> object:
    """The value that a word stands for.

    Args:
        word: what was written.
        kind: one of the types above.
        folder: what relative paths start from.

    Raises:
        ConfigurationError: it is no value of this type; the message does not name the setting.
    """
    if (inner := optional_of(kind)) is not None:
        return None if not word else from_word(word, inner, folder=folder)
    if (item := item_of(kind)) is not None:
        return tuple(from_word(part.strip(), item, folder=folder) for part in word.split(",")) if word.strip() else ()
    if kind is bool:
        return _truth(word)
    if kind is Path:
        return _path(word, folder)
    if isinstance(kind, type) and issubclass(kind, enum.Enum):
        return _member(word, kind)
    try:
        return _PARSERS[kind](word)
    except MalformedError as error:
        raise ConfigurationError(str(error)) from error
    except ValueError:
        raise ConfigurationError(f"{word[:100]!r} is no {_name(kind)}") from None


def from_toml(value: object, kind: object, *, folder: Path) -> object:
    """The value that a TOML value stands for (see `from_word`)."""
    if (inner := optional_of(kind)) is not None:
        return None if value == "" else from_toml(value, inner, folder=folder)
    if (item := item_of(kind)) is not None:
        if not isinstance(value, list):
            raise ConfigurationError(f"expected a list of {_name(item)}, found {_toml_name(value)}")
        return tuple(from_toml(part, item, folder=folder) for part in value)
    if kind in {bool, int, float}:
        if kind is float and type(value) in {float, int}:
            return from_word(str(value), kind, folder=folder)
        if type(value) is kind:
            return value
    elif isinstance(value, str):
        return from_word(value, kind, folder=folder)
    raise ConfigurationError(f"expected {_name(kind)}, found {_toml_name(value)}")


def to_word(value: object) -> str:
    """The word from which `from_word` makes this value again."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, timedelta):
        return duration_text(value)
    if isinstance(value, enum.Enum):
        return str(value.value)
    if isinstance(value, tuple):
        return ",".join(map(to_word, value))
    return str(value)


def is_known(kind: object) -> bool:
    """Whether a setting can have this type."""
    if (inner := optional_of(kind) or item_of(kind)) is not None:
        return is_known(inner)
    return kind in _PARSERS or kind in {bool, Path} or (isinstance(kind, type) and issubclass(kind, enum.Enum))


def optional_of(kind: object) -> object | None:
    """The X of `X | None`; None for every other type."""
    if typing.get_origin(kind) in {types.UnionType, typing.Union}:
        inner = [part for part in typing.get_args(kind) if part is not types.NoneType]
        return inner[0] if len(inner) == 1 else None
    return None


def item_of(kind: object) -> object | None:
    """The X of `tuple[X, ...]`; None for every other type."""
    arguments = typing.get_args(kind)
    is_list = typing.get_origin(kind) is tuple and len(arguments) == 2 and arguments[1] is Ellipsis
    return arguments[0] if is_list else None


def _truth(word: str) -> bool:
    if (lower := word.lower()) in _YES | _NO:
        return lower in _YES
    raise ConfigurationError(f"{word[:100]!r} is neither true nor false")


def _finite(number: float) -> float:
    if not math.isfinite(number):
        raise ValueError("neither infinite nor not a number")
    return number


def _path(word: str, folder: Path) -> Path:
    if not word or "\0" in word:
        raise ConfigurationError("expected a path")
    try:
        return folder / Path(word).expanduser()
    except RuntimeError as error:
        raise ConfigurationError(f"{word[:100]!r}: {error}") from error


def _member(word: str, kind: type[enum.Enum]) -> enum.Enum:
    for member in kind:
        if str(member.value) == word:
            return member
    raise ConfigurationError(f"{word[:100]!r} is none of {', '.join(str(member.value) for member in kind)}")


_NAMES: Final[Mapping[object, str]] = {
    bool: "true or false",
    int: "whole number",
    float: "number",
    str: "string",
    list: "list",
    dict: "table",
    Path: "path",
    timedelta: 'duration such as "24h"',
    TrustDomain: "trust domain",
    SpiffeID: "SPIFFE ID",
    HostPort: 'address such as "[::1]:15012"',
}


def _name(kind: object) -> str:
    return _NAMES.get(kind) or str(getattr(kind, "__name__", kind))


def _toml_name(value: object) -> str:
    return _NAMES.get(type(value), "date or time")
