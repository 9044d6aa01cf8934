"""Reads JSON that strangers wrote: bounded, no name twice in an object, no NaN or Infinity (RFC 8259, RFC 7493 2.3).

An object that has a name twice may mean one thing to one reader and another to the next, so it is refused here.
"""

from __future__ import annotations

import json
from typing import NoReturn, TypeAlias

from istio_auth.errors import MalformedError

JSON: TypeAlias = bool | int | float | str | list["JSON"] | dict[str, "JSON"] | None


def parse_json(text: bytes | str, *, limit: int) -> JSON:
    """The value in a text.

    Args:
        text: the document; bytes are UTF-8.
        limit: how many bytes (of bytes) or characters (of a str) it may have.

    Raises:
        MalformedError: it is longer, or is no such JSON. The error holds nothing of the text, which may be a secret.
    """
    if len(text) > limit:
        raise MalformedError(f"more than {limit} bytes")
    try:
        # A byte order mark at the front may be skipped (RFC 8259 8.1).
        return _DECODER.decode(text if isinstance(text, str) else text.decode("utf-8-sig"))  # type: ignore[no-any-return]  # the type is JSON's
    except json.JSONDecodeError as error:
        reason = f"no JSON ({error.msg} at character {error.pos})"
    except (ValueError, RecursionError) as error:
        reason = f"no JSON ({type(error).__name__})"
    raise MalformedError(reason)  # not in the `except`: its context would be the parser's error, which holds the text


def _without_repeats(pairs: list[tuple[str, JSON]]) -> dict[str, JSON]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise MalformedError("a name occurs twice in one object")
    return members


def _no_constant(name: str) -> NoReturn:
    raise MalformedError(f"{name} is no number of JSON")


_DECODER = json.JSONDecoder(object_pairs_hook=_without_repeats, parse_constant=_no_constant)
