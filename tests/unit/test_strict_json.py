"""JSON that strangers wrote: one meaning or none, and an error that gives nothing of it away."""

from __future__ import annotations

import traceback

import pytest

from istio_auth.errors import MalformedError
from istio_auth.strict_json import JSON, parse_json


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        (b'{"a": [1, 2.5, "x", true, null]}', {"a": [1, 2.5, "x", True, None]}),
        ('{"a": {"b": 1}, "c": {"b": 1}}', {"a": {"b": 1}, "c": {"b": 1}}),
        (b'\xef\xbb\xbf"marked"', "marked"),
        ("7", 7),
    ],
)
def test_json_is_read(text: bytes | str, meaning: JSON) -> None:
    assert parse_json(text, limit=100) == meaning


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "nothing",
        '{"a": 1, "a": 1}',
        '{"deep": [{"a": 1, "a": 2}]}',
        "NaN",
        '{"exp": Infinity}',
        "-Infinity",
        b"\xff\xfe{\x00}\x00",
        "[" * 90_000,
        "1" * 5_000,
    ],
)
def test_what_has_no_one_meaning_is_refused(text: bytes | str) -> None:
    with pytest.raises(MalformedError):
        parse_json(text, limit=100_000)


def test_only_so_much_is_looked_at() -> None:
    assert parse_json('"1234"', limit=6) == "1234"
    with pytest.raises(MalformedError):
        parse_json('"1234"', limit=5)


@pytest.mark.parametrize(
    "text", ['{"password": "hunter2"', b'{"password": "hunter2\xff"}', '{"hunter2":1,"hunter2":2}']
)
def test_an_error_holds_nothing_of_the_text(text: bytes | str) -> None:
    with pytest.raises(MalformedError) as caught:
        parse_json(text, limit=100)
    assert "hunter2" not in "".join(traceback.format_exception(caught.value))
    seen: BaseException | None = caught.value
    while seen is not None:
        assert "hunter2" not in repr(vars(seen)) + repr(seen.args)
        seen = seen.__cause__ or seen.__context__
