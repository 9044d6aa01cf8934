"""Where a door listens: the same for TLS, health and metrics, whatever an operator writes."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Iterator
from contextlib import closing

import pytest

from istio_auth.door import Door
from istio_auth.door.tcp_socket import listening_sockets
from istio_auth.errors import ConfigurationError, NotReady
from tests.fakes.waiting import until


@pytest.fixture(name="context")
def _context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


def greeted(port: int) -> Iterator[str]:
    for there in ("127.0.0.1", "::1"):
        socket.create_connection((there, port), timeout=60).close()
        yield there


@pytest.mark.parametrize("host", ["", "::"])
async def test_both_families_are_served_at_one_port(host: str, context: ssl.SSLContext) -> None:
    async with Door() as door:
        _, port = await door.listen_tls(host, 0, context)
        assert list(greeted(port)) == ["127.0.0.1", "::1"]


async def test_a_caller_over_ipv4_is_called_so(context: ssl.SSLContext, caplog: pytest.LogCaptureFixture) -> None:
    async with Door() as door:
        _, port = await door.listen_tls("", 0, context)
        _, caller = await asyncio.open_connection("127.0.0.1", port)
        caller.write(b"GET / HTTP/1.1\r\n\r\n")
        await until(lambda: door.refused == 1)
        caller.close()
    assert "127.0.0.1:" in caplog.text
    assert "ffff" not in caplog.text


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_one_address_is_one_address(host: str, context: ssl.SSLContext) -> None:
    async with Door() as door:
        taken, port = await door.listen_tls(host, 0, context)
        assert taken == host
        with pytest.raises(OSError, match="refused"):
            list(greeted(port))


def test_a_port_that_somebody_else_has_may_be_free_later() -> None:
    (first,) = listening_sockets("127.0.0.1", 0)
    with closing(first), pytest.raises(NotReady, match="in use"):
        listening_sockets("127.0.0.1", first.getsockname()[1])


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_that_is_not_of_this_machine_is_a_mistake_of_the_operator(host: str) -> None:
    with pytest.raises(ConfigurationError):
        listening_sockets(host, 0)
