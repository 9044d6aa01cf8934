"""Kubernetes label selectors: parses one, and tells which sets of labels it picks (apimachinery, `pkg/labels`).

    selector    = [ requirement *( "," requirement ) ]               ; all of them; an empty selector picks everything
    requirement = key / "!" key                                      ; the label is there, is not there
                / key ( "=" / "==" / "!=" ) value / key ( ">" / "<" ) integer
                / key ( "in" / "notin" ) "(" value *( "," value ) ")"

A label that is not there satisfies `!=` and `notin`, but no other requirement that names a value.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Self

from istio_auth.errors import ConfigurationError

_WORD = r"[^\s!=<>,()]"
_REQUIREMENT = re.compile(
    rf"\s*(?P<not>!)?\s*(?P<key>{_WORD}++)\s*"
    rf"(?:(?P<sign>==?|!=|<|>)\s*(?P<value>{_WORD}*+)\s*|(?P<set>in|notin)\s*\((?P<values>[^()]*)\)\s*)?"
    r"(?P<end>,|$)"
)
_NAME = re.compile(r"(?=.{1,63}$)[A-Za-z0-9](?:[A-Za-z0-9_.-]*[A-Za-z0-9])?")
_PREFIX = re.compile(r"(?=.{1,253}$)[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*")
_INTEGER = re.compile(r"[+-]?[0-9]+")


@dataclass(frozen=True, slots=True)
class Requirement:
    """What one label must be.

    Args:
        key: the label.
        operator: `exists`, `absent`, `in`, `notin`, `>` or `<`.
        values: the values that the operator compares with.
    """

    key: str
    operator: str
    values: frozenset[str] = frozenset()

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether the labels of an object satisfy it."""
        value = labels.get(self.key)
        match self.operator:
            case "exists":
                return value is not None
            case "absent":
                return value is None
            case "in":
                return value in self.values
            case "notin":
                return value not in self.values
        if value is None or not _INTEGER.fullmatch(value):
            return False
        (bound,) = self.values
        return int(value) > int(bound) if self.operator == ">" else int(value) < int(bound)


@dataclass(frozen=True, slots=True)
class LabelSelector:
    """Picks objects by their labels: those that satisfy every requirement."""

    requirements: tuple[Requirement, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Self:
        """The selector in a text.

        Raises:
            ConfigurationError: the text is no label selector.
        """
        found: list[Requirement] = []
        place, more = 0, bool(text.strip())
        while more:
            match = _REQUIREMENT.match(text, place)
            if match is None:
                raise _wrong(text, f"something is wrong at {text[place:].strip() or 'its end'!r}")
            found.append(_requirement(match, text))
            place, more = match.end(), match["end"] == ","
        return cls(tuple(found))

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Whether it picks an object with these labels."""
        return all(requirement.matches(labels) for requirement in self.requirements)


def is_label_value(text: str) -> bool:
    """Whether a text can be the value of a label.

    It is empty, or has at most 63 letters, digits, '-', '_' and '.', the first and the last a letter or digit.
    """
    return not text or _NAME.fullmatch(text) is not None


def _requirement(match: re.Match[str], text: str) -> Requirement:
    key = match["key"]
    if not _is_label(key):
        raise _wrong(text, f"{key!r} can be no label: a name of at most 63 letters, digits, '-', '_' and '.'")
    if match["not"]:
        if match["sign"] or match["set"]:
            raise _wrong(text, f"'!{key}' stands alone")
        return Requirement(key, "absent")
    if match["set"]:
        return Requirement(key, match["set"], _values(match["values"].split(","), text))
    if not match["sign"]:
        return Requirement(key, "exists")
    if match["sign"] in "<>" and not _INTEGER.fullmatch(match["value"]):
        raise _wrong(text, f"{match['sign']} compares with a whole number, not with {match['value']!r}")
    operator = {"=": "in", "==": "in", "!=": "notin"}.get(match["sign"], match["sign"])
    return Requirement(key, operator, _values([match["value"]], text))


def _values(words: list[str], text: str) -> frozenset[str]:
    values = frozenset(word.strip() for word in words)
    for value in values:
        if not is_label_value(value):
            raise _wrong(text, f"{value!r} can be no value of a label")
    return values


def _is_label(key: str) -> bool:
    prefix, slash, name = key.rpartition("/")
    return _NAME.fullmatch(name) is not None and (not slash or _PREFIX.fullmatch(prefix) is not None)


def _wrong(text: str, why: str) -> ConfigurationError:
    return ConfigurationError(f"{text[:200]!r} is no label selector: {why}")
