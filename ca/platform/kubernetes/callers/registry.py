"""Who may have which identity on Kubernetes: by a token what its service account may, else what holds everywhere."""

from __future__ import annotations

from datetime import datetime

from ca.attest import Attested
from ca.platform.kubernetes.callers.impersonation import ServiceAccountRegistry
from ca.platform.kubernetes.callers.service_account import ServiceAccountCaller
from ca.registry import Grant, Registry
from istio_auth.spiffe_id import SpiffeID


class KubernetesRegistry:
    """The `Registry` of this platform.

    Args:
        by_token: what service accounts may have that show a token.
        entitled: what agents may have, and workloads that show a certificate.
    """

    def __init__(self, by_token: ServiceAccountRegistry, entitled: Registry) -> None:
        self._by_token = by_token
        self._entitled = entitled

    def grant(self, attested: Attested, wanted: SpiffeID, now: datetime) -> Grant:
        """What this caller may have of the identity it asks for (see `Registry`).

        Raises:
            NotAuthorized: nothing.
            NotReady: it can not be told now.
        """
        shows_token = isinstance(attested.caller, ServiceAccountCaller)
        return (self._by_token if shows_token else self._entitled).grant(attested, wanted, now)
