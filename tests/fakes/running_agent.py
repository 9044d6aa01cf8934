"""A node agent in this process, on real sockets and a clock of the test's, that can be ended and started again."""

from __future__ import annotations

import asyncio
import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Self

from istio_auth.bundle import TrustBundle
from istio_auth.daemon.lifecycle import Daemon
from istio_auth.daemon.notify import Notifier
from istio_auth.host_port import HostPort
from istio_auth.registration import Registration, Selector
from istio_auth.spiffe_id import SpiffeID
from node_agent.app import Agent
from node_agent.config import Config, SocketSettings
from node_agent.csi.mounts import Mounts
from node_agent.identity.state import StateFolder
from tests.fakes.ca import CAServer
from tests.fakes.clock import FakeClock
from tests.fakes.waiting import until

TOKEN = "token-of-the-operator"
MINE = Selector("unix", f"uid:{os.getuid()}")


def registration(path: str, *selectors: str, ttl: timedelta | None = None) -> Registration:
    """A registration for processes of our own user, with these selectors more."""
    spiffe_id = SpiffeID.parse(f"spiffe://cluster.local{path}")
    return Registration(spiffe_id, frozenset({MINE, *map(Selector.parse, selectors)}), ttl)


class RunningAgent:
    """The agent, from entering to leaving; `stop` and `start` in between.

    Args:
        server: its CA.
        folder: where everything is; an agent that finds the same folder is the same agent.
        clock: its clock; the CA has the same.
        mounts: shows volumes to pods, if it is a CSI node plugin.
        settings: other settings than the usual ones.
    """

    def __init__(
        self, server: CAServer, folder: Path, clock: FakeClock, *, mounts: Mounts | None = None, **settings: object
    ) -> None:
        self.server, self.folder, self.clock, self.mounts = server, folder, clock, mounts
        self.pin(server.ca.root.bundle())
        self.socket = folder / "agent.sock"
        self.config = replace(
            Config(
                ca_address=server.address,
                ca_timeout=timedelta(seconds=5),
                trust_bundle=folder / "pin.json",
                join_token_file=folder / "token",
                name="node-1",
                state_folder=folder / "state",
                run_folder=folder,
                metrics_listen=HostPort("127.0.0.1", 0),
                socket=(SocketSettings(self.socket, "main", "0600"),),
            ),
            **settings,  # type: ignore[arg-type]  # fields of Config, by name
        )
        self.agent: Agent
        self.daemon: Daemon
        self._running: asyncio.Task[None] | None = None

    def pin(self, bundle: TrustBundle) -> None:
        """Pin this bundle."""
        (self.folder / "pin.json").write_bytes(bundle.to_json())

    def give_token(self) -> None:
        """Give it a join token that the CA knows."""
        self.server.ca.tokens.add(TOKEN)
        path = self.folder / "token"
        path.touch(0o600)
        path.write_text(TOKEN)

    def take_token(self) -> None:
        """Take the join token away."""
        (self.folder / "token").unlink()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Start, and wait until its sockets are there."""
        serving = asyncio.Event()
        state = StateFolder(self.config.state_folder)
        self.agent = Agent(self.config, state, self.clock, mounts=self.mounts)
        self.daemon = Daemon(Notifier({}, 0), lambda: None)

        async def main(daemon: Daemon) -> None:
            with state.lock:
                async with self.agent.serving(daemon):
                    daemon.ready()
                    serving.set()
                    await daemon.until_stop()

        self._running = asyncio.create_task(self.daemon.live(main))
        waiting = asyncio.create_task(serving.wait())
        await asyncio.wait({self._running, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if self._running.done():
            waiting.cancel()
            await self._running

    async def stop(self) -> None:
        """End as on SIGTERM."""
        if self._running is not None:
            self.daemon.stop("the test")
            await self._running
            self._running = None

    async def joined(self) -> None:
        """Wait until it has an SVID and is in sync with the CA."""
        await until(lambda: self.agent.identity.lives() and self.agent.sync.connected)

    async def served(self, *paths: str) -> None:
        """Wait until these workloads have a certificate."""
        wanted = {SpiffeID.parse(f"spiffe://cluster.local{path}") for path in paths}
        await until(lambda: wanted <= self.agent.cache.snapshot.held.keys())

    def pass_time(self, duration: timedelta) -> None:
        """Move the clock of agent and CA, and have the agent look at it."""
        self.clock.advance(duration)
        self.agent.identity.look_again()
        self.agent.renewals.look_again()
