"""The certificate in a secret by itself: is it the right one, when is it due, and would another one be better?"""

from __future__ import annotations

from datetime import datetime, timedelta

from ca.controller.action import Reason
from ca.controller.material import Damaged, Material
from ca.controller.renewal import draw_for
from ca.controller.settings import Settings
from ca.controller.snapshot import Desired, ServiceAccount, WorkloadSecret
from istio_auth.errors import InvalidSpiffeID
from istio_auth.spiffe_id import SpiffeID

_WORTHWHILE = 10  # a renewal moves the end by at least one of so many parts of the life that the new one would have


def identity_of(account: ServiceAccount, desired: Desired) -> SpiffeID | None:
    """The identity of a service account; None when its name makes none."""
    try:
        return SpiffeID.for_service_account(desired.trust_domain, account.namespace, account.name)
    except InvalidSpiffeID:
        return None


def judge(
    secret: WorkloadSecret, account: ServiceAccount, *, desired: Desired, settings: Settings
) -> Material | tuple[Reason, str]:
    """The material of a secret if it is right, whatever the time; otherwise why not, and that in words."""
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
    """When a good certificate ends: with its chain, and at the latest with the last of the roots above it."""
    anchors = desired.anchors
    return min(material.not_after, max(anchors[each] for each in material.anchors if each in anchors))


def renewal_of(secret: WorkloadSecret, material: Material, ends: datetime, settings: Settings) -> datetime:
    """When the certificate in a secret is to be renewed: the same answer for the same certificate."""
    return settings.rule.due(material.not_before, ends, draw=draw_for(secret.uid, material.serial))


def worthwhile_from(ends: datetime, *, desired: Desired, now: datetime, settings: Settings) -> datetime | None:
    """From when on a new certificate ends later than this one by enough to be made; None for never.

    Only the issuer's end can stand in the way. Measured by the life that the *new* one would have, the answer turns
    to yes before the old one ends whenever the issuer lives longer: nothing lapses that did not have to.
    """
    issuer_ends = desired.validity.not_after
    if now + settings.ttl <= issuer_ends or now >= issuer_ends:
        return now
    gain = issuer_ends - ends
    if gain <= timedelta():
        return None
    return now if gain >= (issuer_ends - now) / _WORTHWHILE else issuer_ends - gain * _WORTHWHILE
