"""Plans what must be done so that every service account of a managed namespace has its secret. Pure, level-triggered.

A plan looks at the present state, not at events: a missed event costs delay, never correctness, and a secret that is
right is never written again. Each secret is decided for itself (`plan_one`), so that a bad one changes nothing for the
others, and a change of one object among ten thousand costs one decision.

    not ours                                   never touched; in a managed namespace, a finding
    the service account is gone                deleted
    the namespace is not managed               kept until it would be written again, and then deleted (as Citadel does)
    damaged, wrong, not signed by us           repaired: a new key and certificate
    due                                        renewed, unless the issuer ends first: then a finding
    another bundle, mark, annotation, owner    updated: key and chain are kept

A secret is ours if it has our type and mark. One of our type without any mark, annotated for the account in its name,
was made by Citadel: it is adopted in managed namespaces, and left alone elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime

from ca.controller.action import Action, Concern, Finding, Kind, Precondition, Reason, Subject
from ca.controller.condition import end_of, identity_of, judge, renewal_of, worthwhile_from
from ca.controller.material import Material
from ca.controller.namespaces import Scope
from ca.controller.settings import Settings
from ca.controller.snapshot import (
    MAX_SECRET_NAME,
    SECRET_TYPE,
    AccountKey,
    Actual,
    Desired,
    ServiceAccount,
    WorkloadSecret,
    secret_name,
)
from istio_auth.spiffe_id import SpiffeID


@dataclass(frozen=True, slots=True)
class Decision:
    """What is to be done about one secret now.

    Args:
        action: what is to be done; None for nothing.
        finding: what an operator should hear; None for nothing.
        due: when another decision is due if nothing changes; None for never.
        ends: when the certificate in the secret ends; None when there is none to speak of.
    """

    action: Action | None = None
    finding: Finding | None = None
    due: datetime | None = None
    ends: datetime | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """The decisions about all secrets.

    Args:
        decisions: by service account.
        actions: what is to be done.
        findings: what an operator should hear.
        due: when the next decision is due if nothing changes; None for never.
    """

    decisions: Mapping[AccountKey, Decision]
    actions: tuple[Action, ...]
    findings: tuple[Finding, ...]
    due: datetime | None


NOTHING = Decision()


def plan(
    desired: Desired,
    actual: Actual,
    now: datetime,
    settings: Settings,
    *,
    left_alone: Mapping[AccountKey, datetime] | None = None,
) -> Plan:
    """What must be done in a cluster.

    Args:
        desired: what every secret shall be.
        actual: what there is.
        now: the present instant.
        settings: what the operator decides.
        left_alone: secrets that are not touched, and until when (`ca.controller.contention`).
    """
    scopes = {
        name: settings.namespaces.scope(name, actual.namespaces.get(name))
        for name in {namespace for namespace, _ in (*actual.accounts, *actual.secrets)}
    }
    decisions = {
        key: plan_one(
            actual.accounts.get(key),
            actual.secrets.get(key),
            scope=scopes[key[0]],
            desired=desired,
            now=now,
            settings=settings,
            left_alone_until=left_alone.get(key) if left_alone else None,
        )
        for key in dict.fromkeys((*actual.accounts, *actual.secrets))
    }
    found = decisions.values()
    return Plan(
        decisions,
        tuple(each.action for each in found if each.action is not None),
        tuple(each.finding for each in found if each.finding is not None),
        min((each.due for each in found if each.due is not None), default=None),
    )


def plan_one(
    account: ServiceAccount | None,
    secret: WorkloadSecret | None,
    *,
    scope: Scope,
    desired: Desired,
    now: datetime,
    settings: Settings,
    left_alone_until: datetime | None = None,
) -> Decision:
    """What must be done about the secret of one service account.

    Args:
        account: the service account; None when there is none.
        secret: the secret of its name; None when there is none.
        scope: what we have to do with the namespace.
        desired: what every secret shall be.
        now: the present instant.
        settings: what the operator decides.
        left_alone_until: until when the secret is not touched; None if it may be.
    """
    if scope is Scope.LEFT_ALONE or (account is not None and account.terminating):
        return NOTHING
    if account is None:
        return NOTHING if secret is None else _orphan(secret, scope, settings)
    case = _Case(account, secret, scope, desired, now, settings)
    decision = case.decide()
    if decision.action is None or left_alone_until is None or now >= left_alone_until:
        return decision
    message = f"left alone until {left_alone_until:%F %T} UTC, for it keeps being changed: {decision.action.detail}"
    finding = Finding(Concern.CONTENDED, decision.action.subject, message)
    return Decision(finding=finding, due=left_alone_until, ends=decision.ends)


def _orphan(secret: WorkloadSecret, scope: Scope, settings: Settings) -> Decision:
    """What to do with a secret whose account is gone: deleted if ours. A copy of another's secret is not touched."""
    name = secret.account
    ours = secret.mark == settings.mark or (not secret.mark and scope is Scope.MANAGED)
    if name is None or secret.terminating or secret.type != SECRET_TYPE or not ours:
        return NOTHING
    if secret.account_annotation != name:
        return NOTHING
    subject = Subject(secret.namespace, name, "", secret.name)
    detail = f"there is no service account {name}"
    return Decision(Action(Kind.DELETE, Reason.ACCOUNT_GONE, subject, detail, _precondition(secret)))


@dataclass(frozen=True, slots=True)
class _Case:
    """One service account, and its secret if there is one."""

    account: ServiceAccount
    secret: WorkloadSecret | None
    scope: Scope
    desired: Desired
    now: datetime
    settings: Settings

    def decide(self) -> Decision:
        secret = self.secret
        if secret is None:
            return NOTHING if self.scope is Scope.UNMANAGED else self._absent()
        if secret.terminating:
            return NOTHING
        marked = secret.mark == self.settings.mark
        if self.scope is Scope.UNMANAGED:
            return self._unmanaged(secret) if marked and secret.type == SECRET_TYPE else NOTHING
        if secret.type != SECRET_TYPE or not (marked or self._is_citadels(secret)):
            return Decision(finding=self._finding(Concern.FOREIGN, _whose(secret)))
        return self._managed(secret)

    def _is_citadels(self, secret: WorkloadSecret) -> bool:
        return not secret.mark and secret.account_annotation == self.account.name

    def _absent(self) -> Decision:
        name = secret_name(self.account.name)
        if len(name) > MAX_SECRET_NAME:
            message = f"{name[:40]}... has {len(name)} characters, and a secret's name at most {MAX_SECRET_NAME}"
            return Decision(finding=self._finding(Concern.NAME_TOO_LONG, message))
        return self._issue(Kind.CREATE, Reason.ABSENT, f"{name} is missing", otherwise=NOTHING)

    def _unmanaged(self, secret: WorkloadSecret) -> Decision:
        due, reason = self._falls_due(secret)
        if due is not None and self.now < due:
            return Decision(due=due)
        return Decision(self._action(Kind.DELETE, Reason.UNMANAGED, f"the namespace is not managed, and: {reason}"))

    def _falls_due(self, secret: WorkloadSecret) -> tuple[datetime | None, str]:
        """When a secret would be written again, and why; None for at once."""
        judged = self._judged(secret)
        if isinstance(judged, tuple):
            return None, judged[1]
        if secret.material.root_digest != self.desired.root_digest:
            return None, Reason.ROOT_CHANGED.value
        return renewal_of(secret, judged, end_of(judged, self.desired), self.settings), Reason.DUE.value

    def _managed(self, secret: WorkloadSecret) -> Decision:
        judged = self._judged(secret)
        if isinstance(judged, tuple):
            return self._issue(Kind.REPAIR, *judged, otherwise=self._kept(secret))
        if judged.not_before > self.now + self.settings.skew:
            detail = f"valid from {judged.not_before:%F %T} UTC: are the clocks right?"
            return self._issue(Kind.REPAIR, Reason.NOT_YET_VALID, detail, otherwise=self._kept(secret))
        ends = end_of(judged, self.desired)
        due = renewal_of(secret, judged, ends, self.settings)
        kept = Decision(self._kept(secret).action, due=due, ends=ends)
        if self.now < due:
            return kept
        since = worthwhile_from(ends, desired=self.desired, now=self.now, settings=self.settings)
        if since is None or self.now < since:
            message = f"the certificate ends {ends:%F %T} UTC and a new one would hardly end later, for the issuer ends"
            finding = self._finding(Concern.ISSUER_ENDS_FIRST, f"{message} {self.desired.validity.not_after:%F %T} UTC")
            return replace(kept, finding=finding, due=since or self.desired.validity.not_after)
        return self._issue(Kind.RENEW, Reason.DUE, f"it ends {ends:%F %T} UTC", otherwise=kept)

    def _judged(self, secret: WorkloadSecret) -> Material | tuple[Reason, str]:
        return judge(secret, self.account, desired=self.desired, settings=self.settings)

    def _issue(self, kind: Kind, reason: Reason, detail: str, *, otherwise: Decision) -> Decision:
        """Issue a new certificate. If none can be made now, a finding, and `otherwise` for the rest."""
        identity = identity_of(self.account, self.desired)
        if identity is None:
            message = f"{self.account.namespace}/{self.account.name} can be no part of a SPIFFE ID"
            return replace(otherwise, finding=self._finding(Concern.NO_IDENTITY, message), due=None)
        validity = self.desired.validity
        if not validity.not_before <= self.now < validity.not_after:
            message = (
                f"the issuer is valid from {validity.not_before:%F %T} to {validity.not_after:%F %T} UTC: {detail}"
            )
            due = validity.not_before if self.now < validity.not_before else None
            return replace(otherwise, finding=self._finding(Concern.ISSUER_NOT_VALID, message), due=due)
        return replace(otherwise, action=self._action(kind, reason, detail, identity), due=None)

    def _kept(self, secret: WorkloadSecret) -> Decision:
        """What is to be done if key and chain are kept."""
        if secret.material.root_digest != self.desired.root_digest:
            detail = "root-cert.pem is not the trust bundle of now"
            return Decision(self._action(Kind.UPDATE, Reason.ROOT_CHANGED, detail))
        wanted = {
            "mark": (secret.mark, self.settings.mark),
            "annotation": (secret.account_annotation, self.account.name),
            "owner": (secret.owner_uid, self.account.uid),
        }
        if changed := [what for what, (found, meant) in wanted.items() if found != meant]:
            detail = f"missing or changed: {', '.join(changed)}"
            return Decision(self._action(Kind.UPDATE, Reason.METADATA_CHANGED, detail))
        return NOTHING

    def _action(self, kind: Kind, reason: Reason, detail: str, identity: SpiffeID | None = None) -> Action:
        if self.secret is not None and self.secret.immutable and kind is not Kind.DELETE:
            kind, identity, detail = Kind.DELETE, None, f"{detail}; it is immutable, so it is made anew"
        dns_names = self.settings.dns_names.get(self.account.key, ()) if kind.issues else ()
        precondition = None if self.secret is None else _precondition(self.secret)
        return Action(kind, reason, self._subject(), detail, precondition, identity, dns_names)

    def _finding(self, concern: Concern, message: str) -> Finding:
        return Finding(concern, self._subject(), message)

    def _subject(self) -> Subject:
        account = self.account
        return Subject(account.namespace, account.name, account.uid, secret_name(account.name))


def _precondition(secret: WorkloadSecret) -> Precondition:
    return Precondition(secret.uid, secret.resource_version)


def _whose(secret: WorkloadSecret) -> str:
    """Why a secret is not ours."""
    if secret.type != SECRET_TYPE:
        return f"the secret {secret.name} is of type {secret.type[:100]}: delete it, and ours takes its place"
    if secret.mark:
        return f"the secret {secret.name} carries the mark of {secret.mark[:100]}, another CA"
    return f"the secret {secret.name} is of our type, but nothing in it says that Citadel or we made it"
