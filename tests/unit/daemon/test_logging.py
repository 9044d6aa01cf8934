"""One pipeline for all log lines, and a net under it for secrets."""

from __future__ import annotations

import io
import json
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import MappingProxyType

import pytest
import structlog

from istio_auth.daemon.logging import Format, Level, configure
from istio_auth.pem import write_private_key
from istio_auth.rpc import request_id
from tests.fakes.authority import FakeAuthority

JWT = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJzcGlmZmUifQ.c2lnbmF0dXJl"
JOIN = "join-" + "a1-_" * 10 + "xyz"


@pytest.fixture(autouse=True)
def root_logger() -> Iterator[None]:
    """Give the other tests their logging back."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level
    logging.captureWarnings(capture=False)
    structlog.reset_defaults()


def lines(stream: io.StringIO) -> list[dict[str, object]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def logged(layout: Format = Format.JSON, level: Level = Level.INFO) -> io.StringIO:
    stream = io.StringIO()
    configure(level, layout, stream=stream)
    return stream


def test_lines_of_ours_and_of_libraries_look_the_same() -> None:
    stream = logged()
    structlog.get_logger().info("issued", serial=7)
    logging.getLogger("istio_auth.verify").warning("refused %s", "x", extra={"fault": "expired"})
    ours, theirs = lines(stream)
    assert (ours["event"], ours["serial"], ours["level"]) == ("issued", 7, "info")
    assert (theirs["event"], theirs["fault"], theirs["level"]) == ("refused x", "expired", "warning")
    assert theirs["logger"] == "istio_auth.verify"
    assert set(ours) - {"serial"} == set(theirs) - {"fault", "logger"}


def test_a_line_inside_of_a_request_carries_its_id() -> None:
    stream = logged()
    token = request_id.set("r-1")
    try:
        structlog.get_logger().info("a")
        logging.getLogger("lib").info("b")
    finally:
        request_id.reset(token)
    structlog.get_logger().info("c")
    assert [line.get("request_id") for line in lines(stream)] == ["r-1", "r-1", None]


def test_bound_context_is_on_every_line() -> None:
    stream = logged()
    with structlog.contextvars.bound_contextvars(agent="node-1"):
        logging.getLogger("lib").info("b")
    assert lines(stream)[0]["agent"] == "node-1"


@pytest.mark.parametrize(("level", "shown"), [(Level.DEBUG, 4), (Level.INFO, 3), (Level.WARNING, 2), (Level.ERROR, 1)])
def test_less_serious_lines_are_left_out(level: Level, shown: int) -> None:
    for name in ("ours", "library"):
        stream = logged(level=level)
        log = structlog.get_logger() if name == "ours" else logging.getLogger("lib")
        log.debug("a")
        log.info("b")
        log.warning("c")
        log.error("d")
        assert len(lines(stream)) == shown


def test_the_alarm_clock_and_the_web_server_are_quiet_unless_asked() -> None:
    stream = logged()
    logging.getLogger("apscheduler.scheduler").info("Added job")
    logging.getLogger("aiohttp.server").warning("seen")
    assert [line["event"] for line in lines(stream)] == ["seen"]
    stream = logged(level=Level.DEBUG)
    logging.getLogger("apscheduler.scheduler").info("Added job")
    assert len(lines(stream)) == 1


@pytest.mark.parametrize("layout", list(Format))
@pytest.mark.parametrize("place", ["value", "nested", "bytes", "event", "argument", "exception", "object", "key"])
def test_a_private_key_is_taken_out_wherever_it_hid(authority: FakeAuthority, layout: Format, place: str) -> None:
    pem = write_private_key(authority.key).decode()
    body = pem.splitlines()[1]
    stream = logged(layout)
    log = structlog.get_logger()
    if place == "value":
        log.info("a", pem=pem)
    elif place == "nested":
        log.info("a", config={"keys": [pem]})
    elif place == "bytes":
        log.info("a", pem=pem.encode())
    elif place == "event":
        log.info(pem)
    elif place == "argument":
        logging.getLogger("lib").info("a %s", pem)
    elif place == "object":
        log.info("a", error=ValueError(pem))
    elif place == "key":
        log.info("a", config={pem: 1})
    else:
        try:
            raise ValueError(pem)
        except ValueError:
            log.exception("a")
    assert "<key>" in stream.getvalue()
    assert body not in stream.getvalue()


@pytest.mark.parametrize("secret", [JWT, JOIN, "Bearer abcdefgh", f"bearer {JWT}"])
def test_a_token_is_taken_out(secret: str) -> None:
    stream = logged()
    structlog.get_logger().info("a", authorization=f"it was {secret} here")
    assert "<token>" in stream.getvalue()
    assert secret.rpartition(" ")[2] not in stream.getvalue()


def test_half_a_key_is_taken_out_to_its_end() -> None:
    stream = logged()
    structlog.get_logger().info("a", pem="-----BEGIN EC PRIVATE KEY-----\nabcdef")
    assert lines(stream)[0]["pem"] == "<key>"


def test_what_is_no_secret_stays() -> None:
    stream = logged()
    structlog.get_logger().info("a", id="spiffe://cluster.local/bearer/join-me", count=3, on=True, none=None, share=0.5)
    (line,) = lines(stream)
    assert line["id"] == "spiffe://cluster.local/bearer/join-me"
    assert (line["count"], line["on"], line["none"], line["share"]) == (3, True, None, 0.5)


def test_hostile_text_begins_no_line_of_its_own_and_moves_no_cursor() -> None:
    stream = logged(Format.TEXT)
    hostile = "a\n2030-01-01 [info] issued\r\x1b[2Jb\u2028c"
    structlog.get_logger().info(hostile, value=hostile)
    logging.getLogger("lib").info(hostile)
    assert len(stream.getvalue().splitlines()) == 2
    assert "\x1b" not in stream.getvalue()


def test_text_has_colours_on_a_terminal_only(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b" not in _text_on(io.StringIO())
    assert "\x1b" in _text_on(Terminal())
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in _text_on(Terminal())


def test_a_line_that_can_not_be_written_is_reported_without_its_content(capfd: pytest.CaptureFixture[str]) -> None:
    class Broken(io.StringIO):
        def write(self, _text: str) -> int:
            raise BrokenPipeError

    configure(Level.INFO, Format.JSON, stream=Broken())
    logging.getLogger("lib").info("the content %s", JWT)
    shown = capfd.readouterr().err
    assert "BrokenPipeError" in shown
    assert JWT not in shown
    assert "the content" not in shown


@pytest.mark.parametrize("layout", list(Format))
def test_objects_are_told_by_their_text_and_containers_by_their_content(layout: Format) -> None:
    stream = logged(layout)
    structlog.get_logger().info("a", path=Path("/some/file"), held=MappingProxyType({"why": ValueError("late")}))
    assert "/some/file" in stream.getvalue()
    assert "PosixPath" not in stream.getvalue()
    assert "mappingproxy" not in stream.getvalue()
    assert "ValueError" not in stream.getvalue()


def test_an_objects_text_begins_no_line_of_its_own() -> None:
    stream = logged(Format.TEXT)
    structlog.get_logger().info("a", error=ValueError("a\n2030-01-01 [info] issued"))
    assert len(stream.getvalue().splitlines()) == 1


@pytest.mark.parametrize("layout", list(Format))
def test_a_value_that_has_no_text_costs_the_value_and_not_the_line(layout: Format) -> None:
    class Mute:
        def __str__(self) -> str:
            raise RuntimeError

        __repr__ = __str__

    stream = logged(layout)
    structlog.get_logger().info("a", value=Mute(), other="still here")
    logging.getLogger("lib").info("b", extra={"value": Mute()})
    assert "still here" in stream.getvalue()
    assert stream.getvalue().count("Mute without a text") == 2


def test_warnings_of_python_are_lines_too() -> None:
    stream = logged()
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(capture=True)  # the context manager above has put Python's own way back
        warnings.warn("careful", stacklevel=1)
    assert lines(stream)[0]["logger"] == "py.warnings"


def _text_on(stream: io.StringIO) -> str:
    configure(Level.INFO, Format.TEXT, stream=stream)
    structlog.get_logger().info("a", b=1)
    return stream.getvalue()
