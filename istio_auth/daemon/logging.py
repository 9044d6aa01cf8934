"""Logs of a daemon: one pipeline to stderr for its own lines (structlog) and those of libraries (stdlib logging).

Every line passes a last filter: what looks like a private key or a bearer token is taken out, wherever it hid. The
filter is a net under the code that keeps secrets out of logs, not its replacement.
"""

from __future__ import annotations

import enum
import logging
import os
import re
import sys
from collections.abc import Mapping, MutableMapping, Sequence
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
# What must not reach a terminal or start a new line: C0 and C1 controls, line and paragraph separators.
_CONTROLS: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")
# Their own progress is no news to us below this level.
_QUIET: Final = ("apscheduler", "aiohttp", "asyncio")


class Level(enum.Enum):
    """The least serious lines to be written."""

    DEBUG = "debug"
    INFO = "info"
    WARNING = "warning"
    ERROR = "error"


class Format(enum.Enum):
    """How a line looks."""

    TEXT = "text"  # for people
    JSON = "json"  # one object a line


def configure(level: Level, layout: Format, *, stream: TextIO | None = None) -> None:
    """Send every line of this process to one place; to be called once, before the first.

    Args:
        level: what to leave out.
        layout: text has colours on a terminal only, and never where NO_COLOR is set.
        stream: where to write; stderr by default.
    """
    out = stream or sys.stderr
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        _add_request_id,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,  # loggers are made at import, before this is called
    )
    last: list[Processor] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        take_secrets_out,
        structlog.processors.JSONRenderer(ensure_ascii=False) if layout is Format.JSON else _Text(out),
    ]
    handler = _Handler(out)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            processors=last,
            foreign_pre_chain=[*shared, structlog.stdlib.add_logger_name, structlog.stdlib.ExtraAdder()],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.name)
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.DEBUG if level is Level.DEBUG else logging.WARNING)
    logging.captureWarnings(capture=True)


def take_secrets_out(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """The line without what looks like a private key or a bearer token; everything but numbers becomes text first."""
    return {key: _clean(value) for key, value in event.items()}


def _clean(value: object) -> object:
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, Mapping):
        return {str(_clean(key)): _clean(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str | bytes | bytearray):
        return [_clean(item) for item in value]
    text = value if isinstance(value, str) else str(value)
    for pattern, instead in _SECRETS:
        text = pattern.sub(instead, text)
    return text


def _add_request_id(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    if current := request_id.get():
        event.setdefault("request_id", current)
    return event


class _Handler(logging.StreamHandler[TextIO]):
    """Says that a line was lost, and not, as the inherited one does, what was in it: that has passed no filter."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802  # the name is logging's
        failure = sys.exc_info()[0]
        with suppress(OSError, ValueError):
            name = failure.__name__ if failure else "unknown"
            os.write(2, f"a log line of {record.name} was lost: {name}\n".encode())


class _Text:
    """A line for people, in which nothing that came from outside moves the cursor or begins a line of its own."""

    def __init__(self, stream: TextIO) -> None:
        colours = stream.isatty() and not os.environ.get("NO_COLOR")
        self._render = structlog.dev.ConsoleRenderer(colors=colours, exception_formatter=structlog.dev.plain_traceback)

    def __call__(self, logger: WrappedLogger, method: str, event: MutableMapping[str, object]) -> str:
        for key, value in event.items():
            if isinstance(value, str) and key not in {"exception", "stack"}:
                event[key] = _CONTROLS.sub(lambda found: found[0].encode("unicode_escape").decode(), value)
        return self._render(logger, method, event)
