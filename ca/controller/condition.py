"""Judges the certificate in a secret: is it the right one, when is it due, and would a new one live longer?"""

from __future__ import annotations

from datetime import datetime, timedelta

from ca.controller.action import Reason
from ca.controller.material import Damaged, Material
from ca.controller.renewal import draw_for
from ca.controller.settings import Settings
from ca.controller.snapshot import Desired, ServiceAccount, WorkloadSecret
from istio_auth.errors import InvalidSpiffeID
from istio_auth.spiffe_id import SpiffeID

_WORTHWHILE = 10  # a new certificate must end later by at least a tenth of the life that it would have


def identity_of(account: ServiceAccount, desired: Desired) -> SpiffeID | None:
    """The identity of a service account; None when its name makes none."""
    try:
        return SpiffeID.for_service_account(desired.trust_domain, account.namespace, account.name)
    except InvalidSpiffeID:
        return None


def judge(
    secret: WorkloadSecret, account: ServiceAccount, *, desired: Desired, settings: Settings
) -> Material | tuple[Reason, str]:
    """The material of a secret if it is right, apart from its times; otherwise the reason why not, and its details."""
    material = secret.material
    if secret.owner_uid and secret.owner_uid != account.uid:
        return Reason.ACCOUNT_RECREATED, f"it belongs to UID {secret.owner_uid[:100]}, not {account.uid}"
    if isinstance(material, Damaged):
        return material.reason, material.detail
    others = frozenset(settings.dns_names.get(account.key, ()))
    if material.spiffe_id != str(identity_of(account, desired)) or material.other_names != others:
        names = ", ".join((material.spiffe_id, *sorted(material.other_names)))
        return Reason.WRONG_NAMES, f"the certificate names {names[:500]}"
    for reason, wrong in (
        (Reason.UNTRUSTED, material.anchors.isdisjoint(desired.anchors)),
        (Reason.FOREIGN_ISSUER, material.issuer not in desired.issuers),
    ):
        if wrong:
            return reason, reason.value
    return material


def end_of(material: Material, desired: Desired) -> datetime:
    """When a good certificate ends: with the first of its chain to end, or with the last of our roots above it."""
    anchors = desired.anchors
    return min(material.not_after, max(anchors[each] for each in material.anchors if each in anchors))


def renewal_of(secret: WorkloadSecret, material: Material, ends: datetime, settings: Settings) -> datetime:
    """When the certificate in a secret is to be renewed: always the same answer for the same certificate."""
    return settings.rule.due(material.not_before, ends, draw=draw_for(secret.uid, material.serial))


def worthwhile_from(ends: datetime, *, desired: Desired, now: datetime, settings: Settings) -> datetime | None:
    """From when on a new certificate would end enough later than the old one to be worth making; None for never.

    Only the issuer's end can make it not worthwhile. "Enough" is a share of the life of the *new* certificate, which
    becomes shorter as time passes. So if the issuer ends after the old certificate, a new one becomes worthwhile before
    the old one ends, and nothing lapses without need.
    """
    issuer_ends = desired.validity.not_after
    if now + settings.ttl <= issuer_ends or now >= issuer_ends:
        return now
    gain = issuer_ends - ends
    if gain <= timedelta():
        return None
    return now if gain >= (issuer_ends - now) / _WORTHWHILE else issuer_ends - gain * _WORTHWHILE
