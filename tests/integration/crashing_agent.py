"""A node agent that dies at a given write: `python -m tests.integration.crashing_agent FOLDER`.

The same short life (first start, enrolment, two workloads, new roots, a renewal of everything, a workload that goes)
is lived again and again, each time in a new folder and one step longer, and ends by SIGKILL (see `crashing_ca.Disk`).
After each death follows a second, whole life in that folder, with the same CA: it remembers whom it gave what. In
`FOLDER/<step>` is left what the second life came to (`second`); the last folder holds the `trace` of the life that
nothing ended.

One process that forks, without threads of its own, and a CA that is no process: to start Python and gRPC for each of
some hundred lives takes minutes. What the parts do over the network is the matter of other tests.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import sys
from datetime import timedelta
from pathlib import Path

from istio_auth.registration import Registration, Selector
from istio_auth.sources.memory import MemorySource
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from node_agent.identity.enrolment import Enrolment
from node_agent.identity.identity import Identity
from node_agent.identity.state import StateFolder
from node_agent.metrics import Metrics
from node_agent.trust import Trust, at_start
from node_agent.workloads.cache import WorkloadCache
from node_agent.workloads.keeping import Keeping
from node_agent.workloads.kept import WorkloadFolder
from node_agent.workloads.renewal import Renewals
from tests.fakes.certificate_client import FakeCA
from tests.fakes.clock import FakeClock
from tests.integration.crashing_ca import Disk, fork

LOCAL = TrustDomain("cluster.local")
ME = SpiffeID.for_agent(LOCAL, "node-1")
TOKEN = "token-1"
LATER = timedelta(minutes=40)


class RememberingCA(FakeCA):
    """A CA whose memory outlives the process that its agent shares with it: written the moment it changes."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.memory = Path()

    def recall(self, memory: Path) -> None:
        """Be the CA that wrote this."""
        self.memory = memory
        self.tokens, self.node_keys = {TOKEN}, {}
        if memory.exists():
            found = json.loads(memory.read_text())
            self.tokens = set(found["tokens"])
            self.node_keys = {SpiffeID.parse(name): bytes.fromhex(key) for name, key in found["keys"].items()}

    def issue(self, spiffe_id: SpiffeID, key: object, ttl: timedelta | None = None) -> tuple[object, ...]:  # type: ignore[override]  # certificates
        """As ever, and remembered before the answer leaves."""
        keys = {str(name): key.hex() for name, key in self.node_keys.items()}
        self.memory.write_text(json.dumps({"tokens": sorted(self.tokens), "keys": keys}))
        return super().issue(spiffe_id, key, ttl)


def registered(*names: str) -> tuple[Registration, ...]:
    """Workloads of one user."""
    selectors = frozenset({Selector.parse("unix:uid:1")})
    return tuple(Registration(SpiffeID(LOCAL, f"/{name}"), selectors) for name in names)


async def live(folder: Path, ca: RememberingCA, clock: FakeClock) -> dict[str, object]:
    """One life of an agent, and what it came to."""
    ca.recall(folder / "ca")
    state = StateFolder(folder / "state")
    with state.lock:
        state.tidy()

        async def keep(kept: object) -> None:
            state.keep_trust(kept)  # type: ignore[arg-type]  # what Trust gives it

        trust = Trust(LOCAL, at_start(ca.root.bundle(), state.trust()), keep)
        cache = WorkloadCache(trust.bundles)
        kept = WorkloadFolder(folder / "workloads", boot="one")
        Keeping(kept, cache, LOCAL, from_ca=True).restore(clock.now(), lambda: 0.5)
        restored = sorted(each.path for each in cache.snapshot.held)
        enrolment = Enrolment(
            ME,
            state.node_key(),
            state=state,
            trust=trust,
            proven=ca.proven(),
            unproven=ca.unproven(),
            read_token=lambda: TOKEN,
            ttl=None,
            clock=clock,
        )
        metrics = Metrics()
        identity = Identity(
            enrolment,
            state=state,
            source=MemorySource(),
            trust=trust,
            svid=state.svid(ME),
            clock=clock,
            metrics=metrics,
        )
        renewals = Renewals(cache, ca.proven(), ready=identity.lives, clock=clock, metrics=metrics)

        async def settle() -> None:
            while not await identity.step():
                pass
            while not await renewals.step():
                pass
            kept.keep(cache.snapshot, registrations=True)

        cache.register(registered("web", "api"))
        await settle()
        await trust.take([ca.root.bundle(sequence=2)])
        cache.trust(trust.bundles)
        clock.advance(LATER)
        await settle()
        cache.register(registered("web"))
        await settle()
        return {
            "restored": restored,
            "lives": identity.lives(),
            "trouble": identity.trouble or state.trouble,
            "sequence": trust.own.sequence,
            "held": sorted(each.path for each in cache.snapshot.held),
            "calls": ca.calls,
        }


def main(base: Path) -> None:
    """Live and die, one step later each time, until nothing is left to die at."""
    clock = FakeClock()
    ca = RememberingCA(clock)
    for number in itertools.count(1):
        folder = base / str(number)
        folder.mkdir()
        disk = Disk(number, lose_unsynced=False)
        if fork(lambda folder=folder, disk=disk: _first_life(folder, disk, ca, clock)):  # type: ignore[misc]  # bound now
            break
        if not fork(lambda folder=folder: _second_life(folder, ca, clock)):  # type: ignore[misc]  # bound now
            sys.exit(f"step {number}: the second life did not end well")


def _first_life(folder: Path, disk: Disk, ca: RememberingCA, clock: FakeClock) -> None:
    os.umask(0)  # no mode may hang on it
    remove = os.unlink

    def unlink(path: Path) -> None:
        disk.step("remove", str(path))
        remove(path)

    disk.install()
    os.unlink = unlink  # type: ignore[assignment]  # less general than that of os, and enough
    asyncio.run(live(folder, ca, clock))
    (folder / "trace").write_text("\n".join(disk.trace))


def _second_life(folder: Path, ca: RememberingCA, clock: FakeClock) -> None:
    clock.advance(LATER)  # as late as the first may have come
    (folder / "second").write_text(json.dumps(asyncio.run(live(folder, ca, clock))))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
