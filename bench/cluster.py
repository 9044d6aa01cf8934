"""Secrets of service accounts at a real API server: how fast, how dear, and what bare clients would do instead.

    python -m bench.cluster [--json] [--accounts N] [--changes K]

The API server, etcd and controller manager are those of `tests.cluster`; the CA is its daemon, with its logs and its
synced issuance log. Service accounts stand in five namespaces that nobody manages. `created`: one namespace after the
other becomes managed, and is filled; in turns with it a bare client (`bench/cluster_client.py`, in a process of its
own) creates as many secrets of the same form and size, by as many workers, so that the machine's noise falls on all. It
does so twice: with a key and a certificate made for each, which is the same work, and with ready-made content, which is
what the API server allows.
`one change`: a secret is deleted, and comes back, one at a time. `new root`: a CA is plugged in, until every secret
holds the new trust bundle. `restart`: the CA ends and starts anew, until it has looked at everything.

`CPU` is the processor time of the CA alone, `servers` that of the API server and etcd; `calls` are the CA's by its own
metric, `writes` those to secrets by the API server's. All of it is for one secret.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
import os
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from bench.cluster_ca import NAMESPACE, Cost, MeasuredCA, at_once, measured_ca, soon
from bench.process import Party, party, peak_megabytes
from ca.certificate.build import self_signed_root
from ca.config import ControllerSettings
from ca.controller.namespaces import OVERRIDE_LABEL
from ca.controller.snapshot import SECRET_TYPE
from ca.profile import Validity
from istio_auth.keys import new_private_key
from istio_auth.pem import read_certificates, write_certificates, write_private_key
from istio_auth.spiffe_id import TrustDomain
from tests.cluster.build import built
from tests.cluster.client import JSON, Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.waiting import appears

NAMESPACES = 5
WORKERS = ControllerSettings().workers
AIM_RATE, AIM_MEGABYTES, AIM_CHANGE_MS = 0.9, 250, 50
SETTLE = "1s"
_CORE = "/api/v1/namespaces"


@dataclass(frozen=True)
class Phase:
    """What was done to so many secrets, and what it cost for one of them."""

    what: str
    secrets: int
    seconds: float
    cpu_ms: float
    servers_cpu_ms: float
    calls: float
    writes: float
    peak_megabytes: float


@dataclass(frozen=True)
class Bare:
    """A namespace filled by a bare client: the seconds, its processor time, and that of the servers meanwhile."""

    seconds: float
    cpu: float
    servers_cpu: float


@dataclass(frozen=True)
class Filled:
    """The same namespace filled by all three; `ours` in seconds."""

    secrets: int
    ours: float
    bare: Bare
    ready: Bare


@dataclass(frozen=True)
class Result:
    """All of it.

    Args:
        accounts: how many service accounts there were.
        phases: in their order.
        ours_per_second: the secrets that the CA created.
        bare_per_second: those that the bare client created, with a key and a certificate for each.
        ratio: of the two, the median over the namespaces.
        ready_per_second: the secrets of ready-made content that the bare client created.
        ready_ratio: as `ratio`.
        bare_cpu_ms: the processor time of the bare client for one secret, its key and its certificate.
        bare_servers_cpu_ms: that of the API server and etcd meanwhile.
        cpu_ratio: what the bare client and the servers take together, as a share of what the CA and the servers take:
            the ratio of the rates where nothing waits, on a machine that is full.
        writes_of_restart: the writes to secrets in the time of the restart.
    """

    accounts: int
    phases: list[Phase]
    ours_per_second: float
    bare_per_second: float
    ratio: float
    ready_per_second: float
    ready_ratio: float
    bare_cpu_ms: float
    bare_servers_cpu_ms: float
    cpu_ratio: float
    writes_of_restart: int


class Cluster:
    """The service accounts, and the CA that looks after them.

    Args:
        admin: asks the API server.
        ca: the CA.
        accounts: the service accounts, by namespace.
    """

    def __init__(self, admin: Client, ca: MeasuredCA, accounts: Mapping[str, Sequence[JSON]]) -> None:
        self._admin, self._ca, self._accounts = admin, ca, accounts
        self._total = sum(map(len, accounts.values()))

    async def create(self, client: Party) -> tuple[Phase, list[Filled]]:
        """Fill all namespaces but the first, in turns with the bare client."""
        warm, *others = self._accounts
        await self._manage(warm)
        sample = (await self._admin.list(f"{_CORE}/{warm}/secrets"))[0]["data"]
        begin, cpu, servers, filled = await self._ca.cost(), 0.0, 0.0, list[Filled]()
        for number, namespace in enumerate(others):
            bare = [await self._bare(client, namespace, sample, signs) for signs in (True, False)] if number % 2 else []
            cpu_before, servers_before = self._ca.cpu(), self._ca.servers_cpu()
            seconds = await self._manage(namespace)
            cpu, servers = cpu + self._ca.cpu() - cpu_before, servers + self._ca.servers_cpu() - servers_before
            await self._ca.looks_after()
            bare = bare or [await self._bare(client, namespace, sample, signs) for signs in (True, False)]
            filled.append(Filled(len(self._accounts[namespace]), seconds, *bare))
        made, cost = sum(each.secrets for each in filled), await self._ca.cost() - begin
        spent = Cost(cpu, servers, cost.calls, cost.writes - 2 * made)  # the bare client made as many, twice
        return self._phase("created", made, sum(each.ours for each in filled), spent), filled

    async def change(self, times: int) -> Phase:
        """Delete secrets, one after the other, and wait until each has come back."""
        paths = [
            f"{_CORE}/{namespace}/secrets/istio.{account['metadata']['name']}"
            for namespace, accounts in self._accounts.items()
            for account in accounts
        ][-times:]
        before, seconds = await self._ca.cost(), 0.0
        for path in paths:
            begin = time.perf_counter()
            await self._admin.delete(path)
            await soon(partial(self._is_there, path), every=0.002)
            seconds += time.perf_counter() - begin
        await self._ca.looks_after()
        return self._phase("one change", len(paths), seconds, await self._ca.cost() - before)

    async def new_root(self) -> Phase:
        """Plug a CA in, and wait until every secret holds the new trust bundle."""
        before, begin = await self._ca.cost(), time.perf_counter()
        plugged = {"metadata": {"name": "cacerts"}, "stringData": _new_authority()}
        cacerts = await self._admin.create(f"{_CORE}/{NAMESPACE}/secrets", plugged)

        await soon(partial(asyncio.to_thread, self._all_updated), every=0.1)
        seconds = time.perf_counter() - begin
        await self._ca.looks_after()
        phase = self._phase("new root", self._total, seconds, await self._ca.cost() - before)
        await soon(partial(self._signs, cacerts["data"]["ca-cert.pem"]))
        return phase

    async def restart(self) -> tuple[Phase, int]:
        """End the CA and start it anew; the writes to secrets in that time."""
        before, servers = await self._ca.writes(), self._ca.servers_cpu()
        await self._ca.end()
        begin = time.perf_counter()
        await self._ca.start()
        await self._ca.looks_after(self._total)
        seconds, cost = time.perf_counter() - begin, await self._ca.cost()
        writes = cost.writes - before
        spent = replace(cost, servers_cpu=cost.servers_cpu - servers, writes=writes)  # the rest is of a new process
        return self._phase("restart", self._total, seconds, spent), writes

    async def _manage(self, namespace: str) -> float:
        """Have a namespace managed; the seconds until it is filled."""
        before, wanted = await self._count(namespace), len(self._accounts[namespace])
        begin = time.perf_counter()
        await self._admin.patch(f"{_CORE}/{namespace}", {"metadata": {"labels": {OVERRIDE_LABEL: "true"}}})
        while await self._count(namespace) - before < wanted:  # noqa: ASYNC110  # nothing tells
            await asyncio.sleep(max((time.perf_counter() - begin) / 20, 0.02))  # counting is work for the servers
        return time.perf_counter() - begin

    async def _count(self, namespace: str) -> int:
        """The secrets of a namespace: the API server counts them without reading them."""
        _, page = await self._admin.request("GET", f"{_CORE}/{namespace}/secrets", params={"limit": "1"})
        return len(page["items"]) + int(page["metadata"].get("remainingItemCount", 0))

    def _all_updated(self) -> bool:
        return self._ca.metric("istio_auth_ca_secrets_written_total", reason="root_changed") >= self._total

    async def _signs(self, certificate: str) -> bool:
        """Whether the authority has taken an issuer over."""
        stored = await self._admin.get(f"{_CORE}/{NAMESPACE}/secrets/istio-ca-secret")
        return bool(stored["data"]["ca-cert.pem"] == certificate)

    async def _is_there(self, path: str) -> bool:
        return await self._admin.find(path) is not None

    async def _bare(self, client: Party, namespace: str, sample: JSON, signs: bool) -> Bare:
        """Fill a namespace with the bare client."""
        accounts = [{name: each["metadata"][name] for name in ("name", "uid")} for each in self._accounts[namespace]]
        before = self._ca.servers_cpu()
        order = {"namespace": namespace, "accounts": accounts, "data": sample, "workers": WORKERS}
        client.tell({**order, "signs": signs, "prefix": "made" if signs else "ready"})
        told = await asyncio.to_thread(client.answer)
        return Bare(told["seconds"], told["cpu"], self._ca.servers_cpu() - before)

    def _phase(self, what: str, secrets: int, seconds: float, cost: Cost) -> Phase:
        return Phase(
            what,
            secrets,
            round(seconds, 2),
            round(cost.cpu / secrets * 1000, 2),
            round(cost.servers_cpu / secrets * 1000, 2),
            round(cost.calls / secrets, 2),
            round(cost.writes / secrets, 2),
            round(peak_megabytes(self._ca.pid), 1),
        )


async def measure(plane: ControlPlane, folder: Path, *, accounts: int, changes: int) -> Result:
    """The figures of one run."""
    async with plane.admin() as admin:
        await admin.create_namespace(NAMESPACE)
        made = {"warm": await _accounts(admin, "warm", 10)}
        for number in range(NAMESPACES):
            name = f"shop-{number}"
            made[name] = await _accounts(admin, name, accounts // NAMESPACES)
        with party("bench.cluster_client", str(plane.kubeconfig), log=folder / "client.log") as client:
            async with measured_ca(plane, folder / "ca", settings={"settle": SETTLE}) as ca:
                cluster = Cluster(admin, ca, made)
                created, filled = await cluster.create(client)
                phases = [created, await cluster.change(min(changes, accounts)), await cluster.new_root()]
                restart, writes = await cluster.restart()
                await _check(admin, made)
    bare = sum(each.bare.cpu for each in filled) / created.secrets * 1000
    servers = sum(each.bare.servers_cpu for each in filled) / created.secrets * 1000
    return Result(
        sum(map(len, made.values())),
        [*phases, restart],
        bare_per_second=round(created.secrets / sum(each.bare.seconds for each in filled), 1),
        ours_per_second=round(created.secrets / created.seconds, 1),
        ratio=round(statistics.median(each.bare.seconds / each.ours for each in filled), 3),
        ready_per_second=round(created.secrets / sum(each.ready.seconds for each in filled), 1),
        ready_ratio=round(statistics.median(each.ready.seconds / each.ours for each in filled), 3),
        bare_cpu_ms=round(bare, 2),
        bare_servers_cpu_ms=round(servers, 2),
        cpu_ratio=round((bare + servers) / (created.cpu_ms + created.servers_cpu_ms), 3),
        writes_of_restart=writes,
    )


def main() -> None:
    """Measure, and print."""
    parser = argparse.ArgumentParser(prog="python -m bench.cluster", description=__doc__.partition("\n")[0])
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--accounts", type=int, default=1000, help="service accounts (default 1000)")
    parser.add_argument("--changes", type=int, default=100, help="secrets deleted one by one (default 100)")
    arguments = parser.parse_args()
    if built() is None:
        parser.error("the servers are not built: make test-cluster")
    with tempfile.TemporaryDirectory(prefix="bench-cluster-") as base, ControlPlane() as plane:
        work = measure(plane, Path(base), accounts=arguments.accounts, changes=arguments.changes)
        result = asyncio.run(work)
    print(json.dumps(asdict(result), indent=2) if arguments.json else table(result))


async def _accounts(admin: Client, namespace: str, count: int) -> Sequence[JSON]:
    """The service accounts of a new namespace; one that a controller makes is among them."""
    await admin.create_namespace(namespace)
    await at_once([admin.create_service_account(namespace, f"web-{number}") for number in range(count)])
    path = f"{_CORE}/{namespace}/serviceaccounts"
    if any(each["metadata"]["name"] == "default" for each in await admin.list(f"{_CORE}/default/serviceaccounts")):
        await appears(admin, f"{path}/default")
    return await admin.list(path)


async def _check(admin: Client, accounts: Mapping[str, Sequence[JSON]]) -> None:
    """Make sure that what was measured is work done: a secret for each, all with the same two roots."""
    roots = set()
    for namespace, some in accounts.items():
        secrets = await admin.list(f"{_CORE}/{namespace}/secrets", fieldSelector=f"type={SECRET_TYPE}")
        assert {each["metadata"]["name"] for each in secrets} == {f"istio.{each['metadata']['name']}" for each in some}
        roots |= {each["data"]["root-cert.pem"] for each in secrets}
    (pem,) = roots
    assert len(read_certificates(base64.b64decode(pem))) == 2


def _new_authority() -> dict[str, str]:
    """What is in a `cacerts` of a root by itself."""
    key, now = new_private_key(), datetime.now(UTC).replace(microsecond=0)
    root = self_signed_root(TrustDomain("cluster.local"), key, Validity(now, now + timedelta(days=365)))
    certificate = write_certificates([root]).decode()
    return {
        "ca-cert.pem": certificate,
        "ca-key.pem": write_private_key(key).decode(),
        "cert-chain.pem": certificate,
        "root-cert.pem": certificate,
    }


def table(result: Result) -> str:
    """The figures for people."""
    head = f"{'':<12}{'secrets':>8}{'seconds':>9}{'CPU ms':>8}{'servers':>9}{'calls':>7}{'writes':>8}{'peak MB':>9}"
    lines = [
        f"{one.what:<12}{one.secrets:>8}{one.seconds:>9.2f}{one.cpu_ms:>8.2f}{one.servers_cpu_ms:>9.2f}{one.calls:>7.2f}{one.writes:>8.2f}"
        f"{one.peak_megabytes:>9.1f}"
        for one in result.phases
    ]
    change = result.phases[1].cpu_ms
    told = (
        f"{result.accounts} service accounts in {NAMESPACES + 1} namespaces, {WORKERS} workers, {os.cpu_count()} "
        "processors. CPU, calls and writes are for one secret."
    )
    compared = (
        f"created: {result.ours_per_second:.0f} secrets a second, {result.ratio:.2f} of the "
        f"{result.bare_per_second:.0f} of a bare client that makes keys and certificates too (aim {AIM_RATE}),\n"
        f"{result.ready_ratio:.2f} of the {result.ready_per_second:.0f} of one that writes ready-made content\n"
        f"bare client: {result.bare_cpu_ms:.2f} ms of CPU and {result.bare_servers_cpu_ms:.2f} of the servers; by CPU "
        f"of both the ratio is {result.cpu_ratio:.2f}"
    )
    rest = (
        f"one change: {change:.1f} ms of work (aim {AIM_CHANGE_MS}); the restart wrote {result.writes_of_restart} "
        f"secrets (aim 0); memory: aim {AIM_MEGABYTES} MB at 10000"
    )
    return "\n".join([told, head, *lines, compared, rest])


if __name__ == "__main__":
    main()
