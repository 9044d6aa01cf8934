"""The SDS clients of `bench.agent`: so many streams, each on a connection of its own, as so many Envoys have.

    python -m bench.agent_client unix:/path/of/the.sock

Reads lines of JSON on standard input. `{"streams": N, "names": [...]}` opens so many, of which number `i` asks for
`names[i % len(names)]` and ROOTCA, and answers when all have their secrets. `{"watch": true}` waits until each of them
has been sent something new and has accepted it, and answers with the instants at which it did. `{"calls": S}` asks the
Workload API for the SVIDs again and again for so many seconds, and answers how often in a second it was answered.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import AsyncIterator

import grpc
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse

METHOD = "/envoy.service.secret.v3.SecretDiscoveryService/StreamSecrets"
WORKLOAD_API = "/SpiffeWorkloadAPI/FetchX509SVID"
TYPE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"


class Stream:
    """One of them. It accepts whatever it is sent."""

    def __init__(self, target: str, number: int, names: list[str]) -> None:
        options = [
            ("grpc.use_local_subchannel_pool", 1),
            ("bench.number", number),
            ("grpc.initial_reconnect_backoff_ms", 10),
            ("grpc.max_reconnect_backoff_ms", 20),
        ]
        self._channel = grpc.aio.insecure_channel(target, options=options)
        self._names, self._acks = names, asyncio.Queue[DiscoveryRequest]()
        self.received = 0
        self.accepted_at = 0.0
        self._news = asyncio.Event()

    async def run(self) -> None:
        """Receive and accept."""
        call = self._channel.stream_stream(METHOD, DiscoveryRequest.SerializeToString, DiscoveryResponse.FromString)(
            self._sent(), wait_for_ready=True
        )
        async for answer in call:
            self._acks.put_nowait(self._request(answer.version_info, answer.nonce))
            self.received += len(answer.resources)
            self.accepted_at = time.time()
            self._news.set()

    async def has(self, count: int) -> float:
        """Wait until it was sent so many secrets; when it accepted the last of them."""
        while self.received < count:
            self._news.clear()
            await self._news.wait()
        return self.accepted_at

    async def _sent(self) -> AsyncIterator[DiscoveryRequest]:
        yield self._request("", "")
        while True:
            yield await self._acks.get()

    def _request(self, version: str, nonce: str) -> DiscoveryRequest:
        return DiscoveryRequest(resource_names=self._names, version_info=version, response_nonce=nonce, type_url=TYPE)


async def calls_per_second(target: str, seconds: float, *, at_once: int = 8) -> float:
    """How many calls of the Workload API are answered in a second, where so many are open at once."""
    end, answered = time.monotonic() + seconds, 0

    async def ask(number: int) -> None:
        nonlocal answered
        options = [("grpc.use_local_subchannel_pool", 1), ("bench.number", number)]
        async with grpc.aio.insecure_channel(target, options=options) as channel:
            fetch = channel.unary_stream(WORKLOAD_API, bytes, bytes)
            while time.monotonic() < end:
                call = fetch(b"", metadata=(("workload.spiffe.io", "true"),))
                await call.read()
                call.cancel()
                answered += 1

    await asyncio.gather(*map(ask, range(at_once)))
    return answered / seconds


async def _main(target: str) -> None:
    streams: list[Stream] = []
    running: list[asyncio.Task[None]] = []
    while line := await asyncio.to_thread(sys.stdin.readline):
        order = json.loads(line)
        if seconds := order.get("calls"):
            print(json.dumps({"per_second": await calls_per_second(target, seconds)}), flush=True)
            continue
        if order.get("watch"):
            counts = [stream.received for stream in streams]
            print(json.dumps({"watching": len(streams)}), flush=True)
            instants = await asyncio.gather(
                *(stream.has(count + 1) for stream, count in zip(streams, counts, strict=True))
            )
            print(json.dumps({"accepted": sorted(instants)}), flush=True)
            continue
        names = order["names"]
        for number in range(len(streams), order["streams"]):
            streams.append(Stream(target, number, [names[number % len(names)], "ROOTCA"]))
            running.append(asyncio.create_task(streams[-1].run()))
        await asyncio.gather(*(stream.has(2) for stream in streams))
        print(json.dumps({"streams": len(streams)}), flush=True)


def main() -> None:
    """Answer the lines on standard input."""
    asyncio.run(_main(sys.argv[1]))


if __name__ == "__main__":
    main()
