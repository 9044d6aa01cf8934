"""Decides who may have which identity on Kubernetes: own rules for tokens, and otherwise those of every platform."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from ca.agents.agent import agent_name
from ca.attest import Attested
from ca.platform.kubernetes.callers.impersonation import ServiceAccountRegistry
from ca.platform.kubernetes.callers.service_account import ServiceAccountCaller
from ca.registry import Grant, Registry
from istio_auth.errors import NotAuthorized
from istio_auth.spiffe_id import SpiffeID


class KubernetesRegistry:
    """The `Registry` of this platform.

    Args:
        by_token: decides for service accounts that show a token.
        entitled: decides for everybody else: agents, and workloads that show a certificate.
        has_joined: whether an agent of this name joined by a join token, and so is not the agent of a node.
    """

    def __init__(
        self, by_token: ServiceAccountRegistry, entitled: Registry, *, has_joined: Callable[[str], bool]
    ) -> None:
        self._by_token = by_token
        self._entitled = entitled
        self._has_joined = has_joined

    def grant(self, attested: Attested, wanted: SpiffeID, now: datetime) -> Grant:
        """What this caller may have of the identity it asks for (see `Registry`).

        Raises:
            NotAuthorized: it may not have it.
            NotReady: nobody can tell now.
        """
        if isinstance(attested.caller, ServiceAccountCaller):
            return self._by_token.grant(attested, wanted, now)
        if wanted == attested.spiffe_id and not attested.single_use:
            self._check_renewal(attested.spiffe_id)
        return self._entitled.grant(attested, wanted, now)

    def _check_renewal(self, spiffe_id: SpiffeID) -> None:
        """The agent of a node must show a token for each certificate of its own: a stolen one can not be renewed."""
        name = agent_name(spiffe_id)
        if name is not None and not self._has_joined(name):
            raise NotAuthorized(f"{spiffe_id} shows no token, and the agent of a node gets its own identity by one")
