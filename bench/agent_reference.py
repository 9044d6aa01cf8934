"""The reference of `bench.agent`: a bare gRPC server that pushes the same bytes to as many streams, and knows nothing.

    python -m bench.agent_reference /path/of/the.sock

No callers are looked at, nothing is subscribed, compared or counted. Calls of the Workload API are all answered with
the same bytes. Each line on standard input is a push to all
streams: `{"bytes": N}` of a secret with so many bytes of content; it is answered with the instant before the push.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator

import grpc
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryResponse

from bench.agent_client import METHOD, TYPE, WORKLOAD_API


class Server:
    """Pushes."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[bytes]] = set()
        self._content = _answer(2, 1)

    async def stream(
        self, requests: AsyncIterator[bytes], _context: grpc.aio.ServicerContext[bytes, bytes]
    ) -> AsyncIterator[bytes]:
        """One stream."""
        queue = asyncio.Queue[bytes]()
        self._queues.add(queue)

        async def listen() -> None:
            async for _ in requests:
                pass

        listening = asyncio.create_task(listen())
        try:
            yield self._content
            while True:
                yield await queue.get()
        finally:
            self._queues.discard(queue)
            listening.cancel()

    async def fetch(self, _request: bytes, _context: grpc.aio.ServicerContext[bytes, bytes]) -> AsyncIterator[bytes]:
        """One stream of the Workload API."""
        yield self._content
        await asyncio.Event().wait()

    def push(self, size: int) -> None:
        """Send something new to all."""
        self._content = _answer(2, size)
        for queue in self._queues:
            queue.put_nowait(self._content)


def _answer(secrets: int, size: int) -> bytes:
    answer = DiscoveryResponse(version_info=str(time.time()), nonce=str(time.time()), type_url=TYPE)
    for number in range(secrets):
        secret = Secret(name=str(number))
        secret.tls_certificate.certificate_chain.inline_bytes = b"x" * size
        answer.resources.add(type_url=TYPE, value=secret.SerializeToString())
    data: bytes = answer.SerializeToString()
    return data


async def _main(path: str) -> None:
    service = Server()
    server = grpc.aio.server()
    for path_of, handler in (
        (METHOD, grpc.stream_stream_rpc_method_handler(service.stream)),
        (WORKLOAD_API, grpc.unary_stream_rpc_method_handler(service.fetch)),
    ):
        _, name, method = path_of.split("/")
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(name, {method: handler}),))
    server.add_insecure_port(f"unix:{path}")
    await server.start()
    print(json.dumps({"ready": 1}), flush=True)
    while line := await asyncio.to_thread(sys.stdin.readline):
        began = time.time()
        service.push(json.loads(line)["bytes"])
        print(json.dumps({"began": began}), flush=True)
    await server.stop(0)


def main() -> None:
    """Serve until standard input ends."""
    asyncio.run(_main(sys.argv[1]))


if __name__ == "__main__":
    main()
