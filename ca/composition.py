"""The composition root of `istio-ca`: all its parts put together, and the order in which they start and end.

Start: health port, hold the store, authority and services, serving certificate, door, ready.
End: not ready, no new connections, calls finished and streams ended, what was signed is on record, health port last.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path

import structlog
from prometheus_client import CollectorRegistry, GCCollector, Histogram, PlatformCollector, ProcessCollector

from ca.authority.authority import ours
from ca.authority.plugged import read_plugged
from ca.authority.store import FileAuthorityStore
from ca.authority.watch import AuthorityWatch
from ca.config import Config
from ca.config import Platform as PlatformName
from ca.issuer import ReservedNames
from ca.metrics import CAMetrics, Gauge
from ca.platform.platform import Platform, ca_settings
from ca.platform.standalone import open_standalone
from ca.registrations.file import RegistrationFile
from ca.registrations.rules import RegistrationRules
from ca.service.sync_record import SyncRecord
from ca.serving import ServingCertificate
from istio_auth.authorize import member_of
from istio_auth.clock import Clock
from istio_auth.daemon.alarm import Alarm
from istio_auth.daemon.http import HealthServer
from istio_auth.daemon.lifecycle import Daemon, spare_the_collector
from istio_auth.door import Door, DoorLimits
from istio_auth.errors import Code, ConfigurationError
from istio_auth.host_port import HostPort
from istio_auth.rpc.server import Limits, RpcServer
from istio_auth.system_clock import SystemClock
from istio_auth.tls import server_context

_GRACE = timedelta(seconds=5)  # for calls that are being answered when we stop
_LAST_BYTES = timedelta(seconds=1)  # for their answers to be sent
_RELOAD_EVERY = timedelta(seconds=2)
_HOURLY, _JITTER = timedelta(hours=1), timedelta(minutes=5)
_ALPN = ("h2",)
_log = structlog.get_logger()


async def serve(config: Config, daemon: Daemon) -> None:
    """The CA's main coroutine.

    Raises:
        ConfigurationError: a file or setting can not be used.
        NotReady: something that is needed is in use by another process, or can not be reached.
    """
    clock, registry = SystemClock(), _registry()
    async with AsyncExitStack() as stack:
        health = HealthServer(config.metrics_listen, daemon.readiness, registry)
        await stack.enter_async_context(health)
        platform = await stack.enter_async_context(_platform(config, clock))
        ca = platform.ca
        alarm = await stack.enter_async_context(Alarm())
        serving = ServingCertificate(ca.issuer, ca.authority, config.serving_names, clock=clock)
        await serving.renew()
        CAMetrics(registry, ca.counts, (*ca.gauges(), *platform.gauges(), _serving_gauge(serving)))
        platform.register(registry)
        door = await stack.enter_async_context(Door(limits=_door_limits(config)))
        server = RpcServer(door, ca.services(), limits=_limits(config), on_call=_call_metric(registry))
        await server.start()
        stack.push_async_callback(server.stop, _GRACE)
        context = server_context(
            serving.source, member_of(config.trust_domain), require_client_certificate=False, alpn=_ALPN
        )
        host, port = await door.listen_tls(config.listen.host, config.listen.port, context)
        daemon.readiness.add("issuer", ca.not_ready)
        daemon.readiness.add("server", serving.not_ready)
        _look_after(daemon, alarm, platform, serving, clock, folder=config.state_folder)
        platform.look_after(daemon, alarm)
        _log.info(
            "serving", trust_domain=str(config.trust_domain), grpc=str(HostPort(host, port)), health=str(health.address)
        )
        spare_the_collector()
        daemon.ready()
        await daemon.until_stop()
        door.stop_listening()
        await server.stop(_GRACE)
        await door.close(_LAST_BYTES)


def check_files(config: Config) -> None:
    """Check the files that the configuration names, and the settings of the platform, without changing anything.

    Raises:
        ConfigurationError: one of them can not be used.
        NotReady: one could not be looked at.
    """
    settings = ca_settings(config)
    reserved = ReservedNames.of(settings.trust_domain, settings.serving_names)
    RegistrationFile(
        settings.registrations, RegistrationRules(settings.trust_domain, settings.profile.max_ttl, reserved.check)
    )
    if config.platform is PlatformName.KUBERNETES:
        with _installed():
            from ca.platform.kubernetes.platform import check_settings
        check_settings(config)
        return
    if config.authority.folder is not None:
        read_plugged(config.authority.folder, settings.trust_domain, SystemClock().now())
    if (stored := FileAuthorityStore(settings.state_folder).load()) is not None:
        ours(stored, settings.trust_domain)


def _platform(config: Config, clock: Clock) -> AbstractAsyncContextManager[Platform]:
    if config.platform is PlatformName.STANDALONE:
        return open_standalone(config, clock)
    with _installed():
        from ca.platform.kubernetes.platform import open_kubernetes
    return open_kubernetes(config, clock)


@contextmanager
def _installed() -> Iterator[None]:
    """Say how to install an optional package that is imported here, if it is missing.

    Raises:
        ConfigurationError: it is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise ConfigurationError(f"{error.name} is not installed: pip install 'istio-auth[kubernetes]'") from error


def _look_after(
    daemon: Daemon, alarm: Alarm, platform: Platform, serving: ServingCertificate, clock: Clock, *, folder: Path
) -> None:
    """Start everything that has to happen from time to time, or at SIGHUP."""
    ca = platform.ca
    watch = AuthorityWatch(ca.authority, clock, shared=platform.shares_authority)

    async def warn() -> None:
        for words in ca.warnings():
            _log.warning(words)

    async def reload_registrations() -> None:
        await ca.reload_if_changed()
        if ca.registrations.fault is not None:
            raise ConfigurationError(ca.registrations.fault)

    daemon.supervise("serving certificate", serving.keep())
    daemon.supervise("authority", alarm.repeat("authority", watch.look, watch.interval))
    daemon.supervise("warnings", alarm.repeat("warnings", warn, _HOURLY, jitter=_JITTER))
    daemon.supervise("registrations", alarm.repeat("registrations", ca.reload_if_changed, _RELOAD_EVERY))
    record = SyncRecord(folder, ca.sync_book.entries)
    heard = partial(asyncio.to_thread, record.write)
    daemon.supervise("agents heard", alarm.repeat("agents heard", heard, _RELOAD_EVERY))
    sweep = partial(asyncio.to_thread, ca.sweep)
    daemon.supervise("join tokens", alarm.repeat("join tokens", sweep, _HOURLY, jitter=_JITTER))
    daemon.on_reload("registrations", reload_registrations)
    daemon.on_reload("authority", watch.look)
    daemon.on_reload("issuance log", partial(asyncio.to_thread, ca.reopen_log))


def _limits(config: Config) -> Limits:
    return Limits(in_flight=config.limits.requests, connection_age=config.limits.connection_age)


def _door_limits(config: Config) -> DoorLimits:
    return DoorLimits(connections=config.limits.connections, per_caller=config.limits.connections_per_address)


def _registry() -> CollectorRegistry:
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    PlatformCollector(registry=registry)
    GCCollector(registry=registry)
    return registry


def _call_metric(registry: CollectorRegistry) -> Callable[[str, Code | None, float], None]:
    seconds = Histogram(
        "istio_auth_ca_call_seconds", "Time to answer a call, by its result.", ["method", "result"], registry=registry
    )

    def note(method: str, code: Code | None, duration: float) -> None:
        seconds.labels(method, "ok" if code is None else code.name.lower()).observe(duration)

    return note


def _serving_gauge(serving: ServingCertificate) -> Gauge:
    def end() -> dict[tuple[str, ...], float]:
        return {} if serving.not_after is None else {(): serving.not_after.timestamp()}

    return Gauge("istio_auth_ca_serving_certificate_end_timestamp", "When the server's certificate ends.", end)
