"""The permissions that the CA needs on Kubernetes, and the check at start that it has them (SelfSubjectAccessReview).

This is the one place that says which calls are made, and what for; the roles in `deploy/kubernetes` are compared with
it. Every permission here is needed by an enabled feature.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Final

import structlog

from ca.platform.kubernetes.api.client import KubernetesAPI
from ca.platform.kubernetes.api.objects import Object, member
from ca.platform.kubernetes.api.refusals import AccessRefused
from ca.platform.kubernetes.api.resources import (
    CERTIFICATE_SIGNING_REQUESTS,
    CLUSTER_TRUST_BUNDLES,
    CONFIG_MAPS,
    EVENTS,
    LEASES,
    NAMESPACES,
    POD_CERTIFICATE_REQUESTS,
    PODS,
    SECRETS,
    SELF_SUBJECT_ACCESS_REVIEWS,
    SERVICE_ACCOUNTS,
    TOKEN_REVIEWS,
    Resource,
)
from ca.platform.kubernetes.leader.lease import LEASE
from ca.platform.kubernetes.roots.authority_store import NAME as AUTHORITY_SECRET
from ca.platform.kubernetes.roots.cacerts import NAME as PLUGGED_SECRET
from ca.platform.kubernetes.roots.cluster_trust_bundle import bundle_name
from ca.platform.kubernetes.roots.plan import NAME as ROOT_CONFIG_MAP

SIGNERS: Final = Resource("certificates.k8s.io", "v1", "signers", "Signer", namespaced=False)  # in roles alone
_AT_ONCE = 8  # reviews
_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class Permission:
    """One verb on one kind of objects, or on a path that belongs to none.

    Args:
        verb: as roles spell it.
        resource: on what.
        why: what it is needed for, in words.
        subresource: on which part of it; empty for the object itself.
        namespace: in which namespace; empty for all.
        name: on which object alone; empty for all.
        optional: whether the CA does its work without it.
    """

    verb: str
    resource: Resource | str
    why: str
    subresource: str = ""
    namespace: str = ""
    name: str = ""
    optional: bool = False

    def __str__(self) -> str:
        what = str(self.resource) + (f"/{self.subresource}" if self.subresource else "")
        if isinstance(self.resource, str):
            return f"{self.verb} {what}: {self.why}"
        name = f" {self.name}" if self.name else ""
        where = f" in namespace {self.namespace}" if self.namespace else " in all namespaces"
        return f"{self.verb} {what}{name}{where if self.resource.namespaced else ''}: {self.why}"

    def review(self) -> Object:
        """The SelfSubjectAccessReview that asks for it."""
        if isinstance(self.resource, str):
            return {"spec": {"nonResourceAttributes": {"verb": self.verb, "path": self.resource}}}
        attributes: Object = {
            "verb": self.verb,
            "group": self.resource.group,
            "version": self.resource.version,
            "resource": self.resource.plural,
            "subresource": self.subresource,
            "namespace": self.namespace,
            "name": self.name,
        }
        return {"spec": {"resourceAttributes": {key: value for key, value in attributes.items() if value}}}


@dataclass(frozen=True, slots=True)
class Features:
    """The features of the CA on which its permissions depend.

    Args:
        namespace: the CA's own.
        signer: the name of its signer, `domain/path`.
        plugged: whether an authority may be plugged in by a secret.
        offline: whether it verifies tokens by the published keys of the cluster.
        secrets: whether it keeps secrets for service accounts.
        requests: whether it signs CertificateSigningRequests and PodCertificateRequests.
        trust_bundle: the last part of the ClusterTrustBundle's name, after the signer's; empty to publish none.
    """

    namespace: str
    signer: str
    plugged: bool = True
    offline: bool = False
    secrets: bool = True
    requests: bool = True
    trust_bundle: str = "roots"


def needed(features: Features) -> tuple[Permission, ...]:
    """All permissions that these features need."""
    return (
        *_authority(features),
        *(_plugged_authority(features) if features.plugged else ()),
        *_leadership(features),
        *_callers(),
        *(_published_keys() if features.offline else ()),
        *_root_config_maps(),
        *(_secrets() if features.secrets else ()),
        *(_requests(features.signer) if features.requests else ()),
        *(_trust_bundle(features.signer, features.trust_bundle) if features.trust_bundle else ()),
        *_events(),
    )


async def missing(api: KubernetesAPI, permissions: tuple[Permission, ...]) -> tuple[Permission, ...]:
    """Which of these we do not have, in their order.

    Raises:
        AccessRefused, Exhausted, NotReady: it could not be found out.
    """
    room = asyncio.Semaphore(_AT_ONCE)

    async def is_allowed(permission: Permission) -> bool:
        async with room:
            answer = await api.create(SELF_SUBJECT_ACCESS_REVIEWS, permission.review())
        return member(answer, "status", "allowed") is True

    async def is_missing(permission: Permission) -> bool:
        return not any([await is_allowed(each) for each in _ways(permission)])

    try:
        async with asyncio.TaskGroup() as tasks:
            found = [tasks.create_task(is_missing(permission)) for permission in permissions]
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None
    return tuple(permission for permission, task in zip(permissions, found, strict=True) if task.result())


async def require(api: KubernetesAPI, features: Features) -> None:
    """Make sure that we have every permission that is needed; a missing optional one is a warning.

    Raises:
        AccessRefused: permissions are missing; all of them are named.
        Exhausted, NotReady: it could not be found out.
    """
    lacking = await missing(api, needed(features))
    for permission in lacking:
        if permission.optional:
            _log.warning("a permission is missing, and this is left out", permission=str(permission))
    if fatal := [str(permission) for permission in lacking if not permission.optional]:
        raise AccessRefused(f"permissions are missing: {'; '.join(fatal)}")


def _authority(features: Features) -> Iterator[Permission]:
    own = features.namespace
    why = "to keep the authority"
    yield Permission("get", NAMESPACES, why)  # a missing namespace must not pass for a missing secret
    yield Permission("create", SECRETS, why, namespace=own)
    for verb in ("get", "list", "watch", "update"):
        yield Permission(verb, SECRETS, why, namespace=own, name=AUTHORITY_SECRET)


def _plugged_authority(features: Features) -> Iterator[Permission]:
    for verb in ("get", "list", "watch"):
        why = "to follow a plugged-in authority"
        yield Permission(verb, SECRETS, why, namespace=features.namespace, name=PLUGGED_SECRET)


def _leadership(features: Features) -> Iterator[Permission]:
    why = "to elect a leader"
    yield Permission("create", LEASES, why, namespace=features.namespace)
    for verb in ("get", "update"):
        yield Permission(verb, LEASES, why, namespace=features.namespace, name=LEASE)


def _callers() -> Iterator[Permission]:
    yield Permission("create", TOKEN_REVIEWS, "to verify the tokens of callers")
    for verb in ("list", "watch"):
        yield Permission(verb, PODS, "to know which pods callers are, and on which node")
        yield Permission(verb, SERVICE_ACCOUNTS, "to know who may have a certificate")
        yield Permission(verb, NAMESPACES, "to know which namespaces are managed")


def _published_keys() -> Iterator[Permission]:
    for path in ("/.well-known/openid-configuration", "/openid/v1/jwks"):
        yield Permission("get", path, "to verify tokens without asking for each", optional=True)


def _root_config_maps() -> Iterator[Permission]:
    why = "to publish the trust bundle"
    yield Permission("create", CONFIG_MAPS, why)
    for verb in ("list", "watch", "patch", "delete"):
        yield Permission(verb, CONFIG_MAPS, why, name=ROOT_CONFIG_MAP)


def _secrets() -> Iterator[Permission]:
    for verb in ("get", "list", "watch", "create", "patch", "delete"):
        yield Permission(verb, SECRETS, "to keep the certificates of service accounts")
    yield Permission("get", SERVICE_ACCOUNTS, "to make no secret for an account that is gone")


def _requests(signer: str) -> Iterator[Permission]:
    for resource in (CERTIFICATE_SIGNING_REQUESTS, POD_CERTIFICATE_REQUESTS):
        for verb in ("list", "watch"):
            yield Permission(verb, resource, "to see what is to be signed")
        yield Permission("update", resource, "to answer with a certificate", "status")
    yield Permission("update", CERTIFICATE_SIGNING_REQUESTS, "to approve or deny what is to be signed", "approval")
    yield Permission("approve", SIGNERS, "to approve requests to our signer", name=signer)
    yield Permission("sign", SIGNERS, "to sign as our signer", name=signer)


def _trust_bundle(signer: str, name: str) -> Iterator[Permission]:
    why = "to publish the trust bundle for volumes"
    yield Permission("create", CLUSTER_TRUST_BUNDLES, why, optional=True)
    for verb in ("get", "update"):
        yield Permission(verb, CLUSTER_TRUST_BUNDLES, why, name=bundle_name(signer, name), optional=True)
    yield Permission("attest", SIGNERS, why, name=signer, optional=True)


def _events() -> Iterator[Permission]:
    for verb in ("create", "patch"):
        yield Permission(verb, EVENTS, "to tell on objects what went wrong", optional=True)


def _ways(permission: Permission) -> Iterator[Permission]:
    """The permissions of which one suffices: for a signer, also that for all signers of its domain (`domain/*`)."""
    yield permission
    if permission.resource == SIGNERS:
        yield replace(permission, name=f"{permission.name.partition('/')[0]}/*")
