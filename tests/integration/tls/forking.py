"""A process that forks while its threads rotate an SVID and make connections; each child makes some of its own.

Not in the middle of a handshake of another thread: OpenSSL and cryptography have locks of their own (of random numbers,
of algorithms, of what they keep), and one that is held at the fork is held in the child for ever.

Prints one word for each child: `welcome` if a peer of the mesh got in there, `refused` if a stranger did not.
"""

from __future__ import annotations

import os
import signal
import threading
import traceback
from collections.abc import Callable

from istio_auth.authorize import any_id
from istio_auth.sources.memory import MemorySource
from istio_auth.tls import client_context, server_context
from istio_auth.x509_source import X509Context
from tests.fakes.tls import meet, stranger, talk
from tests.vectors.x509_svid import ALL, BUNDLES, KEY, LOCAL

CHILDREN = 10  # of each kind
SECONDS = 60  # that a child has


class Service:
    """What a program holds that starts, and then forks."""

    def __init__(self) -> None:
        self.prepared = [X509Context((LOCAL.svid("/service"),), BUNDLES) for _ in range(4)]
        self.source = MemorySource(self.prepared[0])
        self.server = server_context(self.source, any_id())
        self.client = client_context(self.source, any_id())
        self.ended = threading.Event()
        self.turnstile, self.handshake = threading.Lock(), threading.Lock()

    def rotate(self) -> None:
        while not self.ended.is_set():
            for held in self.prepared:
                self.source.replace(held)

    def connect(self) -> None:
        while not self.ended.is_set():
            with self.turnstile:
                pass
            with self.handshake:
                talk(*meet(self.client, self.server))

    def welcomes(self) -> str:
        """What a peer of the mesh is told, now and after a rotation."""
        talk(*meet(self.client, self.server))
        self.source.replace(self.prepared[-1])
        talk(*meet(self.client, self.server))
        return "welcome"

    def refuses(self) -> str:
        """What a stranger is told."""
        chain = ALL["local-name-signed-by-federated-ca"].wrong
        _, server = meet(stranger(server_side=False, chain=chain, key=KEY), self.server)
        assert "no path to the bundle of cluster.local" in str(server.refusal)
        return "refused"


def in_child(service: Service, work: Callable[[], str]) -> str:
    """What a child says that forks off here, between two handshakes."""
    reading, writing = os.pipe()
    with service.turnstile, service.handshake:
        child = os.fork()
    if child == 0:
        signal.alarm(SECONDS)  # a lock that nobody is there to release would hold for ever
        try:
            os.write(writing, work().encode())
        except BaseException:  # noqa: BLE001  # told below, in whatever state this process is
            traceback.print_exc()
        os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:  # noqa: PTH123  # a descriptor, not a path
        said = pipe.read().decode()
    os.waitpid(child, 0)
    return said or "nothing"


def main() -> None:
    """Fork many times."""
    service = Service()
    threads = [threading.Thread(target=service.rotate), *(threading.Thread(target=service.connect) for _ in range(2))]
    for thread in threads:
        thread.start()
    try:
        for work in (service.welcomes, service.refuses):
            for _ in range(CHILDREN):
                print(in_child(service, work), flush=True)
    finally:
        service.ended.set()
        for thread in threads:
            thread.join()
    print("parent", service.welcomes())


if __name__ == "__main__":
    main()
