"""What commands print: facts for people as aligned lines, or JSON with stable names.

Nothing is wrapped or cut, so that a SPIFFE ID can be copied. Colours appear on a terminal only (and not if `NO_COLOR`
is set). Strangers write the text in certificates, so what is not printable is escaped before it reaches a terminal.
"""

from __future__ import annotations

import enum
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from istio_auth.clock import in_words

if TYPE_CHECKING:
    from rich.text import Text

    from istio_auth.bundle import JSON


class Output(enum.StrEnum):
    """How a command prints its facts."""

    TABLE = "table"
    JSON = "json"


class Tone(enum.Enum):
    """What a line means to its reader; its value is rich's style."""

    PLAIN = ""
    GOOD = "green"
    BAD = "bold red"
    ODD = "yellow"
    FAINT = "dim"


@dataclass(frozen=True, slots=True)
class Fact:
    """A label and its values, one line for each value."""

    label: str
    values: Sequence[str]
    tone: Tone = Tone.PLAIN

    @classmethod
    def of(cls, label: str, *values: str, tone: Tone = Tone.PLAIN) -> Fact:
        """A fact with these values."""
        return cls(label, values, tone)


@dataclass(frozen=True, slots=True)
class Section:
    """Facts under a title."""

    title: str
    facts: Sequence[Fact]


def print_json(value: JSON | Mapping[str, JSON] | Sequence[JSON]) -> None:
    """Print a value as JSON."""
    print(json.dumps(value, indent=2))


def print_sections(sections: Iterable[Section]) -> None:
    """Print facts, aligned, a blank line between sections."""
    lines: list[tuple[str, str, Tone]] = []
    for section in sections:
        lines += [("", "", Tone.PLAIN)] if lines else []
        lines.append((section.title, "", Tone.FAINT))
        width = max((len(fact.label) for fact in section.facts), default=0) + 2
        for fact in section.facts:
            for place, value in enumerate(fact.values):
                label = fact.label if place == 0 else ""
                lines.append((f"  {label:<{width}}", value, fact.tone))
    _print(lines)


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]], *, empty: str) -> None:
    """Print rows under their column names, or the text `empty` if there are none."""
    if not rows:
        print(empty)
        return
    shown = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[place]) for row in [columns, *shown]) for place in range(len(columns))]
    lines = [
        ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip(), "", tone)
        for row, tone in [(columns, Tone.FAINT), *((row, Tone.PLAIN) for row in shown)]
    ]
    _print(lines)


def note(text: str) -> None:
    """Tell the person at the terminal something that is not a result, on stderr."""
    print(printable(text), file=sys.stderr)


def printable(text: str) -> str:
    """The text with every character escaped that is not printable."""
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)


def iso(instant: datetime) -> str:
    """An instant as RFC 3339 writes it, in UTC."""
    return instant.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def iso_if_any(instant: datetime | None) -> str | None:
    """As `iso`; None for no instant."""
    return None if instant is None else iso(instant)


def shown(instant: datetime) -> str:
    """An instant for people, in UTC."""
    return instant.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def life_in_words(not_before: datetime, not_after: datetime, now: datetime) -> str:
    """Where `now` stands in a validity: `ends in 23 hours 59 minutes`."""
    if now < not_before:
        return f"begins in {in_words(not_before - now)}"
    if now > not_after:
        return f"ended {in_words(now - not_after)} ago"
    return f"ends in {in_words(not_after - now)}"


def _print(lines: Sequence[tuple[str, str, Tone]]) -> None:
    from rich.console import Console

    console = Console(highlight=False, markup=False, emoji=False)
    for label, value, tone in lines:
        console.print(_styled(label, printable(value), tone), soft_wrap=True)


def _styled(label: str, value: str, tone: Tone) -> Text:
    from rich.text import Text

    if not value:
        return Text(label.rstrip(), style="bold" if tone is Tone.FAINT else "")
    return Text.assemble((label, Tone.FAINT.value), (value, tone.value))
