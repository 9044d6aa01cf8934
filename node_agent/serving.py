"""Everything that serves workloads: secret discovery, the Workload API, files, and the sockets they call."""

from __future__ import annotations

from collections.abc import Callable

from istio_auth.clock import Clock
from istio_auth.rpc.server import Service
from istio_auth.subscribers import Subscribers
from node_agent.attest import WorkloadAttestor
from node_agent.attest.kubernetes import KubernetesAttestor
from node_agent.attest.process import ProcessAttestor
from node_agent.attest.socket import SocketAttestor
from node_agent.attest.systemd import SystemdAttestor
from node_agent.attest.unix import UnixAttestor
from node_agent.config import Config
from node_agent.files.writer import FilesWriter
from node_agent.metrics import Metrics
from node_agent.quota import Quota
from node_agent.sds.service import SecretDiscovery
from node_agent.sync import Consumers
from node_agent.workload_api.health import Health
from node_agent.workload_api.reflection import reflection
from node_agent.workload_api.service import WorkloadAPI
from node_agent.workloads.cache import WorkloadCache


class Workloads:
    """Serves what is in the cache.

    Args:
        config: the settings.
        cache: what workloads hold.
        clock: tells the time.
        metrics: counts.
        registrations_missing: why nobody is known yet; None once registrations are there.
        by_socket: whether callers are known by the socket alone; then their processes may live where we can not see
            them, as in other containers of our pod.

    Attributes:
        trust_domain: our own.
        kubernetes: tells pods from each other; None if no kubelet is asked.
        observing: look at any process of this machine, whether it called or not.
        quota: what callers may have open.
        discovery: Envoy's secret discovery service.
        workload_api: the SPIFFE Workload API.
        files: the folders that certificates are kept in.
    """

    def __init__(
        self,
        config: Config,
        cache: WorkloadCache,
        *,
        clock: Clock,
        metrics: Metrics,
        registrations_missing: Callable[[], str | None],
        by_socket: bool = False,
    ) -> None:
        self.trust_domain = config.trust_domain
        self._subscribers = Subscribers()
        self.kubernetes = KubernetesAttestor.of(config.kubernetes)
        observing: list[WorkloadAttestor] = [UnixAttestor(), ProcessAttestor(), SystemdAttestor()]
        self.observing = (*observing, self.kubernetes) if self.kubernetes else tuple(observing)
        attestors = (SocketAttestor(),) if by_socket else (*self.observing, SocketAttestor())
        self.quota = Quota(config.limits, lambda limit: metrics.streams_refused.labels(limit).inc())
        self.discovery = SecretDiscovery(
            cache,
            config.trust_domain,
            attestors=attestors,
            metrics=metrics,
            max_names=config.limits.names_per_stream,
        )
        self.workload_api = WorkloadAPI(
            cache, attestors=attestors, registrations_missing=registrations_missing, metrics=metrics
        )
        self.files = tuple(
            FilesWriter(each, cache, clock=clock, metrics=metrics, progress=self._subscribers.tell)
            for each in config.files
        )
        self.discovery.subscribe(self._subscribers.tell)
        self.workload_api.subscribe(self._subscribers.tell)
        metrics.gauge("sds_clients", "Open streams of SDS clients", lambda: len(self.discovery.clients()))
        metrics.gauge("sds_clients_waiting", "Of these, how many wait for something", self.discovery.waiting)
        metrics.gauge(
            "workload_api_clients", "Open streams of the Workload API", lambda: len(self.workload_api.streams())
        )
        metrics.gauge("bundle_consumers", "Clients that want the bundle", lambda: self.consumers().total)
        metrics.gauge(
            "bundle_consumers_current", "Of these, who took the present one", lambda: self.consumers().current
        )

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Call `changed` whenever `consumers` may say something else, for as long as we run."""
        self._subscribers.add(changed)

    def consumers(self) -> Consumers:
        """Who is served the bundle of our own trust domain, and who of them has taken the present one."""
        written = [each for each in self.files if each.is_current() is not None]
        behind = [f"files {each.settings.name}" for each in written if not each.is_current()]
        return self.discovery.consumers() + self.workload_api.consumers() + Consumers.of(len(written), behind)

    def services(self, ready: Callable[[], bool]) -> list[Service]:
        """What is served on the sockets.

        Args:
            ready: whether workloads can be served now, for those who ask only that.
        """
        own = [self.discovery.service(), self.workload_api.service()]
        health = Health(own, ready).service()
        return [*own, health, *reflection([*own, health])]
