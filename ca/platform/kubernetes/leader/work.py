"""Puts the leader's work together from the configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass

from ca.certificate_authority import CertificateAuthority
from ca.config import Config
from ca.controller.loop import Pace, SecretController
from ca.controller.namespaces import NamespaceRules
from ca.controller.pairs import PairMaker
from ca.controller.report import Reports
from ca.controller.settings import Settings
from ca.controller.snapshot import WorkloadSecret
from ca.controller.tally import Tally
from ca.platform.kubernetes.api.client import KubernetesAPI
from ca.platform.kubernetes.api.reflector import Reflector
from ca.platform.kubernetes.api.resources import CONFIG_MAPS, SECRETS
from ca.platform.kubernetes.cluster_watch import ClusterWatch
from ca.platform.kubernetes.events.recorder import EventRecorder
from ca.platform.kubernetes.facts import ConfigMapFact
from ca.platform.kubernetes.leader.leadership import LeaderWork
from ca.platform.kubernetes.requests.csr_signer import CSRSigner
from ca.platform.kubernetes.requests.pod_certificate_signer import PodCertificateSigner
from ca.platform.kubernetes.requests.queue import RequestQueue
from ca.platform.kubernetes.roots.cluster_trust_bundle import TrustBundlePublisher
from ca.platform.kubernetes.roots.plan import PublishedRoots, read_config_map
from ca.platform.kubernetes.roots.publisher import OUR_NAME, RootPublisher
from ca.platform.kubernetes.secrets.account_events import AccountEvents
from ca.platform.kubernetes.secrets.secrets import OUR_TYPE, WorkloadSecrets
from ca.platform.kubernetes.secrets.snapshots import ClusterSnapshots
from ca.platform.kubernetes.settings import namespace_rules, renewal_rule, signer
from istio_auth.clock import Clock


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What the leader's work needs.

    Args:
        api: the API server.
        config: decides what there is to do.
        ca: signs.
        watch: what every replica watches.
        namespace: the namespace of the CA, which is also the mark on everything it makes.
        leading: whether this process leads at this instant.
        events: tells people.
        clock: tells the time.
    """

    api: KubernetesAPI
    config: Config
    ca: CertificateAuthority
    watch: ClusterWatch
    namespace: str
    leading: Callable[[], bool]
    events: EventRecorder
    clock: Clock

    def rules(self) -> NamespaceRules:
        """Which namespaces are managed."""
        return namespace_rules(self.config, self.namespace)

    def roots(self) -> PublishedRoots:
        """What is to be published now."""
        bundle = self.ca.authority.bundle
        return PublishedRoots(bundle.sequence or 0, bundle.to_pem().decode())


def leader_work(at: Circumstances) -> LeaderWork:
    """What there is to do for the leader. On the event loop that it will run on.

    Raises:
        ConfigurationError: a setting makes no sense.
    """
    config_maps = Reflector(at.api, CONFIG_MAPS, read_config_map, selection=OUR_NAME)
    publisher, trust_bundle = _publisher(at, config_maps), _trust_bundle(at)
    loop = asyncio.get_running_loop()

    def changed() -> None:
        for each in (publisher, trust_bundle):
            loop.call_soon_threadsafe(each.changed)

    at.ca.authority.subscribe(changed)
    tally, controller = Tally(), None
    watches: dict[str, Callable[[], Coroutine[None, None, None]]] = {"config maps": config_maps.run}
    if at.config.kubernetes.controller.enabled:
        sink = WorkloadSecrets(at.api, at.namespace, lambda: at.ca.authority.bundle)
        secrets = Reflector(at.api, SECRETS, sink.decode, selection=OUR_TYPE)
        controller = _controller(at, sink, secrets, tally)
        watches["secrets"] = secrets.run
    queues = _queues(at) if at.config.kubernetes.sign_requests else ()
    return LeaderWork(publisher, trust_bundle, controller, queues, watches, tally)


def _publisher(at: Circumstances, config_maps: Reflector[ConfigMapFact]) -> RootPublisher:
    return RootPublisher(
        at.api,
        at.watch.namespaces,
        config_maps,
        roots=at.roots,
        scope=at.rules().scope,
        mark=at.namespace,
        clock=at.clock,
        events=at.events,
        leading=at.leading,
        resync=at.config.kubernetes.controller.resync,
    )


def _trust_bundle(at: Circumstances) -> TrustBundlePublisher:
    return TrustBundlePublisher(
        at.api,
        at.config.kubernetes.signer,
        roots=at.roots,
        mark=at.namespace,
        clock=at.clock,
        events=at.events,
        leading=at.leading,
    )


def _controller(
    at: Circumstances, sink: WorkloadSecrets, secrets: Reflector[WorkloadSecret], tally: Tally
) -> SecretController:
    settings, ttl = at.config.kubernetes.controller, at.config.signing.default_ttl
    return SecretController(
        ClusterSnapshots(at.watch.accounts, at.watch.namespaces, secrets),
        sink,
        at.ca.authority,
        pairs=PairMaker(at.ca.issuer, at.ca.authority, at.ca.admission.audit, tally, ttl=ttl),
        reports=Reports(AccountEvents(at.events)),
        settings=Settings(at.namespace, at.rules(), ttl, renewal_rule(at.config)),
        clock=at.clock,
        leading=at.leading,
        tally=tally,
        pace=Pace(settings.workers, settings.resync),
    )


def _queues(at: Circumstances) -> tuple[RequestQueue, ...]:
    audit, authority = at.ca.admission.audit, at.ca.authority
    own = signer(at.config)
    pods = PodCertificateSigner(
        at.api,
        own,
        issuer=at.ca.issuer,
        within=lambda: authority.active.validity,
        pods=at.watch.pod_index,
        audit=audit,
        clock=at.clock,
    )
    return pods.queue, CSRSigner(at.api, own, issuer=at.ca.issuer, audit=audit, clock=at.clock).queue
