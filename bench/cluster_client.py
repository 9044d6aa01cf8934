"""The reference of `bench.cluster`: a bare client that creates secrets of ready-made content, and knows nothing else.

aiohttp and JSON; no keys, no certificates, no decisions and no watch. Reads lines of JSON that say which secrets, and
answers each when they are there, with the seconds and the processor time it took.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections.abc import Iterator, Sequence

import aiohttp

from bench.kubeconfig import JSON, address, tls_context

TYPE = "bench.invalid/key-and-cert"  # so that no CA looks at them


def secret(namespace: str, account: dict[str, str], data: dict[str, str]) -> JSON:
    """A secret of the same form and size as that of a service account."""
    owner = {"apiVersion": "v1", "kind": "ServiceAccount", "name": account["name"], "uid": account["uid"]}
    metadata = {
        "name": f"bare.{account['name']}",
        "namespace": namespace,
        "labels": {"bench.invalid/issued-by": "istio-system"},
        "annotations": {"bench.invalid/service-account.name": account["name"]},
        "ownerReferences": [owner],
    }
    return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": TYPE, "data": data}


async def _create(session: aiohttp.ClientSession, url: str, bodies: Iterator[JSON]) -> None:
    headers = {"Content-Type": "application/json"}
    for body in bodies:  # shared by all workers: each takes the next
        async with session.post(url, data=json.dumps(body), headers=headers) as answer:
            await answer.read()
            assert answer.status == 201, answer.status


async def _created(kubeconfig: str, order: JSON) -> dict[str, float]:
    namespace, accounts, data = order["namespace"], order["accounts"], order["data"]
    connector = aiohttp.TCPConnector(ssl=tls_context(kubeconfig), limit=0)
    async with aiohttp.ClientSession(address(kubeconfig), connector=connector) as session:
        url = f"/api/v1/namespaces/{namespace}/secrets"

        async def fill(some: Sequence[dict[str, str]]) -> None:
            bodies = (secret(namespace, account, data) for account in some)
            await asyncio.gather(*(_create(session, url, bodies) for _ in range(order["workers"])))

        async with session.get(url, params={"limit": "1"}) as answer:
            await answer.read()
        begin, cpu = time.perf_counter(), time.process_time()
        await fill(accounts)
        return {"seconds": time.perf_counter() - begin, "cpu": time.process_time() - cpu}


def main() -> None:
    """Answer the lines on standard input."""
    for line in sys.stdin:
        print(json.dumps(asyncio.run(_created(sys.argv[1], json.loads(line)))), flush=True)


if __name__ == "__main__":
    main()
