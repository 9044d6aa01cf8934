"""The way to the CA: TLS by a context that knows the CA from others, and a new connection when we renew.

A connection proves what was true at its handshake. So whenever our own SVID is replaced, calls go over a new
connection from then on; the old one ends when the calls on it are done, and with it the streams that are still open.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from datetime import timedelta

from google.protobuf.message import Message

from istio_auth.door import Portal
from istio_auth.errors import IstioAuthError, NotReady, UnknownMethod
from istio_auth.host_port import HostPort
from istio_auth.rpc.channel import Channel
from node_agent.ca_client.port import Metadata, NotOffered, Response

_LARGEST_ANSWER = 64 << 20  # all registrations at once, of the largest file that the CA takes, and more


@dataclass(eq=False)
class _Line:
    """One connection, and how many calls are on it."""

    channel: Channel
    stack: AsyncExitStack
    calls: int = 0
    quiet: asyncio.Event = field(default_factory=asyncio.Event)


class CALink:
    """Makes calls to one CA (see `Calls`), over connections that `close` ends.

    Args:
        address: where the CA is.
        context: decides who is the CA, and what we present; speaks h2.
    """

    def __init__(self, address: HostPort, context: ssl.SSLContext) -> None:
        self._address, self._context = address, context
        self._line: _Line | None = None
        self._opening = asyncio.Lock()
        self._retiring: set[asyncio.Task[None]] = set()

    async def unary(
        self,
        path: str,
        request: Message,
        response_type: type[Response],
        *,
        timeout: timedelta,  # noqa: ASYNC109  # it becomes the call's deadline, which the CA is told
        metadata: Metadata = (),
    ) -> Response:
        """See `Calls.unary`."""
        line = await self._open()
        line.calls += 1
        try:
            return await line.channel.unary(path, request, response_type, timeout=timeout, metadata=metadata)
        except IstioAuthError as error:
            raise _told(error) from error
        finally:
            line.calls -= 1
            if not line.calls:
                line.quiet.set()

    async def stream(
        self, path: str, requests: AsyncIterator[Message], response_type: type[Response]
    ) -> AsyncIterator[Response]:
        """See `Calls.stream`."""
        line = await self._open()
        try:
            async for response in line.channel.stream(path, requests, response_type):
                yield response
        except IstioAuthError as error:
            raise _told(error) from error
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            # Nobody cancelled us: this is how gRPC tells that the channel under the call was closed.
            raise NotReady("the connection to the CA was replaced") from None

    def renew(self) -> None:
        """Use a new connection from now on: what we present has changed."""
        if (line := self._line) is not None:
            self._line = None
            retiring = asyncio.create_task(self._retire(line))
            self._retiring.add(retiring)
            retiring.add_done_callback(self._retiring.discard)

    async def close(self) -> None:
        """End all connections, whatever is on them."""
        for retiring in self._retiring:
            retiring.cancel()
        await asyncio.gather(*self._retiring, return_exceptions=True)
        if (line := self._line) is not None:
            self._line = None
            await line.stack.aclose()

    async def _open(self) -> _Line:
        async with self._opening:
            if self._line is None:
                async with AsyncExitStack() as stack:
                    portal = await stack.enter_async_context(
                        Portal(self._address.host, self._address.port, self._context)
                    )
                    channel = await stack.enter_async_context(Channel(portal, max_response_bytes=_LARGEST_ANSWER))
                    self._line = _Line(channel, stack.pop_all())
            return self._line

    async def _retire(self, line: _Line) -> None:
        try:
            while line.calls:
                line.quiet.clear()
                await line.quiet.wait()
        finally:
            await line.stack.aclose()


def _told(error: IstioAuthError) -> IstioAuthError:
    """The error as the port names it."""
    return NotOffered(str(error)) if isinstance(error, UnknownMethod) else error
