"""Reads a parsed document field by field, and refuses unknown fields.

Every error names the path of the field, as in `spec.jwtRules[0].fromHeaders[1].name`. A field that is null counts as
absent, as it does for Kubernetes.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Self, TypeVar

from istio_auth.errors import ConfigurationError

Made = TypeVar("Made")
_SHOWN = 60


class Fields:
    """The fields of one object of a document. Take each field once; `end` refuses those that were not taken.

    Args:
        value: the object.
        path: where it stands in its document; empty for the document itself.

    Raises:
        ConfigurationError: it is no object.
    """

    def __init__(self, value: object, path: str = "") -> None:
        if not isinstance(value, dict):
            raise ConfigurationError(f"{path or 'the document'}: expected fields, found {_kind(value)}")
        self.path = path
        self._rest: dict[object, object] = dict(value)
        self._known: list[str] = []

    def text(self, name: str) -> str:
        """A text; empty if the field is absent.

        Raises:
            ConfigurationError: the field is no text.
        """
        return _text(self._take(name, ""), self.at(name))

    def texts(self, name: str) -> tuple[str, ...]:
        """A list of texts; empty if the field is absent.

        Raises:
            ConfigurationError: the field is no list of texts, or one of them is empty.
        """
        found = tuple(_text(one, f"{self.at(name)}[{place}]") for place, one in enumerate(self._list(name)))
        if "" in found:
            raise ConfigurationError(f"{self.at(name)}[{found.index('')}]: an empty text: fill it in, or take it out")
        return found

    def truth(self, name: str) -> bool:
        """True or false; false if the field is absent.

        Raises:
            ConfigurationError: it is neither.
        """
        value = self._take(name, default=False)
        if not isinstance(value, bool):
            raise ConfigurationError(f"{self.at(name)}: expected true or false, found {_kind(value)}")
        return value

    def nested(self, name: str) -> Self | None:
        """The fields of a nested object; None if the field is absent.

        Raises:
            ConfigurationError: it is no object.
        """
        value = self._take(name, None)
        return None if value is None else type(self)(value, self.at(name))

    def rows(self, name: str) -> tuple[Self, ...]:
        """The fields of each object of a list; empty if the field is absent.

        Raises:
            ConfigurationError: the field is no list of objects.
        """
        return tuple(type(self)(one, f"{self.at(name)}[{place}]") for place, one in enumerate(self._list(name)))

    def every_text(self) -> Mapping[str, str]:
        """All fields that were not taken yet, each of which must be a text; null is refused here.

        Raises:
            ConfigurationError: one of them is no text.
        """
        rest, self._rest = self._rest, {}
        return MappingProxyType({str(name): _text(value, self.at(str(name))) for name, value in rest.items()})

    def ignore(self, *names: str) -> None:
        """Take fields that have no meaning here."""
        for name in names:
            self._take(name, None)

    def make(self, build: Callable[[], Made]) -> Made:
        """The value that `build` makes; all fields must be taken by then.

        Raises:
            ConfigurationError: a field is left over, or `build` raised it; the message has the path in front.
        """
        self.end()
        try:
            return build()
        except ConfigurationError as error:
            raise ConfigurationError(f"{self.path or 'the document'}: {error}") from error

    def end(self) -> None:
        """Refuse fields that were not taken.

        Raises:
            ConfigurationError: there is one.
        """
        for name in self._rest:
            near = difflib.get_close_matches(str(name), self._known, 1)
            instead = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(self._known))}"
            raise ConfigurationError(f"{self.at(str(name)[:_SHOWN])}: no such field; {instead}")

    def at(self, name: str) -> str:
        """The path of one of the fields."""
        return f"{self.path}.{name}" if self.path else name

    def _take(self, name: str, default: object) -> object:
        self._known.append(name)
        value = self._rest.pop(name, None)
        return default if value is None else value

    def _list(self, name: str) -> list[object]:
        value = self._take(name, [])
        if not isinstance(value, list):
            raise ConfigurationError(f"{self.at(name)}: expected a list, found {_kind(value)}")
        return value


def _text(value: object, path: str) -> str:
    if not isinstance(value, str):
        raise ConfigurationError(f"{path}: expected a text, found {_kind(value)}: put it between quotes")
    return value


def _kind(value: object) -> str:
    if isinstance(value, dict | list):
        return "fields" if isinstance(value, dict) else "a list"
    if value is None:
        return "nothing"
    return f"{str(value)[:_SHOWN]!r}" if isinstance(value, str) else str(value)[:_SHOWN]
