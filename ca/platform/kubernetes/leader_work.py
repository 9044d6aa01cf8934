"""The leader's work, put together from the configuration."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine

from ca.certificate_authority import CertificateAuthority
from ca.config import Config
from ca.controller.label_selector import LabelSelector
from ca.controller.loop import Pace, SecretController
from ca.controller.namespaces import NamespaceRules
from ca.controller.pairs import PairMaker
from ca.controller.renewal import RenewalRule
from ca.controller.report import Reports
from ca.controller.settings import Settings
from ca.controller.tally import Tally
from ca.platform.kubernetes.account_events import AccountEvents
from ca.platform.kubernetes.api import KubernetesAPI
from ca.platform.kubernetes.cluster_watch import ClusterWatch
from ca.platform.kubernetes.csr_signer import CSRSigner
from ca.platform.kubernetes.events import EventRecorder
from ca.platform.kubernetes.leadership import LeaderWork
from ca.platform.kubernetes.pod_certificate_signer import PodCertificateSigner
from ca.platform.kubernetes.reflector import Reflector
from ca.platform.kubernetes.request_queue import RequestQueue
from ca.platform.kubernetes.resources import CONFIG_MAPS, SECRETS
from ca.platform.kubernetes.root_plan import PublishedRoots, read_config_map
from ca.platform.kubernetes.root_publisher import OUR_NAME, RootPublisher
from ca.platform.kubernetes.secrets import OUR_TYPE, WorkloadSecrets
from ca.platform.kubernetes.signer import Signer
from ca.platform.kubernetes.snapshots import ClusterSnapshots
from istio_auth.clock import Clock


def leader_work(
    api: KubernetesAPI,
    config: Config,
    ca: CertificateAuthority,
    *,
    watch: ClusterWatch,
    namespace: str,
    leading: Callable[[], bool],
    events: EventRecorder,
    clock: Clock,
) -> LeaderWork:
    """What there is to do for the leader.

    Args:
        api: the API server.
        config: says what.
        ca: signs.
        watch: what every replica watches.
        namespace: that of the CA; also the mark on all it made.
        leading: whether this process leads at this instant.
        events: tells people.
        clock: tells the time.

    Raises:
        ConfigurationError: a setting makes no sense.
    """
    settings = config.kubernetes.controller
    rules = NamespaceRules(
        namespace,
        settings.enable_by_default,
        LabelSelector.parse(settings.namespace_selector) if settings.namespace_selector else None,
        frozenset(settings.namespaces),
    )
    config_maps = Reflector(api, CONFIG_MAPS, read_config_map, selection=OUR_NAME)
    publisher = RootPublisher(
        api,
        watch.namespaces,
        config_maps,
        roots=lambda: PublishedRoots(ca.authority.state.sequence, ca.authority.root_pem().decode()),
        scope=rules.scope,
        mark=namespace,
        clock=clock,
        events=events,
        leading=leading,
        resync=settings.resync,
    )
    loop = asyncio.get_running_loop()

    def changed() -> None:
        loop.call_soon_threadsafe(publisher.changed)

    ca.authority.subscribe(changed)
    tally, controller = Tally(), None
    watches: dict[str, Callable[[], Coroutine[None, None, None]]] = {"config maps": config_maps.run}
    if settings.enabled:
        sink = WorkloadSecrets(api, namespace, lambda: ca.authority.bundle)
        secrets = Reflector(api, SECRETS, sink.decode, selection=OUR_TYPE)
        controller = SecretController(
            ClusterSnapshots(watch.accounts, watch.namespaces, secrets),
            sink,
            ca.authority,
            pairs=PairMaker(ca.issuer, ca.authority, ca.admission.audit, tally, ttl=config.signing.default_ttl),
            reports=Reports(AccountEvents(events)),
            settings=Settings(
                namespace, rules, config.signing.default_ttl, RenewalRule(settings.grace_ratio, settings.min_grace)
            ),
            clock=clock,
            leading=leading,
            tally=tally,
            pace=Pace(settings.workers, settings.resync),
        )
        watches["secrets"] = secrets.run
    queues = _queues(api, config, ca, watch, clock) if config.kubernetes.sign_requests else ()
    return LeaderWork(publisher, controller, queues, watches, tally)


def _queues(
    api: KubernetesAPI, config: Config, ca: CertificateAuthority, watch: ClusterWatch, clock: Clock
) -> tuple[RequestQueue, ...]:
    signer, audit = Signer(config.kubernetes.signer, config.trust_domain, config.signing.profile()), ca.admission.audit
    pods = PodCertificateSigner(
        api,
        signer,
        issuer=ca.issuer,
        within=lambda: ca.authority.active.validity,
        pods=watch.pod_index,
        audit=audit,
        clock=clock,
    )
    return pods.queue, CSRSigner(api, signer, issuer=ca.issuer, audit=audit, clock=clock).queue
