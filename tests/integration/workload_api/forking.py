"""A program that forks while it follows a Workload API, and tells what each process saw. Its argument says how."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta

import grpc

from istio_auth import JWTSource, NotReady, WorkloadAPISource
from istio_auth.workload_api import BlockingWorkloadAPIClient, WorkloadAPIClient

PATIENCE = timedelta(seconds=60)
FORKS = 25


def in_child(work: Callable[[], str]) -> str:
    """What the work says in a forked child."""
    reading, writing = os.pipe()
    if (child := os.fork()) == 0:
        signal.alarm(int(PATIENCE.total_seconds()) + 5)  # hanging is a failure, too
        try:
            answer = work()
        except Exception as error:  # noqa: BLE001  # the other process tells
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as answers:
        answer = answers.read()
    _, status = os.waitpid(child, 0)
    return answer if status == 0 else f"ended with status {status}"


def wait_for(condition: Callable[[], bool]) -> None:
    """What a child has had comes to its parent too, sooner or later."""
    over = time.monotonic() + PATIENCE.total_seconds()
    while not condition() and time.monotonic() < over:
        time.sleep(0.005)


def renewed(source: WorkloadAPISource) -> str:
    """What the source holds after something has come that it did not have."""
    before, changed = source.x509_context(), threading.Event()
    source.subscribe(changed.set)
    print("waiting", flush=True)
    assert changed.wait(PATIENCE.total_seconds())
    assert source.x509_context() is not before
    return str(source.svid().id)


def follow() -> None:
    """The child follows, and so does the parent."""
    with WorkloadAPISource() as source:
        source.wait_until_ready(PATIENCE)
        said = in_child(lambda: renewed(source))
        wait_for(lambda: str(source.svid().id) == said)
        print(said, flush=True)
        print(renewed(source), flush=True)


def many() -> None:
    """Fork again and again, each time a child that needs an answer."""
    with WorkloadAPISource() as source:
        source.wait_until_ready(PATIENCE)

        def ask() -> str:
            with BlockingWorkloadAPIClient(timeout=PATIENCE) as client:
                return str(client.fetch_x509_context().svid.id)

        print({in_child(ask) for _ in range(FORKS)}, flush=True)


def foreign() -> None:
    """Fork while somebody else in this process uses gRPC."""
    with grpc.insecure_channel("unix:///nowhere") as channel, WorkloadAPISource() as source:
        source.wait_until_ready(PATIENCE)
        assert channel

        def use() -> str:
            try:
                return str(source.svid().id)
            except NotReady as error:
                with BlockingWorkloadAPIClient() as client, suppress(NotReady):
                    return f"answered: {client.fetch_x509_context()}"
                return str(error)

        print(in_child(use), flush=True)
        source.wait_until_ready(PATIENCE)


def asynchronous() -> None:
    """Fork in an event loop where gRPC's asyncio interface was used."""

    async def ask() -> str:
        async with WorkloadAPIClient() as client:
            return str((await client.fetch_x509_context()).svid.id)

    async def main() -> None:
        async with WorkloadAPIClient() as client:
            await client.fetch_x509_context()
            print(in_child(_in_a_new_loop), flush=True)
            print((await client.fetch_x509_context()).svid.id, flush=True)

    def _in_a_new_loop() -> str:
        asyncio.events._set_running_loop(None)  # what a fork copies
        return asyncio.run(ask())

    asyncio.run(main())


def unused() -> None:
    """A child that never uses what it got ends well, and so does one that closes it."""
    source = WorkloadAPISource()
    source.wait_until_ready(PATIENCE)

    def close() -> str:
        source.close()
        try:
            source.x509_context()
        except NotReady as error:
            return str(error)
        return "open"

    print(in_child(lambda: "nothing"), flush=True)
    print(in_child(close), flush=True)
    print(source.svid().id, flush=True)  # and is not closed: a program may just end


def tokens() -> None:
    """The child has what was fetched before, follows the bundles and fetches by itself, and so does the parent."""
    with JWTSource() as source:
        source.wait_until_ready(PATIENCE)
        before = source.fetch("db")

        def key_id() -> str:
            (key,) = source.bundle(before.id.trust_domain).keys.keys
            return str(key.key_id)

        def use() -> str:
            changed = threading.Event()
            source.subscribe(changed.set)
            print("waiting", flush=True)
            assert changed.wait(PATIENCE.total_seconds())
            return f"{key_id()} {source.fetch('other').audiences[0]}"

        def use_in_child() -> str:
            assert source.fetch("db") is before
            return use()

        print(told := in_child(use_in_child), flush=True)
        wait_for(lambda: told.startswith(f"{key_id()} "))
        print(use(), flush=True)


if __name__ == "__main__":
    ways = (follow, many, foreign, asynchronous, unused, tokens)
    {way.__name__: way for way in ways}[sys.argv[1]]()
