"""Clients of the demo: plain or TLS, HTTP or TCP, each call a new connection, so that each is judged anew."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import NamedTuple

_LOOPBACK = "127.0.0.1"
_TIMEOUT = 30.0
# What a peer of the mesh offers: HTTP/1.1 is what this client speaks, the first name says to whom it belongs.
_MESH_ALPN = ["istio-http/1.1", "istio", "http/1.1"]


class CallFailed(Exception):
    """A call that was not answered as it should; the message tells what this side saw."""


class Answer(NamedTuple):
    """What an application answered.

    Args:
        workload: the name of the application.
        caller: the SPIFFE ID that it was told, or nothing.
        headers: the headers that it saw, names in lower case.
    """

    workload: str
    caller: str
    headers: Mapping[str, str]


async def http_get(
    port: int, *, tls: ssl.SSLContext | None = None, headers: Mapping[str, str] | None = None, path: str = "/"
) -> Answer:
    """One request on a connection of its own.

    Raises:
        CallFailed: no answer, or not the application's.
    """
    wanted = {"host": "demo", "connection": "close"} | dict(headers or {})
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in wanted.items()), "", ""]
    async with _connection(port, tls) as (reader, writer):
        writer.write("\r\n".join(lines).encode())
        await writer.drain()
        status, _, body = (await reader.read()).decode().partition("\r\n")
    if status.split(" ")[1:2] != ["200"]:
        raise CallFailed(status or "the connection was closed")
    said = json.loads(body.partition("\r\n\r\n")[2])
    return Answer(said["workload"], said["caller"], dict(said["headers"]))


async def tcp_echo(port: int, *, tls: ssl.SSLContext | None = None, text: bytes = b"hello") -> None:
    """One connection, a few bytes there and back.

    Raises:
        CallFailed: they did not come back.
    """
    async with _connection(port, tls) as (reader, writer):
        writer.write(text)
        await writer.drain()
        if (found := await reader.readexactly(len(text))) != text:
            raise CallFailed(f"other bytes came back: {found!r}")


def tls_client(chain: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """A TLS client that takes any server and presents this certificate, or none: it is the server that is on trial."""
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(_MESH_ALPN)
    if chain:
        context.load_cert_chain(chain, key)
    return context


@asynccontextmanager
async def _connection(
    port: int, tls: ssl.SSLContext | None
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    try:
        async with asyncio.timeout(_TIMEOUT):
            reader, writer = await asyncio.open_connection(_LOOPBACK, port, ssl=tls)
            try:
                yield reader, writer
            finally:
                writer.close()
                with suppress(OSError):
                    await writer.wait_closed()
    except (OSError, EOFError) as error:
        raise CallFailed(f"{type(error).__name__}: {error}") from error
