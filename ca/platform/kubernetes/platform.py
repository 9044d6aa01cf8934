"""Puts the Kubernetes platform together: the authority in its secret, the callers, and the leader's work.

Every replica watches pods, service accounts, namespaces and the authority, and signs. One of them leads.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NoReturn

import structlog
from prometheus_client.registry import CollectorRegistry

from ca.authority.issuer_source import IssuerFolder, IssuerSource
from ca.authority.plugged import PluggedAuthority, Rollout, open_shared_authority, read_plugged
from ca.authority.watch import AuthorityWatch
from ca.certificate_authority import CertificateAuthority
from ca.config import Config, TokenVerification
from ca.metrics import Gauge
from ca.platform.kubernetes.api.client import KubernetesAPI, Selection
from ca.platform.kubernetes.api.connection import connected
from ca.platform.kubernetes.api.metrics import APICalls
from ca.platform.kubernetes.api.reflector import Reflector
from ca.platform.kubernetes.api.resources import SECRETS
from ca.platform.kubernetes.callers.callers import Callers
from ca.platform.kubernetes.cluster_watch import ClusterWatch, Tasks
from ca.platform.kubernetes.events.recorder import EventRecorder
from ca.platform.kubernetes.leader.leadership import Leadership
from ca.platform.kubernetes.leader.lease import LEASE, LeaderElection
from ca.platform.kubernetes.leader.work import Circumstances, leader_work
from ca.platform.kubernetes.permissions import Features, require
from ca.platform.kubernetes.roots.authority_store import NAME as AUTHORITY_SECRET
from ca.platform.kubernetes.roots.authority_store import SecretAuthorityStore
from ca.platform.kubernetes.roots.cacerts import PluggedSecret
from ca.platform.kubernetes.settings import check, lease_timing
from ca.platform.platform import ca_settings
from istio_auth.clock import Clock
from istio_auth.daemon.alarm import Alarm
from istio_auth.daemon.lifecycle import Daemon
from istio_auth.errors import ConfigurationError, IstioAuthError
from istio_auth.system_clock import SystemClock

_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_USUAL_NAMESPACE = "istio-system"
_LOOKS, _SHORTEST_LOOK = 10, 1.0  # looks at a takeover while a new root settles; the fewest seconds between two
_log = structlog.get_logger()


@asynccontextmanager
async def open_kubernetes(config: Config, clock: Clock) -> AsyncIterator[KubernetesPlatform]:
    """The platform as a configuration describes it, with its authority opened.

    Raises:
        ConfigurationError: a setting, the stored authority or a plugged-in one can not be used.
        NotReady: the API server can not be reached, or a permission is missing.
    """
    check(config)
    async with connected(config.kubernetes.kubeconfig, clock=clock) as api:
        place = _Place.of(config)
        await require(api, _features(config, place.namespace))
        platform = await KubernetesPlatform.opened(api, config, place, clock)
        try:
            yield platform
        finally:
            await platform.close()


def check_settings(config: Config) -> None:
    """Check the settings and the files they name, without asking the API server anything. Blocks.

    Raises:
        ConfigurationError: they can not be used.
        NotReady: a file could not be read.
    """

    async def read(kubeconfig: Path) -> None:
        async with connected(kubeconfig):
            pass

    check(config)
    folder = config.authority.folder
    if folder is not None and _folder(folder).files():
        read_plugged(folder, config.trust_domain, SystemClock().now())
    if config.kubernetes.kubeconfig is not None:  # without one, it is read in the pod
        asyncio.run(read(config.kubernetes.kubeconfig))


@dataclass(frozen=True, slots=True)
class _Place:
    """Where this CA is, and the name of this process."""

    namespace: str
    replica: str

    @classmethod
    def of(cls, config: Config) -> _Place:
        namespace = config.kubernetes.namespace
        if not namespace:
            with suppress(OSError):
                namespace = _POD_NAMESPACE.read_text().strip()
        # A container that is restarted in its pod has the same name, but is another process.
        replica = f"{os.environ.get('POD_NAME') or socket.gethostname()}-{secrets.token_hex(4)}"
        return cls(namespace or _USUAL_NAMESPACE, replica)


class KubernetesPlatform:
    """What runs on Kubernetes (see `Platform`). Lives on one event loop.

    Attributes:
        ca: the CA.
        leadership: what the leader does.
    """

    def __init__(
        self,
        ca: CertificateAuthority,
        leadership: Leadership,
        *,
        api: KubernetesAPI,
        authority: _Authority,
        watch: ClusterWatch,
        callers: Callers,
    ) -> None:
        self.ca = ca
        self.leadership = leadership
        self._api = api
        self._authority = authority
        self._watch = watch
        self._callers = callers
        self._tasks: list[asyncio.Task[None]] = []

    @classmethod
    async def opened(cls, api: KubernetesAPI, config: Config, place: _Place, clock: Clock) -> KubernetesPlatform:
        """The platform, with its authority read or made (see `open_kubernetes`)."""
        watch = ClusterWatch(api, stale_after=config.kubernetes.tokens.stale_after)
        callers = Callers(api, watch, trust_domain=config.trust_domain, settings=config.kubernetes.tokens, clock=clock)
        shared = _Authority(api, config, place.namespace, clock)
        authority = await shared.opened()
        opening = partial(CertificateAuthority, bearers=[callers.proof], registry=callers.registry, nodes=callers.nodes)
        ca = await asyncio.to_thread(opening, ca_settings(config), authority, clock)
        events = EventRecorder(api, instance=place.replica, clock=clock)
        election = LeaderElection(
            api,
            place.namespace,
            LEASE,
            identity=place.replica,
            clock=clock,
            timing=lease_timing(config.kubernetes.lease),
        )
        at = Circumstances(api, config, ca, watch, place.namespace, election.still_leading, events, clock)
        work = leader_work(at)
        leadership = Leadership(api, election, events=events, work=work, clock=clock)
        shared.published = leadership.published
        return cls(ca, leadership, api=api, authority=shared, watch=watch, callers=callers)

    @property
    def shares_authority(self) -> bool:
        """True: all replicas change it."""
        return True

    def gauges(self) -> tuple[Gauge, ...]:
        """The platform's own metrics that are looked up when somebody asks."""
        return (*self._callers.gauges(), *self.leadership.gauges())

    def register(self, registry: CollectorRegistry) -> None:
        """Show the numbers of the controller, and what the API server is asked."""
        self.leadership.register(registry)
        APICalls(registry, self._api.calls)

    def look_after(self, daemon: Daemon, alarm: Alarm) -> None:  # noqa: ARG002  # everything here is watched
        """Watch, follow the authority, and stand for election."""
        for part in (self._watch, self._callers, self._authority, self.leadership):
            self._tasks += [daemon.supervise(name, work) for name, work in part.tasks().items()]
        daemon.readiness.mention("leader's work", self.leadership.degraded)

    async def close(self) -> None:
        """Finish what was begun, and take no more. The leader's work ends first, so that another can lead at once."""
        for task in reversed(self._tasks):
            task.cancel()
            await asyncio.wait({task})
        await self.ca.close()
        await self._callers.close()


class _Authority:
    """The authority that all replicas share, and the watches that tell of its changes."""

    def __init__(self, api: KubernetesAPI, config: Config, namespace: str, clock: Clock) -> None:
        self.published: Callable[[int], bool] = lambda _: False
        self._config = config
        self._clock = clock
        self._store = SecretAuthorityStore(api, namespace, config.trust_domain)
        self._changed = asyncio.Event()
        self._secret = Reflector(
            api, SECRETS, lambda _: True, selection=Selection(namespace, f"metadata.name={AUTHORITY_SECRET}")
        )
        self._secret.on_change(lambda _: self._changed.set())
        self._plugged = PluggedSecret(api, namespace)
        self._plugged.reflector.on_change(lambda _: self._changed.set())

    async def opened(self) -> PluggedAuthority:
        """The stored authority; it is made if it is certain that there is none yet (see `open_shared_authority`)."""
        folder = self._config.authority.folder
        source: IssuerSource = self._plugged if folder is None else _folder(folder)
        if folder is None:
            await self._plugged.read()
        opening = partial(
            open_shared_authority,
            rollout=Rollout(self._is_published, self._config.kubernetes.settle),
            longest_ttl=self._config.signing.max_ttl,
            lifetime=self._config.authority.root_lifetime,
        )
        self._authority = await asyncio.to_thread(opening, source, self._store, self._config.trust_domain, self._clock)
        return self._authority

    def tasks(self) -> Tasks:
        """The tasks that follow every change, whoever made it."""
        tasks: dict[str, Coroutine[object, object, None]] = {
            "authority secret": self._secret.run(),
            "authority changes": self._follow(AuthorityWatch(self._authority, self._clock, shared=True)),
        }
        if self._config.authority.folder is None:
            tasks["plugged-in authority"] = self._plugged.reflector.run()
        return tasks

    def _is_published(self, sequence: int) -> bool:
        return self.published(sequence)

    async def _follow(self, watch: AuthorityWatch) -> NoReturn:
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._patience()):
                    await self._changed.wait()
            self._changed.clear()
            try:
                await watch.look()
            except IstioAuthError as error:
                _log.error("the authority stays as it is", reason=str(error))

    def _patience(self) -> float | None:
        """How many seconds to wait for a change; None for ever. A takeover needs looks even if nothing changes."""
        if self._authority.waiting is None:
            return None
        return max(_SHORTEST_LOOK, self._config.kubernetes.settle.total_seconds() / _LOOKS)


def _folder(folder: Path) -> IssuerFolder:
    """The folder of a CA that is plugged in, or will be: the volume of an optional secret is empty until there is one.

    Raises:
        ConfigurationError: there is no such folder.
    """
    if not folder.is_dir():
        raise ConfigurationError(
            f"there is no folder {folder} for a plugged-in CA: make it, empty if there is none yet"
        )
    return IssuerFolder(folder)


def _features(config: Config, namespace: str) -> Features:
    settings = config.kubernetes
    return Features(
        namespace,
        settings.signer,
        plugged=config.authority.folder is None,
        offline=settings.tokens.verification is TokenVerification.OFFLINE,
        secrets=settings.controller.enabled,
        requests=settings.sign_requests,
    )
