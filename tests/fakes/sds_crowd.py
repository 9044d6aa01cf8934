"""Many SDS clients in a process of their own, which behave as badly as a test wants it.

    python -m tests.fakes.sds_crowd SOCKET BEHAVIOUR CONNECTIONS STREAMS

STREAMS are those of each connection. BEHAVIOUR is one of

* `envoys`: ask for `default` and ROOTCA, accept what comes, and come back whenever the stream ends;
* `acks`, `nacks`: accept, or refuse, the latest answer again and again, as fast as it goes;
* `opens`: open the streams, ask, and never accept; each that ends is opened again at once.

For each line on standard input it writes one: how many streams have been sent both secrets since they last began, how
many were refused with RESOURCE_EXHAUSTED, and the latest words of such a refusal.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator

import grpc
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse

from node_agent.sds.secrets import SECRET_TYPE
from tests.fakes.sds_client import SERVICE

_NAMES = ("default", "ROOTCA")


class Crowd:
    """All of them."""

    def __init__(self, behaviour: str) -> None:
        self.behaviour = behaviour
        self.served: set[int] = set()
        self.refused = 0
        self.words = ""

    async def one(self, channel: grpc.aio.Channel, number: int) -> None:
        """One stream after the other, for ever."""
        while True:
            try:
                await self._stream(channel, number)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
                    self.refused += 1
                    self.words = error.details() or ""
            self.served.discard(number)
            await asyncio.sleep(0.05 if self.behaviour == "envoys" else 0)

    async def _stream(self, channel: grpc.aio.Channel, number: int) -> None:
        answers: asyncio.Queue[DiscoveryResponse] = asyncio.Queue()

        async def requests() -> AsyncIterator[DiscoveryRequest]:
            yield _request(DiscoveryResponse())
            while True:
                answer = await answers.get()
                yield _request(answer, refuse=self.behaviour == "nacks")
                while self.behaviour in ("acks", "nacks") and answers.empty():
                    yield _request(answer, refuse=self.behaviour == "nacks")
                    await asyncio.sleep(0)

        call = channel.stream_stream(
            f"{SERVICE}/StreamSecrets", DiscoveryRequest.SerializeToString, DiscoveryResponse.FromString
        )(requests(), wait_for_ready=True)
        async for answer in call:
            if len(answer.resources) == len(_NAMES):
                self.served.add(number)
            if self.behaviour != "opens":
                answers.put_nowait(answer)


def _request(answer: DiscoveryResponse, *, refuse: bool = False) -> DiscoveryRequest:
    request = DiscoveryRequest(
        resource_names=_NAMES,
        type_url=SECRET_TYPE,
        version_info="" if refuse else answer.version_info,
        response_nonce=answer.nonce,
    )
    request.node.id = "crowd"
    if refuse:
        request.error_detail.message = "no"
    return request


def _channel(path: str, number: int) -> grpc.aio.Channel:
    options = [
        ("grpc.use_local_subchannel_pool", 1),
        ("crowd.number", number),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.max_reconnect_backoff_ms", 500),
    ]
    return grpc.aio.insecure_channel(f"unix:{path}", options=options)


async def _main(path: str, behaviour: str, connections: int, streams: int) -> None:
    crowd = Crowd(behaviour)
    channels = [_channel(path, number) for number in range(connections)]
    running = [
        asyncio.create_task(crowd.one(channel, place * streams + number))
        for place, channel in enumerate(channels)
        for number in range(streams)
    ]
    while await asyncio.to_thread(sys.stdin.readline):
        told = {"served": len(crowd.served), "refused": crowd.refused, "words": crowd.words, "running": len(running)}
        print(json.dumps(told), flush=True)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
