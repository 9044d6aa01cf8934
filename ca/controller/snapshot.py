"""What the plan looks at: service accounts, namespaces and secrets as slim facts, and what every secret shall be.

The facts are made from watch events, one by one; only what decisions need is kept of an object. A secret belongs to the
service account in its name, whether or not that exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Self, TypeAlias

from ca.authority.state import AuthorityState
from ca.controller.material import Damaged, Material, authority_id, digest
from ca.profile import Validity
from istio_auth.spiffe_id import TrustDomain

SECRET_TYPE = "istio.io/key-and-cert"  # noqa: S105 - a type, not a password
SECRET_PREFIX = "istio."  # noqa: S105 - a name
ACCOUNT_ANNOTATION = "istio.io/service-account.name"
MARK_LABEL = "security.istio-auth.io/managed-by"
MAX_SECRET_NAME = 253  # a DNS subdomain (RFC 1123)

AccountKey: TypeAlias = tuple[str, str]  # namespace and name of a service account


@dataclass(frozen=True, slots=True)
class ServiceAccount:
    """A service account.

    Args:
        namespace: where it is.
        name: its name.
        uid: its UID, which no other account of that name has, before or after it.
        terminating: whether it is being deleted and only waits for its finalizers.
    """

    namespace: str
    name: str
    uid: str
    terminating: bool = False

    @property
    def key(self) -> AccountKey:
        """Its place in a snapshot."""
        return self.namespace, self.name


@dataclass(frozen=True, slots=True)
class Namespace:
    """A namespace.

    Args:
        name: its name.
        labels: its labels.
        terminating: whether it is being deleted: nothing can be made in it.
    """

    name: str
    labels: Mapping[str, str] = field(default_factory=dict)
    terminating: bool = False


@dataclass(frozen=True, slots=True)
class WorkloadSecret:
    """A secret named `istio.<service account>`, of any type.

    Args:
        namespace: where it is.
        name: its name.
        uid: its UID.
        resource_version: the version these facts are of.
        type: its type.
        material: what is in it (`ca.controller.material.read_material`).
        account_annotation: the value of its annotation `ACCOUNT_ANNOTATION`; empty when there is none.
        owner_uid: the UID of the service account among its owner references; empty when there is none.
        mark: the value of its label `MARK_LABEL`; empty when there is none.
        immutable: whether it can only be deleted.
        terminating: whether it is being deleted and only waits for its finalizers.
    """

    namespace: str
    name: str
    uid: str
    resource_version: str
    type: str
    material: Material | Damaged
    account_annotation: str = ""
    owner_uid: str = ""
    mark: str = ""
    immutable: bool = False
    terminating: bool = False

    @property
    def account(self) -> str | None:
        """The name of the service account it belongs to; None for a secret of any other name."""
        return self.name.removeprefix(SECRET_PREFIX) if self.name.startswith(SECRET_PREFIX) else None


def secret_name(service_account: str) -> str:
    """The name of a service account's secret; may be longer than the API takes (`MAX_SECRET_NAME`)."""
    return SECRET_PREFIX + service_account


@dataclass(frozen=True, slots=True)
class Actual:
    """What there is in the cluster.

    Args:
        namespaces: by name.
        accounts: the service accounts.
        secrets: the secrets, by the service account in their name.
    """

    namespaces: Mapping[str, Namespace]
    accounts: Mapping[AccountKey, ServiceAccount]
    secrets: Mapping[AccountKey, WorkloadSecret]

    @classmethod
    def of(
        cls,
        namespaces: Iterable[Namespace],
        accounts: Iterable[ServiceAccount],
        secrets: Iterable[WorkloadSecret],
    ) -> Self:
        """The snapshot of these objects; secrets of other names are left out."""
        return cls(
            {namespace.name: namespace for namespace in namespaces},
            {account.key: account for account in accounts},
            {(each.namespace, each.account): each for each in secrets if each.account is not None},
        )


@dataclass(frozen=True, slots=True)
class Desired:
    """What every secret shall be, as the authority stands now.

    Args:
        trust_domain: of every identity.
        root_digest: the digest of the trust bundle's PEM, which `root-cert.pem` must equal byte by byte.
        anchors: the roots that vouch for a chain (`authority_id`), each with its end.
        issuers: the issuers whose leaves are ours: the active, the prepared and the retired ones (`authority_id`).
        validity: when the active issuer can sign; no leaf outlives it.
    """

    trust_domain: TrustDomain
    root_digest: str
    anchors: Mapping[str, datetime]
    issuers: frozenset[str]
    validity: Validity

    @classmethod
    def of(cls, state: AuthorityState) -> Self:
        """What an authority in this state desires."""
        bundle = state.bundle()
        anchors: dict[str, datetime] = {}
        for root in bundle.x509_authorities:
            identifier, end = authority_id(root), root.not_valid_after_utc
            anchors[identifier] = max(end, anchors.get(identifier, end))
        return cls(
            state.trust_domain,
            digest(bundle.to_pem()),
            anchors,
            frozenset(authority_id(issuer.certificate) for issuer in state.issuers),
            Validity(state.active.not_before, state.active.not_after),
        )
