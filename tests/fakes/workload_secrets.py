"""A cluster made of facts, on which plans are carried out as the API server would carry them out."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

from ca.controller.action import Action, Kind
from ca.controller.material import Damaged, Material
from ca.controller.namespaces import NamespaceRules
from ca.controller.plan import Decision, Plan, plan, plan_one
from ca.controller.settings import Settings
from ca.controller.snapshot import (
    SECRET_TYPE,
    AccountKey,
    Actual,
    Desired,
    Namespace,
    ServiceAccount,
    WorkloadSecret,
    secret_name,
)
from ca.profile import IssuanceProfile, Validity
from istio_auth.spiffe_id import SpiffeID, TrustDomain

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
MARK = "istio-ca"
ISSUER, ROOT, BUNDLE = "issuer", "root", "bundle"
TEN_YEARS = Validity(NOW - DAY, NOW + 3650 * DAY)
WEB = ServiceAccount("default", "web", "uid-web")
DESIRED = Desired(TrustDomain("cluster.local"), BUNDLE, {ROOT: TEN_YEARS.not_after}, frozenset({ISSUER}), TEN_YEARS)
SETTINGS = Settings(MARK, NamespaceRules("istio-system"))


def issued(
    account: ServiceAccount, now: datetime = NOW, *, desired: Desired = DESIRED, settings: Settings = SETTINGS
) -> Material:
    """What is in a secret after a certificate was issued for it."""
    profile = IssuanceProfile(default_ttl=settings.ttl, max_ttl=settings.ttl)
    validity = profile.validity(settings.ttl, now, within=desired.validity)
    return Material(
        str(SpiffeID.for_service_account(desired.trust_domain, account.namespace, account.name)),
        frozenset(settings.dns_names.get(account.key, ())),
        next(_serials),
        validity.not_before,
        validity.not_after,
        ISSUER,
        frozenset({ROOT}),
        desired.root_digest,
    )


def secret_of(account: ServiceAccount, material: Material | Damaged | None = None) -> WorkloadSecret:
    """The faultless secret of a service account; `replace` one field to break one thing."""
    return WorkloadSecret(
        account.namespace,
        secret_name(account.name),
        f"uid-of-secret-{account.name}",
        "1",
        SECRET_TYPE,
        issued(account) if material is None else material,
        account.name,
        account.uid,
        MARK,
    )


@dataclass
class FakeCluster:
    """Holds facts, and carries out what a plan says of them."""

    desired: Desired = DESIRED
    settings: Settings = SETTINGS
    namespaces: dict[str, Namespace] = field(default_factory=lambda: {"default": Namespace("default")})
    accounts: dict[AccountKey, ServiceAccount] = field(default_factory=dict)
    secrets: dict[AccountKey, WorkloadSecret] = field(default_factory=dict)
    left_alone: dict[AccountKey, datetime] = field(default_factory=dict)

    @classmethod
    def of(cls, *accounts: ServiceAccount, secrets: Iterable[WorkloadSecret] = ()) -> FakeCluster:
        cluster = cls(accounts={each.key: each for each in accounts})
        cluster.secrets = dict(cluster.actual(secrets).secrets)
        return cluster

    def actual(self, secrets: Iterable[WorkloadSecret] | None = None) -> Actual:
        found = self.secrets.values() if secrets is None else secrets
        return Actual.of(self.namespaces.values(), self.accounts.values(), found)

    def plan(self, now: datetime = NOW) -> Plan:
        return plan(self.desired, self.actual(), now, self.settings, left_alone=self.left_alone)

    def decide(self, key: AccountKey = WEB.key, now: datetime = NOW) -> Decision:
        return plan_one(
            self.accounts.get(key),
            self.secrets.get(key),
            scope=self.settings.namespaces.scope(key[0], self.namespaces.get(key[0])),
            desired=self.desired,
            now=now,
            settings=self.settings,
            left_alone_until=self.left_alone.get(key),
        )

    def carry_out(self, actions: Iterable[Action], now: datetime = NOW) -> None:
        for action in actions:
            self._carry_out(action, (action.subject.namespace, action.subject.service_account), now)

    def _carry_out(self, action: Action, key: AccountKey, now: datetime) -> None:
        old = self.secrets.get(key)
        if action.kind is Kind.CREATE:
            assert old is None, "already exists"
            self.secrets[key] = self._written(secret_of(self.accounts[key]), key, now)
            return
        assert old is not None, "not found"
        assert action.precondition is not None
        assert (old.uid, old.resource_version) == (action.precondition.uid, action.precondition.resource_version)
        if action.kind is Kind.DELETE:
            del self.secrets[key]
            return
        assert not old.immutable, "the API server refuses to change it"
        if action.kind.issues:
            self.secrets[key] = self._written(old, key, now)
        else:
            kept = replace(old.material, root_digest=self.desired.root_digest)
            self.secrets[key] = self._marked(replace(old, material=kept), key)

    def _written(self, secret: WorkloadSecret, key: AccountKey, now: datetime) -> WorkloadSecret:
        material = issued(self.accounts[key], now, desired=self.desired, settings=self.settings)
        return self._marked(replace(secret, material=material), key)

    def _marked(self, secret: WorkloadSecret, key: AccountKey) -> WorkloadSecret:
        return replace(
            secret,
            mark=self.settings.mark,
            account_annotation=self.accounts[key].name,
            owner_uid=self.accounts[key].uid,
            resource_version=str(int(secret.resource_version) + 1),
        )


_serials = itertools.count(1 << 150)
