"""Verifies a service-account token without asking the API server, by its published keys and the watched caches.

Two ways lead to the same `ServiceAccountCaller`; each misses something.

A TokenReview sees what the API server sees at that moment: keys it no longer publishes, bound secrets, nodes and
webhook configurations, the end of a grace period. It costs a call for each token, nothing works while the API server
is away, and for the few seconds for which an answer is kept (`review_cache`) it misses what happened since.

Verifying offline needs no call and goes on while the API server can not be reached for so long as the caches count as
live. It can not see
- that a signing key was taken back, until the published keys are read again;
- that a pod or service account was deleted, until the watch says so: normally milliseconds, and at worst as long as
  the caches count as live without a word from the API server;
- that a token was refused for a reason of the API server's own: another issuer, another authenticator, its clock.
A token that it knows it can not judge is left to a review (`Unsure`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol

from ca.platform.kubernetes.callers.pods import PodView
from ca.platform.kubernetes.callers.service_account import ServiceAccountCaller, caller_of_claims
from istio_auth.jwks import KeySet
from istio_auth.tokens import DEFAULT_LEEWAY, Claims, TokenFault, TokenRefused, verify_token

# The API server may decide otherwise on these: it may have a newer key or a second issuer, and its clock counts.
_ARGUABLE = frozenset({TokenFault.UNKNOWN_KEY, TokenFault.ISSUER, TokenFault.NOT_YET_VALID})
_UNWATCHED = ("secret", "validatingwebhookconfiguration", "mutatingwebhookconfiguration")


class ServiceAccountView(Protocol):
    """Knows the present service accounts."""

    @property
    def live(self) -> bool:
        """Whether the answers here are up to date."""
        ...

    def uid(self, namespace: str, name: str) -> str | None:
        """The UID of a service account; None if there is none, or if its deletion was asked for."""
        ...


@dataclass(frozen=True, slots=True)
class Unsure:
    """It can not be decided offline; a review can decide it.

    Args:
        reason: why, for the log.
    """

    reason: str


def verify_offline(
    token: str,
    keys: KeySet,
    *,
    issuer: str,
    audiences: Collection[str],
    now: datetime,
    pods: PodView,
    service_accounts: ServiceAccountView,
    leeway: timedelta = DEFAULT_LEEWAY,
) -> ServiceAccountCaller | Unsure:
    """Whom a service-account token speaks for, if that can be told without the API server.

    Args:
        token: the bearer token.
        keys: the keys that the cluster publishes, as last read.
        issuer: the cluster's issuer of service-account tokens.
        audiences: ours.
        now: the instant at which it must be valid.
        pods: the present pods, as watched.
        service_accounts: the present service accounts, as watched.
        leeway: by how much our clock and the API server's may differ.

    Raises:
        NotAuthenticated: it speaks for nobody, whatever the API server knows.
    """
    try:
        claims = verify_token(
            token, keys, issuer=issuer, audiences=audiences, now=now, leeway=leeway, required=("sub", "iss")
        )
    except TokenRefused as refused:
        if refused.fault in _ARGUABLE:
            return Unsure(str(refused))
        raise
    caller = caller_of_claims(claims)
    doubt = _unwatched(claims) or _account_doubt(caller, service_accounts) or _pod_doubt(caller, pods)
    return Unsure(doubt) if doubt else caller


def _unwatched(claims: Claims) -> str:
    """Why the object that the token is bound to can not be looked at here; empty if it can."""
    said = claims.members["kubernetes.io"]
    assert isinstance(said, Mapping)  # caller_of_claims has seen to it
    for kind in _UNWATCHED:
        if kind in said:
            return f"the token is bound to a {kind}, which is not watched"
    return "the token is bound to a node, which is not watched" if "node" in said and "pod" not in said else ""


def _account_doubt(caller: ServiceAccountCaller, service_accounts: ServiceAccountView) -> str:
    if not service_accounts.live:
        return "the service accounts of now are not known"
    uid = service_accounts.uid(caller.namespace, caller.service_account)
    if uid is None:
        return f"there is no service account {caller} as far as is known"
    if uid != caller.service_account_uid:
        return (
            f"the service account {caller} has the UID {uid}, and in the token {caller.service_account_uid or 'none'}"
        )
    return ""


def _pod_doubt(caller: ServiceAccountCaller, pods: PodView) -> str:
    if not caller.pod_uid:
        return ""  # a token that was asked for without a pod lives and dies with its service account
    if not pods.live:
        return "the pods of now are not known"
    shown = f"the pod {caller.pod_name} of {caller}, UID {caller.pod_uid},"
    pod = pods.pod(caller.pod_uid)
    if pod is None:
        return f"{shown} is not there as far as is known"
    if (pod.namespace, pod.name, pod.service_account) != (caller.namespace, caller.pod_name, caller.service_account):
        return f"{shown} is {pod.namespace}/{pod.name} of {pod.service_account}"
    return f"{shown} is being deleted" if pod.deleted else ""
