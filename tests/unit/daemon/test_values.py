"""What each type of setting accepts, and that it is written back as it was read."""

from __future__ import annotations

import enum
from datetime import timedelta
from pathlib import Path

import pytest

from istio_auth.daemon.values import from_toml, from_word, to_word
from istio_auth.errors import ConfigurationError
from istio_auth.host_port import HostPort
from istio_auth.spiffe_id import SpiffeID, TrustDomain

FOLDER = Path("/base")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


GOOD = [
    ("true", bool, True),
    ("off", bool, False),
    ("-3", int, -3),
    ("0.5", float, 0.5),
    ("", str, ""),
    ("a,b", str, "a,b"),
    ("/x/y", Path, Path("/x/y")),
    ("x/y", Path, Path("/base/x/y")),
    ("1h30m", timedelta, timedelta(minutes=90)),
    ("1500ms", timedelta, timedelta(milliseconds=1500)),
    ("cluster.local", TrustDomain, TrustDomain("cluster.local")),
    ("spiffe://td/a", SpiffeID, SpiffeID.parse("spiffe://td/a")),
    ("[::1]:15012", HostPort, HostPort("::1", 15012)),
    ("blue", Colour, Colour.BLUE),
    ("", int | None, None),
    ("7", int | None, 7),
    ("", tuple[int, ...], ()),
    ("1, 2", tuple[int, ...], (1, 2)),
    (
        "spiffe://a/b,spiffe://c/d",
        tuple[SpiffeID, ...],
        (SpiffeID.parse("spiffe://a/b"), SpiffeID.parse("spiffe://c/d")),
    ),
]


@pytest.mark.parametrize(("word", "kind", "value"), GOOD)
def test_a_word_becomes_a_value_and_the_value_the_word_of_the_same_value(
    word: str, kind: object, value: object
) -> None:
    read = from_word(word, kind, folder=FOLDER)
    assert (type(read), read) == (type(value), value)
    assert from_word(to_word(read), kind, folder=FOLDER) == value


@pytest.mark.parametrize(
    ("word", "kind"),
    [
        ("maybe", bool),
        ("", bool),
        ("1.5", int),
        ("", int),
        ("nan", float),
        ("inf", float),
        ("", Path),
        ("a\0b", Path),
        ("90", timedelta),
        ("0s", timedelta),
        ("Cluster.Local", TrustDomain),
        ("https://td/a", SpiffeID),
        ("green", Colour),
        ("RED", Colour),
        ("x", int | None),
        ("1,x", tuple[int, ...]),
        ("1,,2", tuple[int, ...]),
    ],
)
def test_a_word_that_does_not_fit_is_refused(word: str, kind: object) -> None:
    with pytest.raises(ConfigurationError):
        from_word(word, kind, folder=FOLDER)


@pytest.mark.parametrize(
    ("value", "kind", "expected"),
    [
        (True, bool, True),
        (3, int, 3),
        (3, float, 3.0),
        ("24h", timedelta, timedelta(days=1)),
        ("x", Path, FOLDER / "x"),
        (["1s", "2s"], tuple[timedelta, ...], (timedelta(seconds=1), timedelta(seconds=2))),
        ("", timedelta | None, None),
        (4, int | None, 4),
    ],
)
def test_a_toml_value_becomes_a_value(value: object, kind: object, expected: object) -> None:
    read = from_toml(value, kind, folder=FOLDER)
    assert (type(read), read) == (type(expected), expected)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("true", bool),
        (1, bool),
        (True, int),
        (1.0, int),
        ("1", int),
        (float("nan"), float),
        (24, timedelta),
        (3, str),
        ("1s", tuple[timedelta, ...]),
        ([1], tuple[timedelta, ...]),
        ({}, str),
        (3, Path),
    ],
)
def test_a_toml_value_of_another_type_is_refused(value: object, kind: object) -> None:
    with pytest.raises(ConfigurationError):
        from_toml(value, kind, folder=FOLDER)


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("127.0.0.1:15012", "127.0.0.1", 15012),
        ("localhost:0", "localhost", 0),
        ("[::]:65535", "::", 65535),
        ("[fe80::1%eth0]:1", "fe80::1%eth0", 1),
        (":15012", "", 15012),
        ("*:15012", "", 15012),
    ],
)
def test_an_address_is_read_and_written(text: str, host: str, port: int) -> None:
    assert HostPort.parse(text) == HostPort(host, port)
    assert HostPort.parse(str(HostPort(host, port))) == HostPort(host, port)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "host",
        "host:",
        "host:x",
        "host:65536",
        "host:-1",
        "::1:15012",
        "[::1]",
        "[::1",
        "[]:1",
        "http://h:1",
        "h:१",
        "a b:1",
    ],
)
def test_a_text_that_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        HostPort.parse(text)


def test_who_writes_a_url_reads_that_no_scheme_is_wanted() -> None:
    with pytest.raises(ConfigurationError, match="write host:port alone, without a scheme"):
        HostPort.parse("https://ca.test:15012")
