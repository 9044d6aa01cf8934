"""Handshakes and streams of our TLS contexts, as shares of Python's own with the same certificates in the same run.

    python -m bench.tls [--json] [--rounds N] [--slice SECONDS]

`plain` is the standard library: both ends demand a certificate and OpenSSL checks it against the same root. Ours does
that as well, then judges the peer by SPIFFE's rules and asks the authorizer. `rotating` is ours while both ends get a
new SVID each 100 ms; plain contexts can not do that, so it too is compared with plain at rest. Both ends of all
connections are in one process, so a handshake here is the work of both.

All of them take turns within each round, and each share is the median over the rounds: the machine's noise falls on
all alike.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass

from bench.tls_ends import AT_ONCE, CHUNK, MESSAGE, Blocking, InAsyncio, Pair, Workload, ours, plain, rotating
from istio_auth.tls.contexts import FollowingContext

SLICE_SECONDS = 0.3  # of handshakes by each contestant in each round, with a few rotations in it
STREAM_BYTES = 16 << 20
MESSAGES = 1000
_WAYS = (Blocking(), InAsyncio())
_SLICE = f"how long each contestant makes handshakes in each round (default {SLICE_SECONDS})"
_ROTATION = "One rotation costs a server {:.2f} ms and a client {:.2f} ms, once, before the next handshake."
_EXPLANATION = (
    f"Handshakes: one at a time (blocking), {AT_ONCE} at once (asyncio), both ends in this process. Established: in"
    f" chunks of {CHUNK >> 10} KiB, and messages of {len(MESSAGE)} bytes there and back. Medians."
)


@dataclass(frozen=True)
class Handshakes:
    """Of one way to make them: how many a second, ours as shares of plain's, the slowest of a hundred, and CPU time.

    CPU time is that of both ends, and says more than rates where others use the machine too.
    """

    way: str
    plain_per_second: float
    ours_per_second: float
    rotating_per_second: float
    ours_share: float
    rotating_share: float
    plain_p99_ms: float
    ours_p99_ms: float
    rotating_p99_ms: float
    plain_cpu_ms: float
    ours_cpu_ms: float
    rotating_cpu_ms: float
    ours_cpu_overhead: float


@dataclass(frozen=True)
class Stream:
    """What an established connection carries a second, and ours as a share of plain."""

    way: str
    unit: str
    plain_per_second: float
    ours_per_second: float
    share: float


@dataclass(frozen=True)
class Rotation:
    """What it takes until a context is ready for the next handshake after its source has changed."""

    server_ms: float
    client_ms: float


@dataclass(frozen=True)
class Figures:
    """All of them."""

    handshakes: list[Handshakes]
    streams: list[Stream]
    rotation: Rotation


class Mesh:
    """A server and a client in all shapes."""

    def __init__(self) -> None:
        self.server, self.client = Workload("/server"), Workload("/client")
        self.plain, self.ours = plain(self.server, self.client), ours(self.server, self.client)

    def rotating(self) -> AbstractContextManager[None]:
        """Rotate both ends meanwhile."""
        return rotating(self.server, self.client)


def measure_handshakes(mesh: Mesh, way: Blocking | InAsyncio, rounds: int, seconds: float) -> Handshakes:
    """The figures of handshakes made in one way."""
    contestants: tuple[tuple[Pair, Callable[[], AbstractContextManager[None]]], ...] = (
        (mesh.plain, contextlib.nullcontext),
        (mesh.ours, contextlib.nullcontext),
        (mesh.ours, mesh.rotating),
    )
    rates: list[list[float]] = [[] for _ in contestants]
    times: list[list[float]] = [[] for _ in contestants]
    costs: list[list[float]] = [[] for _ in contestants]
    for number in range(rounds + 1):
        for which, (pair, meanwhile) in enumerate(contestants):
            began = time.process_time()
            with meanwhile():
                took = way.handshakes(pair, seconds)
            if number:  # the first fills caches
                costs[which].append((time.process_time() - began) / len(took.each))
                rates[which].append(took.rate)
                times[which].extend(took.each)
    rate, cpu = [statistics.median(each) for each in rates], [statistics.median(each) * 1e3 for each in costs]
    slowest = [_p99(each) * 1e3 for each in times]
    return Handshakes(
        way.name,
        plain_per_second=round(rate[0], 1),
        ours_per_second=round(rate[1], 1),
        rotating_per_second=round(rate[2], 1),
        ours_share=_share(rates[0], rates[1]),
        rotating_share=_share(rates[0], rates[2]),
        plain_p99_ms=round(slowest[0], 2),
        ours_p99_ms=round(slowest[1], 2),
        rotating_p99_ms=round(slowest[2], 2),
        plain_cpu_ms=round(cpu[0], 3),
        ours_cpu_ms=round(cpu[1], 3),
        rotating_cpu_ms=round(cpu[2], 3),
        ours_cpu_overhead=_share(costs[0], costs[1]),
    )


def measure_stream(
    way: str, unit: str, amount: float, contestants: Sequence[Callable[[], float]], rounds: int
) -> Stream:
    """The figures of one kind of traffic: each contestant tells the seconds that one amount of it takes."""
    rates: list[list[float]] = [[] for _ in contestants]
    for number in range(rounds + 1):
        for each, seconds in zip(rates, contestants, strict=True):
            rate = amount / seconds()
            if number:
                each.append(rate)
    of_plain, of_ours = (round(statistics.median(each), 1) for each in rates)
    return Stream(way, unit, of_plain, of_ours, _share(*rates))


def measure_rotation(mesh: Mesh, rounds: int) -> Rotation:
    """What a rotation costs each end."""

    def cost(workload: Workload, context: object) -> float:
        assert isinstance(context, FollowingContext)
        taken: list[float] = []
        for _ in range(10 * rounds):
            workload.rotate()
            started = time.perf_counter()
            context.current()
            taken.append(time.perf_counter() - started)
        return round(statistics.median(taken) * 1e3, 3)

    return Rotation(cost(mesh.server, mesh.ours.server), cost(mesh.client, mesh.ours.client))


def measure(rounds: int, seconds: float) -> Figures:
    """All figures."""
    mesh = Mesh()
    handshakes = [measure_handshakes(mesh, way, rounds, seconds) for way in _WAYS]
    streams: list[Stream] = []
    pairs = (mesh.plain, mesh.ours)
    for way in _WAYS:
        bulk = [lambda pair=pair, way=way: way.stream(pair, STREAM_BYTES) for pair in pairs]
        short = [lambda pair=pair, way=way: way.messages(pair, MESSAGES) for pair in pairs]
        streams.append(measure_stream(way.name, "MB", STREAM_BYTES / 1e6, bulk, rounds))
        streams.append(measure_stream(way.name, "messages", MESSAGES, short, rounds))
    return Figures(handshakes, streams, measure_rotation(mesh, rounds))


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.tls", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--rounds", type=int, default=20, help="more rounds, less noise (default 20)")
    parser.add_argument("--slice", type=float, default=SLICE_SECONDS, metavar="SECONDS", help=_SLICE)
    arguments = parser.parse_args()
    figures = measure(arguments.rounds, arguments.slice)
    print(json.dumps(asdict(figures), indent=2) if arguments.json else _table(figures))


def _share(whole: Sequence[float], part: Sequence[float]) -> float:
    return round(statistics.median(one / other for one, other in zip(part, whole, strict=True)), 3)


def _p99(times: Sequence[float]) -> float:
    return sorted(times)[int(len(times) * 0.99)]


def _table(figures: Figures) -> str:
    head = f"{'handshakes/s':<14}{'plain':>8}{'ours':>8}{'share':>7}{'rotating':>10}{'share':>7}"
    lines = [f"{head}  {'p99 in ms of each':<24}CPU in ms of each"]
    lines += [
        f"{one.way:<14}{one.plain_per_second:>8.0f}{one.ours_per_second:>8.0f}{one.ours_share:>7.2f}"
        f"{one.rotating_per_second:>10.0f}{one.rotating_share:>7.2f}"
        f"{one.plain_p99_ms:>8.1f}{one.ours_p99_ms:>8.1f}{one.rotating_p99_ms:>8.1f}"
        f"{one.plain_cpu_ms:>7.2f}{one.ours_cpu_ms:>7.2f}{one.rotating_cpu_ms:>7.2f} (x{one.ours_cpu_overhead:.2f})"
        for one in figures.handshakes
    ]
    lines += ["", f"{'established':<14}{'plain':>8}{'ours':>8}{'share':>7}"]
    lines += [
        f"{one.way:<14}{one.plain_per_second:>8.0f}{one.ours_per_second:>8.0f}{one.share:>7.2f}   {one.unit}/s"
        for one in figures.streams
    ]
    lines += ["", _ROTATION.format(figures.rotation.server_ms, figures.rotation.client_ms), _EXPLANATION]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
