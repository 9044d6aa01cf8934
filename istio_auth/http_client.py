"""What our HTTP clients share: reading a body with a bound, and telling a failure in plain words."""

from __future__ import annotations

import aiohttp

from istio_auth.errors import MalformedError

_CHUNK = 64 << 10


async def bounded_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The body of an answer.

    Raises:
        MalformedError: it is larger than `limit` bytes.
    """
    body = bytearray()
    async for chunk in response.content.iter_chunked(_CHUNK):
        body += chunk
        if len(body) > limit:
            raise MalformedError(f"it answers with more than {limit} bytes")
    return bytes(body)


def plain_reason(error: Exception) -> str:
    """What went wrong, without the inner workings of aiohttp, and without the URL: its query may hold a secret."""
    if isinstance(error, aiohttp.ClientResponseError):
        return _in_one_line(error.message) or "it does not speak HTTP"
    if isinstance(error, aiohttp.InvalidURL):
        return "the URL is malformed"
    if isinstance(error, TimeoutError):
        return "no answer in time"
    cause = getattr(error, "certificate_error", None) or getattr(error, "os_error", None) or error
    return _in_one_line(str(cause)) or type(cause).__name__


def _in_one_line(words: str) -> str:
    """Words that a server may have written, made safe and short for a log."""
    return " ".join("".join(each if each.isprintable() else " " for each in words).split())[:300]
