"""What both kinds of channel have in common: their options, and parsing of answers."""

from __future__ import annotations

import asyncio
import itertools
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from istio_auth.errors import MalformedError

Response = TypeVar("Response", bound=Message)

_number = itertools.count()


class UnreadableAnswer(MalformedError):
    """The server's answer does not parse as the expected message. Another answer may parse."""


def channel_options(max_response_bytes: int) -> list[tuple[str, int | str]]:
    """The options of our channels."""
    return [
        ("grpc.max_receive_message_length", max_response_bytes),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),  # callers have a backoff of their own
        ("grpc.enable_http_proxy", 0),
        ("istio_auth.channel", next(_number)),  # unique, or gRPC would let two channels share a connection
    ]


def parsed(path: str, response_type: type[Response], data: bytes) -> Response:
    """The message in an answer.

    Raises:
        UnreadableAnswer: the bytes do not parse.
    """
    try:
        return response_type.FromString(data)
    except DecodeError as error:
        raise UnreadableAnswer(f"the answer to {path} does not parse") from error


def strayed(error: BaseException) -> bool:
    """Whether this CancelledError came out of something that was awaited, and the task itself was not cancelled."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and not task.cancelling()
