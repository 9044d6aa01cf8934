"""The proof by service-account token: verified by a review of the API server, or offline by its published keys.

A caller may also show a certificate; then both must name the same identity (see `ca.attest`). What each of the two ways
can not see is listed in `ca.platform.kubernetes.callers.offline`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

import structlog

from ca.attest import Attested, Evidence
from ca.platform.kubernetes.api.client import KubernetesAPI
from ca.platform.kubernetes.api.objects import object_of
from ca.platform.kubernetes.api.refusals import ObjectRefused
from ca.platform.kubernetes.api.resources import TOKEN_REVIEWS
from ca.platform.kubernetes.callers.offline import ServiceAccountView, Unsure, verify_offline
from ca.platform.kubernetes.callers.pods import PodView
from ca.platform.kubernetes.callers.published_keys import PublishedKeys
from ca.platform.kubernetes.callers.service_account import ServiceAccountCaller, caller_of_review
from istio_auth.bundle import JSON
from istio_auth.clock import Clock
from istio_auth.errors import NotAuthenticated
from istio_auth.keys import PublicKey
from istio_auth.spiffe_id import TrustDomain

Verify = Callable[[str], Awaitable[ServiceAccountCaller]]
_DOTS = 2  # in every token of Kubernetes, and in no join token
_log = structlog.get_logger()


class ServiceAccountTokens:
    """The `Proof` by bearer token.

    Args:
        trust_domain: ours.
        verify: tells whom a token speaks for.
    """

    def __init__(self, trust_domain: TrustDomain, verify: Verify) -> None:
        self._trust_domain = trust_domain
        self._verify = verify

    async def examine(self, evidence: Evidence) -> Attested | None:
        """Who is calling by its token; None if there is none, or one of another kind.

        Raises:
            NotAuthenticated: the token is nobody's, or not for us.
            NotReady: it could not be looked at.
        """
        if evidence.bearer is None or evidence.bearer.count(".") != _DOTS:
            return None
        caller = await self._verify(evidence.bearer)
        return caller.attested(self._trust_domain, address=evidence.caller.address)

    async def settle(self, attested: Attested, public_key: PublicKey) -> None:
        """Nothing to do: a token can be shown as often as one likes."""


def reviewer(api: KubernetesAPI, audiences: Sequence[str]) -> Verify:
    """A `Verify` that asks the API server about each token.

    Args:
        api: the API server.
        audiences: the audiences of which a token must have one.
    """
    wanted: list[JSON] = list(audiences)

    async def review(token: str) -> ServiceAccountCaller:
        try:
            answer = await api.create(TOKEN_REVIEWS, {"spec": {"token": token, "audiences": wanted}})
        except ObjectRefused:  # its words may quote the token
            raise NotAuthenticated("the API server takes the token for no token at all") from None
        return caller_of_review(object_of(answer.get("status")), audiences)

    return review


@dataclass(frozen=True, slots=True)
class Watched:
    """What offline verification looks at."""

    pods: PodView
    service_accounts: ServiceAccountView


class OfflineFirst:
    """Verifies tokens without asking the API server where that is certain, and asks otherwise.

    Args:
        keys: the keys that the cluster publishes.
        watched: the present pods and service accounts, as watched.
        audiences: the audiences of which a token must have one.
        clock: tells the time.
        otherwise: asks the API server.

    Attributes:
        alone: how many tokens were verified without asking.
    """

    def __init__(
        self, keys: PublishedKeys, watched: Watched, *, audiences: Sequence[str], clock: Clock, otherwise: Verify
    ) -> None:
        self.alone = 0
        self._keys = keys
        self._watched = watched
        self._audiences = tuple(audiences)
        self._clock = clock
        self._otherwise = otherwise

    async def caller(self, token: str) -> ServiceAccountCaller:
        """Whom a token speaks for.

        Raises:
            NotAuthenticated: it speaks for nobody, or is not for us.
            NotReady: it could not be verified offline, and the API server could not be asked.
        """
        if (known := self._keys.known) is None:
            return await self._otherwise(token)
        found = verify_offline(
            token,
            known.keys,
            issuer=known.issuer,
            audiences=self._audiences,
            now=self._clock.now(),
            pods=self._watched.pods,
            service_accounts=self._watched.service_accounts,
        )
        if isinstance(found, Unsure):
            _log.debug("a token is reviewed", reason=found.reason)
            self._keys.ask_soon()
            return await self._otherwise(token)
        self.alone += 1
        return found
