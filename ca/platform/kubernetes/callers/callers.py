"""Puts the parts for callers together: tokens reviewed or verified offline, and what service accounts may have."""

from __future__ import annotations

import time

from ca.agents.agent import Agents
from ca.agents.folder import AgentFolder
from ca.config import TokenSettings, TokenVerification
from ca.metrics import Gauge
from ca.platform.kubernetes.api.client import KubernetesAPI
from ca.platform.kubernetes.callers.impersonation import NodeAccounts, ServiceAccountRegistry
from ca.platform.kubernetes.callers.node_agents import NodeAgents, PodRegistrations
from ca.platform.kubernetes.callers.published_keys import PublishedKeys
from ca.platform.kubernetes.callers.registry import KubernetesRegistry
from ca.platform.kubernetes.callers.review_cache import ReviewCache
from ca.platform.kubernetes.callers.token_proof import OfflineFirst, ServiceAccountTokens, Watched, reviewer
from ca.platform.kubernetes.cluster_watch import ClusterWatch, Tasks
from ca.registrations.file import RegistrationFile
from ca.registrations.table import Registrations
from ca.registry import Registry
from istio_auth.clock import Clock
from istio_auth.spiffe_id import TrustDomain


class Callers:
    """Service accounts that call. Lives on one event loop.

    Args:
        api: the API server.
        watch: what is watched.
        trust_domain: ours.
        settings: how tokens are verified.
        clock: tells the time.

    Raises:
        ConfigurationError: a node account is no `namespace/serviceaccount`.
    """

    def __init__(
        self,
        api: KubernetesAPI,
        watch: ClusterWatch,
        *,
        trust_domain: TrustDomain,
        settings: TokenSettings,
        clock: Clock,
    ) -> None:
        self._reviews = ReviewCache(reviewer(api, settings.audiences), clock, time.monotonic, ttl=settings.review_lasts)
        self._keys: PublishedKeys | None = None
        self._offline: OfflineFirst | None = None
        verify = self._reviews.caller
        if settings.verification is TokenVerification.OFFLINE:
            self._keys = PublishedKeys(api)
            watched = Watched(watch.pod_index, watch.account_view)
            self._offline = OfflineFirst(
                self._keys, watched, audiences=settings.audiences, clock=clock, otherwise=verify
            )
            verify = self._offline.caller
        self.proof = ServiceAccountTokens(trust_domain, verify)
        self._trust_domain = trust_domain
        self._accounts = NodeAccounts.parse(settings.node_accounts)
        self._pods = watch.pod_index
        self._agents: NodeAgents | None = None

    def nodes(self, joined: AgentFolder, file: RegistrationFile) -> tuple[Agents, Registrations]:
        """The agents and registrations of this platform, made from those that every platform has."""
        self._agents = NodeAgents(joined, self._accounts, self._pods)
        return self._agents, PodRegistrations(file, self._agents, self._pods, trust_domain=self._trust_domain)

    def registry(self, entitled: Registry) -> Registry:
        """The registry of this platform, made from the one that every platform has. To be called after `nodes`."""
        assert self._agents is not None
        has_joined = self._agents.has_joined
        by_token = ServiceAccountRegistry(self._trust_domain, self._accounts, self._pods, has_joined=has_joined)
        return KubernetesRegistry(by_token, entitled, has_joined=has_joined)

    def tasks(self) -> Tasks:
        """What has to run as long as callers are served, by name."""
        return {} if self._keys is None else {"keys of tokens": self._keys.run()}

    def gauges(self) -> tuple[Gauge, ...]:
        """The metrics that are looked up when somebody asks."""
        return (
            Gauge.single(
                "istio_auth_ca_tokens_reviewed", "Tokens that the API server was asked about.", self._reviewed
            ),
            Gauge.single("istio_auth_ca_tokens_verified_offline", "Tokens verified without asking.", self._alone),
        )

    async def close(self) -> None:
        """End the reviews that are running."""
        await self._reviews.close()

    def _reviewed(self) -> int:
        return self._reviews.reviewed

    def _alone(self) -> int:
        return 0 if self._offline is None else self._offline.alone
