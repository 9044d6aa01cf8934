"""What both kinds of channel do alike: their options, and bytes as messages."""

from __future__ import annotations

import asyncio
import itertools
from typing import TypeVar

from google.protobuf.message import DecodeError, Message

from istio_auth.errors import MalformedError

Response = TypeVar("Response", bound=Message)

_number = itertools.count()


class UnreadableAnswer(MalformedError):
    """The server answered with bytes that are not the message they should be. Another answer may well be read."""


def channel_options(max_response_bytes: int) -> list[tuple[str, int | str]]:
    """The options of a channel of our own."""
    return [
        ("grpc.max_receive_message_length", max_response_bytes),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 2000),  # callers have a backoff of their own
        ("grpc.enable_http_proxy", 0),
        ("istio_auth.channel", next(_number)),  # no two channels share a connection behind our back
    ]


def parsed(path: str, response_type: type[Response], data: bytes) -> Response:
    """The message that a method answered.

    Raises:
        UnreadableAnswer: the bytes are none.
    """
    try:
        return response_type.FromString(data)
    except DecodeError as error:
        raise UnreadableAnswer(f"the answer to {path} does not parse") from error


def strayed(error: BaseException) -> bool:
    """Whether this is the end of something that a method waited for, and not of the call: gRPC would say nothing."""
    task = asyncio.current_task()
    return isinstance(error, asyncio.CancelledError) and task is not None and not task.cancelling()
