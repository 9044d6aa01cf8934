"""The reference of `bench.pod_certificates`: a bare client that writes ready-made answers to requests for certificates.

aiohttp and JSON; no watch, no decisions, no keys and no issuance log. Reads lines of JSON with whole requests, their
statuses filled in, and answers each when they are written, with the seconds and the processor time it took.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator

import aiohttp

from bench.kubeconfig import JSON, address, tls_context


async def _write(session: aiohttp.ClientSession, url: str, bodies: Iterator[JSON]) -> None:
    headers = {"Content-Type": "application/json"}
    for body in bodies:  # shared by all workers: each takes the next
        path = f"{url}/{body['metadata']['name']}/status"
        async with session.put(path, data=json.dumps(body), headers=headers) as answer:
            text = await answer.text()
            assert answer.status == 200, text


async def _written(kubeconfig: str, order: JSON) -> dict[str, float]:
    connector = aiohttp.TCPConnector(ssl=tls_context(kubeconfig), limit=0)
    async with aiohttp.ClientSession(address(kubeconfig), connector=connector) as session:
        bodies = iter(order["bodies"])
        begin, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*(_write(session, order["url"], bodies) for _ in range(order["workers"])))
        return {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - cpu}


def main() -> None:
    """Answer the lines on standard input."""
    for line in sys.stdin:
        print(json.dumps(asyncio.run(_written(sys.argv[1], json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
