"""The composition root of the node agent: everything is made here, wired, run, and ended in the right order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, suppress
from datetime import timedelta
from functools import partial
from pathlib import Path

import structlog

from istio_auth.clock import Clock
from istio_auth.daemon.alarm import Alarm
from istio_auth.daemon.lifecycle import Daemon, spare_the_collector
from istio_auth.errors import IstioAuthError, MissingError
from istio_auth.registration import Registration
from istio_auth.system_clock import SystemClock
from node_agent.admin.status import Status, ca_document, own_document
from node_agent.attest.kubelet import credentials
from node_agent.ca_client.access import access
from node_agent.config import Config
from node_agent.csi import plugin
from node_agent.csi.mounts import Mounts
from node_agent.csi.plugin import Plugin, volumes_folder
from node_agent.file_system import is_in_memory, on_a_disk
from node_agent.front import front
from node_agent.identity.state import StateFolder, read_token
from node_agent.metrics import Metrics
from node_agent.mounted import MountedAgent
from node_agent.operator_files import OperatorFile, local_registrations, trust_bundle
from node_agent.serving import Workloads
from node_agent.sync import Consumers, Sync
from node_agent.trust import Trust, at_start
from node_agent.workloads import renewal
from node_agent.workloads.cache import WorkloadCache
from node_agent.workloads.keeping import Keeping
from node_agent.workloads.kept import WorkloadFolder
from node_agent.workloads.registrations import observable
from node_agent.workloads.renewal import Renewals

LOOK_AT_FILES = timedelta(seconds=10)
log = structlog.get_logger()


async def serve(config: Config, daemon: Daemon) -> None:
    """Run the agent until the daemon is to stop."""
    await asyncio.to_thread(config.run_folder.mkdir, mode=0o755, parents=True, exist_ok=True)
    if config.mounted is not None:
        mounted = await asyncio.to_thread(MountedAgent, config, config.mounted, SystemClock())
        await _live(mounted.serving(daemon), daemon)
        return
    state = await asyncio.to_thread(StateFolder, config.state_folder)
    with state.lock:
        await asyncio.to_thread(state.tidy)
        agent = await asyncio.to_thread(Agent, config, state, SystemClock())
        await _live(agent.serving(daemon), daemon)


async def _live(serving: AbstractAsyncContextManager[None], daemon: Daemon) -> None:
    async with serving:
        spare_the_collector()
        daemon.ready()
        await daemon.until_stop()


def check(config: Config) -> None:
    """Look at the files that the configuration names, as a start would.

    Raises:
        ConfigurationError: one of them can not be used.
    """
    for each in config.files:
        each.group_number()
    if config.kubernetes.kubelet is not None:
        credentials(config.kubernetes)
    if config.mounted is not None:
        return
    trust_bundle(config.trust_bundle, config.trust_domain).read()
    if config.registrations is not None:
        local_registrations(config.registrations, config.trust_domain).read()
    with suppress(MissingError):
        read_token(config.join_token_file)
    folder_to_keep(config)
    if config.csi.endpoint is not None:
        volumes_folder(config)


class Agent:
    """All parts of an agent, wired. Made on a thread, because it reads files; runs on one event loop.

    Args:
        config: the settings.
        state: what is kept, locked.
        clock: tells the time.
        mounts: shows volumes to pods; bind mounts by default.

    Raises:
        ConfigurationError: a file can not be used.
    """

    def __init__(self, config: Config, state: StateFolder, clock: Clock, *, mounts: Mounts | None = None) -> None:
        self.config, self.clock, self.metrics = config, clock, Metrics()
        self._state = state
        self._pinned = trust_bundle(config.trust_bundle, config.trust_domain)
        self._local: OperatorFile[tuple[Registration, ...]] | None = None
        registered: tuple[Registration, ...] = ()
        if config.registrations is not None:
            self._local = local_registrations(config.registrations, config.trust_domain)
            registered = self._local.read()
        self.trust = Trust(
            config.trust_domain,
            at_start(self._pinned.read(), state.trust()),
            lambda kept: asyncio.to_thread(state.keep_trust, kept),
        )
        self.cache = WorkloadCache(self.trust.bundles)
        self.cache.register(registered)
        self._keeping = self._kept(folder_to_keep(config))
        self._restored = self._keeping is not None and self._keeping.restore(clock.now(), random.random)
        self._access = access(config, state, self.trust, clock=clock, metrics=self.metrics)
        self.identity, client = self._access.standing, self._access.client
        self.renewals = Renewals(self.cache, client, ready=self.identity.lives, clock=clock, metrics=self.metrics)
        self.workloads = Workloads(
            config,
            self.cache,
            clock=clock,
            metrics=self.metrics,
            registrations_missing=self._registrations_missing,
        )
        self.csi = self._plugin(mounts)
        self.sync = Sync(
            client,
            trust=self.trust,
            ready=self.identity.lives,
            consumers=self._consumers,
            registered=None if self._local else self._register,
            metrics=self.metrics,
        )
        self._wire()
        self._measure()

    def _kept(self, folder: Path | None) -> Keeping | None:
        if folder is None:
            log.warning("nothing is kept for the next start: the runtime folder is not in memory; set keep_folder")
            return None
        kept = WorkloadFolder(folder)
        return Keeping(kept, self.cache, self.config.trust_domain, from_ca=self._local is None)

    def _plugin(self, mounts: Mounts | None) -> Plugin | None:
        if self.config.csi.endpoint is None:
            return None
        return Plugin(
            self.config, self._access.bare, trust=self.trust, clock=self.clock, metrics=self.metrics, mounts=mounts
        )

    def _register(self, registrations: tuple[Registration, ...]) -> None:
        """Take what the CA has registered; without a kubelet to ask, no caller is known by its pod."""
        unobserved = frozenset({"k8s"} if self.config.kubernetes.kubelet is None else ())
        taken = observable(registrations, unobserved=unobserved)
        if len(taken) < len(registrations):
            aside = len(registrations) - len(taken)
            log.info("registrations of pods are left aside, for kubernetes.kubelet is not set", registrations=aside)
        self.cache.register(taken)

    def _wire(self) -> None:
        """Who is told of what."""
        self.trust.subscribe(lambda: self.cache.trust(self.trust.bundles))
        self.identity.subscribe(self.renewals.look_again)
        self.identity.subscribe(self.sync.look_again)
        self.workloads.subscribe(self.sync.report)
        self.cache.subscribe(self.sync.report)

    def _consumers(self) -> Consumers:
        return self.workloads.consumers() + (self.csi.consumers() if self.csi else Consumers())

    def _measure(self) -> None:
        plugin.measure(self.metrics, self.csi)
        renewal.measure(self.metrics, self.cache, self.clock)
        gauge = self.metrics.gauge
        self.metrics.seconds_until(
            "seconds_until_own_lapse",
            "Until the agent's own SVID ends",
            lambda: self.identity.svid.not_after if self.identity.svid else None,
            self.clock.now,
        )
        gauge("unwritten", "Whether a restart would lose what could not be written", lambda: bool(self._unwritten()))
        gauge("sync_connected", "Whether the stream with the CA is open", lambda: self.sync.connected)
        gauge("bundle_sequence", "Of the bundle of our own trust domain", lambda: self.trust.own.sequence or 0)

    @asynccontextmanager
    async def serving(self, daemon: Daemon) -> AsyncIterator[None]:
        """Serve workloads from entering to leaving; leaving ends calls and streams in good order."""
        daemon.readiness.add("identity", lambda: self.identity.problem)
        daemon.readiness.add("registrations", self._registrations_missing)
        daemon.readiness.mention("unwritten", self._unwritten)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(self._access.close)
            alarm = await stack.enter_async_context(Alarm())
            await stack.enter_async_context(
                front(
                    self.config,
                    daemon,
                    workloads=self.workloads,
                    status=self._status(daemon),
                    metrics=self.metrics,
                )
            )
            if self.csi is not None:
                await stack.enter_async_context(self.csi.serving())
            daemon.supervise("identity", self.identity.run())
            daemon.supervise("sync", self.sync.run())
            daemon.supervise("renewals", self.renewals.run())
            daemon.supervise("files", self._follow_files(alarm))
            if self._keeping is not None:
                daemon.supervise("keeping", self._keeping.run(lambda: self._restored or self.sync.heard))
            daemon.on_reload("identity", self._try_identity)
            daemon.on_reload("trust bundle", self._reload_pinned)
            if self._local is not None:
                daemon.on_reload("registrations", partial(self._reload_local, self._local))
            yield

    def _status(self, daemon: Daemon) -> Status:
        return Status(
            clock=self.clock,
            cache=self.cache,
            workloads=self.workloads,
            own=lambda: own_document(self.identity, self.clock.now()),
            ca=lambda: ca_document(self.sync, self.renewals, self.trust, self.clock.now()),
            refusal=self.renewals.refusal,
            refused_for=self.renewals.refused_for,
            problems=daemon.readiness.problems,
            remarks=daemon.readiness.remarks,
            csi=lambda: self.csi.document() if self.csi else None,
        )

    def _unwritten(self) -> str | None:
        return self._state.trouble or (self._keeping.trouble if self._keeping else None)

    def _registrations_missing(self) -> str | None:
        if self._local is not None or self.sync.heard or self._restored or self.config.istio_ca.server_name:
            return None
        return "the CA sends no registrations: name a file" if self.sync.not_offered else "no registrations yet"

    async def _try_identity(self) -> None:
        self.identity.look_again()

    async def _reload_pinned(self) -> None:
        await self.trust.pin(await asyncio.to_thread(self._pinned.read))

    async def _reload_local(self, local: OperatorFile[tuple[Registration, ...]]) -> None:
        self.cache.register(await asyncio.to_thread(local.read))

    async def _follow_files(self, alarm: Alarm) -> None:
        catch_up = partial(asyncio.to_thread, self._state.catch_up)
        async for _ in alarm.every(LOOK_AT_FILES):
            for look in (catch_up, self.identity.look_for_token, self._look_at_pinned, self._look_at_local):
                try:
                    await look()
                except IstioAuthError as error:  # what is wrong with one file must not hide the others
                    log.warning("a file is not taken, the last good content stays", reason=str(error))

    async def _look_at_pinned(self) -> None:
        if (pinned := await asyncio.to_thread(self._pinned.read_change)) is not None:
            await self.trust.pin(pinned)

    async def _look_at_local(self) -> None:
        if self._local and (rows := await asyncio.to_thread(self._local.read_change)) is not None:
            self.cache.register(rows)


def folder_to_keep(config: Config) -> Path | None:
    """Where to keep what workloads hold from one start to the next; None if there is no place that stays in memory.

    Raises:
        ConfigurationError: the folder that the operator named is on a disk.
    """
    folder = config.keep_folder or config.run_folder / "workloads"
    if config.allow_disk_cache or is_in_memory(folder):
        return folder
    if config.keep_folder is not None:
        raise on_a_disk(folder, setting="keep_folder", whose="workloads")
    return None
