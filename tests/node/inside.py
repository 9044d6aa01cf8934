"""What runs in the tests' pods: software that uses this project's library, as a workload does.

    python -m tests.node.inside who <where> [<seconds>]
    python -m tests.node.inside follow <where> <count>
    python -m tests.node.inside serve <where> <SPIFFE ID of the only client>
    python -m tests.node.inside call <where> <address> <SPIFFE ID of the server>

`<where>` is a folder with files, or a socket with the Workload API. Each prints what it sees as lines of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import ssl
import sys
from collections.abc import Callable, Coroutine
from datetime import timedelta

from istio_auth import FileSource, SpiffeID, WorkloadAPISource, client_context, is_id, peer_id, server_context
from istio_auth.sources.source import Source
from istio_auth.svid import X509SVID

PORT = 8443
_PATIENCE = timedelta(seconds=120)


def source_at(where: str) -> Source:
    """The pod's identity."""
    return WorkloadAPISource(f"unix://{where}") if where.endswith(".sock") else FileSource(where)


async def who(where: str, seconds: str = "") -> None:
    """Tell who this pod is, if that is known within so many seconds."""
    with source_at(where) as source:
        await source.ready(timedelta(seconds=int(seconds)) if seconds else _PATIENCE)
        context = source.x509_context()
        bundle = context.bundle(context.svid.id.trust_domain)
        tell(**seen_of(context.svid), uid=os.getuid(), roots=len(bundle.x509_authorities))


async def follow(where: str, count: str) -> None:
    """Tell each certificate until there were so many."""
    serials: set[int] = set()
    with source_at(where) as source:
        await source.ready(_PATIENCE)
        async for context in source.updates():
            if context.svid.leaf.serial_number not in serials:
                serials.add(context.svid.leaf.serial_number)
                tell(**seen_of(context.svid))
            if len(serials) == int(count):
                return


async def serve(where: str, client: str) -> None:
    """Tell when it serves; greet one client, and tell why others are refused, for ever."""
    with source_at(where) as source, socket.create_server(("0.0.0.0", PORT)) as listening:
        await source.ready(_PATIENCE)
        context = server_context(source, is_id(SpiffeID.parse(client)))
        tell(listening=PORT)
        await asyncio.to_thread(_greet_all, listening, context)


def _greet_all(listening: socket.socket, context: ssl.SSLContext) -> None:
    while True:
        try:
            with context.wrap_socket(listening.accept()[0], server_side=True) as connection:
                connection.recv(100)
                connection.sendall(f"{peer_id(connection)}\n".encode())
        except OSError as error:  # of TLS too
            tell(refused=str(error))


async def call(where: str, address: str, server: str) -> None:
    """Call a server, and tell whom it has seen in us, or why nothing came of it."""
    with source_at(where) as source:
        await source.ready(_PATIENCE)
        context = client_context(source, is_id(SpiffeID.parse(server)))
        try:
            reader, writer = await asyncio.open_connection(address, PORT, ssl=context)
            writer.write(b"hello\n")
            answer = (await reader.readline()).decode().strip()
            writer.close()
        except OSError as error:
            tell(refused=str(error))
        else:
            tell(greeted=answer)


def seen_of(svid: X509SVID) -> dict[str, str]:
    """What there is to tell of an SVID whose key and certificate fit, for else it would be none."""
    return {"spiffe_id": str(svid.id), "serial": f"{svid.leaf.serial_number:x}"}


def tell(**facts: object) -> None:
    """Print a line of JSON at once."""
    print(json.dumps(facts), flush=True)


_COMMANDS: dict[str, Callable[..., Coroutine[object, object, None]]] = {
    each.__name__: each for each in (who, follow, serve, call)
}


if __name__ == "__main__":
    asyncio.run(_COMMANDS[sys.argv[1]](*sys.argv[2:]))
