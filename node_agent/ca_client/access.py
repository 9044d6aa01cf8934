"""How the agent reaches and authenticates to its CA: our own by SVID, another by Istio's contract alone and a token.

|                      | our own CA                       | `[istio_ca]`                                       |
|----------------------|----------------------------------|----------------------------------------------------|
| the CA is known by   | its exact SPIFFE ID              | the DNS name in its certificate                    |
| we prove ourselves by| an SVID of our own               | our service-account token, with each call          |
| it offers            | NodeService, or Istio's contract | Istio's contract                                   |
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from istio_auth.authorize import is_id
from istio_auth.clock import Clock
from istio_auth.sources.memory import MemorySource
from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import X509SVID
from istio_auth.tls import client_context
from istio_auth.x509_source import X509Context
from node_agent.ca_client.istio_ca import NamedServerContext, TokenClient, TokenStanding
from node_agent.ca_client.istio_contract import IstioClient
from node_agent.ca_client.link import CALink
from node_agent.ca_client.node_service import NodeServiceClient
from node_agent.ca_client.port import AnyCA, CertificateClient
from node_agent.config import Config
from node_agent.identity.enrolment import Enrolment
from node_agent.identity.identity import Enrolling, Identity
from node_agent.identity.pod_token import PodToken
from node_agent.identity.state import StateFolder, read_token
from node_agent.metrics import Metrics
from node_agent.trust import Trust


class Standing(Protocol):
    """How an agent authenticates to its CA."""

    @property
    def svid(self) -> X509SVID | None:
        """An SVID of its own; None if it has none."""
        ...

    @property
    def due(self) -> datetime | None:
        """When that is to be renewed."""
        ...

    @property
    def trouble(self) -> str | None:
        """Why the latest attempt failed."""
        ...

    @property
    def failing_for(self) -> timedelta | None:
        """How long attempts have failed; None if they have not, or that is not known."""
        ...

    @property
    def problem(self) -> str | None:
        """What keeps the agent from its work."""
        ...

    def lives(self) -> bool:
        """Whether the agent can authenticate now."""
        ...

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Call `changed` after each change."""
        ...

    def look_again(self) -> None:
        """Something may have changed: try at once."""
        ...

    async def look_for_token(self) -> None:
        """Try at once if a join token has come."""
        ...

    async def run(self) -> None:
        """Keep it fresh for as long as the agent runs."""
        ...


@dataclass(frozen=True, slots=True)
class Access:
    """The way to a CA.

    Args:
        standing: what we prove ourselves by.
        client: asked for workloads, and for news.
        bare: a connection that shows no certificate of ours; pods' tokens go over it.
        links: all connections.
    """

    standing: Standing
    client: CertificateClient
    bare: CALink
    links: tuple[CALink, ...]

    async def close(self) -> None:
        """End all connections."""
        for link in self.links:
            await link.close()


def access(config: Config, state: StateFolder, trust: Trust, *, clock: Clock, metrics: Metrics) -> Access:
    """The way to the CA that the settings name. Blocks."""
    if (name := config.istio_ca.server_name) is not None:
        return _by_token(config, name, trust)
    return _by_svid(config, state, trust, clock, metrics)


def _by_token(config: Config, name: str, trust: Trust) -> Access:
    link = CALink(config.ca_address, NamedServerContext(name, lambda: (trust.own,)))
    standing = TokenStanding(config.istio_ca.token_file)
    client = TokenClient(link, standing, timeout=config.ca_timeout, metadata=config.istio_ca.metadata)
    return Access(standing, client, link, (link,))


def _by_svid(config: Config, state: StateFolder, trust: Trust, clock: Clock, metrics: Metrics) -> Access:
    own, nothing = MemorySource(), MemorySource()

    def follow_trust() -> None:
        nothing.replace(X509Context((), trust.bundles))

    follow_trust()
    trust.subscribe(follow_trust)
    proven, unproven = _link(config, own, clock), _link(config, nothing, clock)
    client = _any_ca(config, proven)
    enrolment = _enrolment(config, state, trust, proven=client, unproven=_any_ca(config, unproven), clock=clock)
    identity = Identity(
        enrolment,
        state=state,
        source=own,
        trust=trust,
        svid=state.svid(config.spiffe_id),
        clock=clock,
        metrics=metrics,
    )
    identity.subscribe(proven.renew)
    return Access(identity, client, unproven, (proven, unproven))


def _enrolment(
    config: Config, state: StateFolder, trust: Trust, *, proven: AnyCA, unproven: AnyCA, clock: Clock
) -> Enrolling:
    if (path := config.ca_token_file) is not None:
        return PodToken(config.spiffe_id, path, client=unproven, trust=trust, ttl=config.svid_ttl, clock=clock)
    return Enrolment(
        config.spiffe_id,
        state.node_key(),
        state=state,
        trust=trust,
        proven=proven,
        unproven=unproven,
        read_token=lambda: read_token(config.join_token_file),
        ttl=config.svid_ttl,
        clock=clock,
    )


def _link(config: Config, source: MemorySource, clock: Clock) -> CALink:
    context = client_context(source, is_id(SpiffeID.for_ca(config.trust_domain)), alpn=("h2",), clock=clock)
    return CALink(config.ca_address, context)


def _any_ca(config: Config, link: CALink) -> AnyCA:
    timeout, version = config.ca_timeout, importlib.metadata.version("istio-auth")
    node = NodeServiceClient(link, config.trust_domain, timeout=timeout, version=version)
    return AnyCA(node, IstioClient(link, timeout=timeout))
