"""Logs of a daemon: one pipeline to stderr for its own lines (structlog) and those of libraries (stdlib logging).

Every line passes a last filter, which takes out whatever looks like a private key or a bearer token. The filter is a
second guard: other code must keep secrets out of logs all the same.
"""

from __future__ import annotations

import enum
import json
import logging
import os
import re
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from istio_auth.rpc import request_id

_SECRETS: Final = (
    (re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)", re.DOTALL), "<key>"),
    (re.compile(r"(?i)\b(bearer)\s+[A-Za-z0-9._~+/=-]{8,}"), r"\1 <token>"),
    (re.compile(r"\bjoin-[A-Za-z0-9_-]{43}"), "<token>"),
    (re.compile(r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]*"), "<token>"),
)
# Every secret above has one of these in it, and few lines do.
_SUSPICIOUS: Final = re.compile(r"PRIVATE KEY|[Bb][Ee][Aa][Rr][Ee][Rr]|join-|eyJ")
# What must not reach a terminal or start a new line: C0 and C1 controls, line and paragraph separators.
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
# Their lines below WARNING are left out, except at level DEBUG.
_QUIET: Final = ("apscheduler", "aiohttp", "asyncio")


class Level(enum.Enum):
    """The least serious level that is written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Format(enum.Enum):
    """How a line looks."""

    TEXT = "text"  # for people
    JSON = "json"  # one object a line


def configure(level: Level, layout: Format, *, stream: TextIO | None = None) -> None:
    """Send every log line of this process to one place. To be called once, before the first line.

    Args:
        level: the least serious level that is written.
        layout: how a line looks. Text has colours only on a terminal, and only if NO_COLOR is not set.
        stream: where to write; stderr by default.
    """
    lines = _Lines(stream or sys.stderr)
    first: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_request_id,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    render = _JSON() if layout is Format.JSON else _Text(lines.stream)
    last: list[Processor] = [structlog.processors.format_exc_info, _WithoutSecrets(render)]
    structlog.configure(
        processors=[*first, *last],  # not by way of stdlib logging, which would take five times as long
        wrapper_class=structlog.make_filtering_bound_logger(level.name),
        logger_factory=lambda *_name: lines,
        cache_logger_on_first_use=False,  # loggers are made at import, before this is called
    )
    handler = _Handler(lines)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
            foreign_pre_chain=[*first, structlog.stdlib.add_logger_name, structlog.stdlib.ExtraAdder()],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.name)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.DEBUG if level is Level.DEBUG else logging.WARNING)
    logging.captureWarnings(capture=True)


class _WithoutSecrets:
    """Renders a line without anything that looks like a private key or a bearer token.

    Most lines have nothing of the kind, so a line is first searched as a whole. If something is found, all values but
    numbers are made texts, each text is cleaned by itself, and the line is rendered again.
    """

    def __init__(self, render: Callable[[EventDict], str]) -> None:
        self._render = render

    def __call__(self, _logger: WrappedLogger, _method: str, event: EventDict) -> str:
        with suppress(Exception):  # a line that can not be rendered so is rendered from texts, below
            line = self._render(dict(event))
            if not _SUSPICIOUS.search(line):
                return line
        return self._render({key: _clean(value) for key, value in event.items()})


def _clean(value: object) -> object:
    if isinstance(value, str):
        return _clean_text(value)
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(_clean(key)): _clean(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray):
        return [_clean(item) for item in value]
    return _clean_text(_text_of(value))


def _text_of(value: object) -> str:
    try:
        return str(value)
    except Exception:  # noqa: BLE001  # a value without a text must not break the code that logs it
        return f"<{type(value).__name__} without a text>"


def _clean_text(text: str) -> str:
    if _SUSPICIOUS.search(text):
        for pattern, instead in _SECRETS:
            text = pattern.sub(instead, text)
    return text


def _add_request_id(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    if current := request_id.get():
        event.setdefault("request_id", current)
    return event


class _Lines:
    """Writes whole lines; both kinds of loggers end here.

    If a line can not be written, stderr is told that one was lost, but not what it said.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream
        self._lock = threading.Lock()

    def write(self, line: str) -> None:
        """Write one line."""
        try:
            with self._lock:
                self.stream.write(line + "\n")
                self.stream.flush()
        except (OSError, ValueError) as error:
            with suppress(OSError):
                os.write(2, f"a log line was lost: {type(error).__name__}\n".encode())

    debug = info = warning = error = critical = write  # structlog calls the method that is named like the level


class _Handler(logging.Handler):
    """Lines of libraries."""

    def __init__(self, lines: _Lines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        """Format the record and write it."""
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001  # a line that can not be formatted must not break its caller
            line = f"a log line of {record.name} was lost: {type(error).__name__}"
        self._lines.write(line)


class _JSON:
    """A line for machines: one object."""

    def __init__(self) -> None:
        self._encode = json.JSONEncoder(ensure_ascii=False, default=_clean).encode

    def __call__(self, event: EventDict) -> str:
        return self._encode(event)


class _Text:
    """A line for people. Nothing in it that came from outside can move the cursor or begin a new line."""

    def __init__(self, stream: TextIO) -> None:
        colours = stream.isatty() and not os.environ.get("NO_COLOR")
        self._render = structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=structlog.dev.plain_traceback)

    def __call__(self, event: EventDict) -> str:
        event = {key: _clean(value) for key, value in event.items()}  # objects become their texts
        for key, value in event.items():
            if isinstance(value, str) and key not in {"exception", "stack"}:
                event[key] = _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), value)
        return self._render(None, "", event)
