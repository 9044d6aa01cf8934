"""What is done about a secret: each fault by itself, and what is left alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from ca.controller.action import Action, Concern, Finding, Kind, Precondition, Reason, Subject
from ca.controller.material import Damaged
from ca.controller.namespaces import NamespaceRules
from ca.controller.plan import NOTHING, Decision
from ca.controller.renewal import RenewalRule
from ca.controller.snapshot import (
    Namespace,
    ServiceAccount,
    WorkloadSecret,
)
from ca.profile import Validity
from istio_auth.spiffe_id import SpiffeID
from tests.fakes.workload_secrets import (
    DAY,
    DESIRED,
    MARK,
    NOW,
    ROOT,
    SETTINGS,
    WEB,
    FakeCluster,
    issued,
    secret_of,
)

HOUR = timedelta(hours=1)
GOOD = secret_of(WEB)
MATERIAL = issued(WEB)
UNMANAGED = {"default": Namespace("default", {"ca.istio.io/override": "false"})}


def with_material(**changes: Any) -> WorkloadSecret:
    return replace(GOOD, material=replace(MATERIAL, **changes))


def acting(decision: Decision) -> Action:
    assert decision.action is not None
    return decision.action


def finding(decision: Decision) -> Finding:
    assert decision.finding is not None
    return decision.finding


def test_an_account_without_a_secret_gets_one() -> None:
    decision = FakeCluster.of(WEB).decide()
    assert decision.action == Action(
        Kind.CREATE,
        Reason.ABSENT,
        Subject("default", "web", "uid-web", "istio.web"),
        "istio.web is missing",
        None,
        SpiffeID.parse("spiffe://cluster.local/ns/default/sa/web"),
    )


def test_a_secret_as_it_shall_be_is_not_written_and_its_due_time_is_known() -> None:
    decision = FakeCluster.of(WEB, secrets=[GOOD]).decide()
    assert decision.action is None
    assert decision.finding is None
    assert decision.ends == NOW + DAY
    assert decision.due is not None
    assert NOW + 9 * HOUR < decision.due < NOW + 12.1 * HOUR


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        (replace(GOOD, material=Damaged(Reason.INCOMPLETE, "key.pem missing", "bundle")), Reason.INCOMPLETE),
        (replace(GOOD, material=Damaged(Reason.UNPARSABLE, "junk", "bundle")), Reason.UNPARSABLE),
        (replace(GOOD, material=Damaged(Reason.WRONG_KEY, "another key", "bundle")), Reason.WRONG_KEY),
        (with_material(spiffe_id="spiffe://cluster.local/ns/default/sa/other"), Reason.WRONG_NAMES),
        (with_material(spiffe_id="spiffe://foreign.test/ns/default/sa/web"), Reason.WRONG_NAMES),
        (with_material(other_names=frozenset({"kubernetes.default.svc"})), Reason.WRONG_NAMES),
        (with_material(anchors=frozenset({"foreign root"})), Reason.UNTRUSTED),
        (with_material(anchors=frozenset(), issuer=""), Reason.UNTRUSTED),
        (with_material(issuer="another CA under our root"), Reason.FOREIGN_ISSUER),
        (with_material(not_before=NOW + HOUR), Reason.NOT_YET_VALID),
        (replace(GOOD, owner_uid="uid-of-the-web-before"), Reason.ACCOUNT_RECREATED),
    ],
    ids=lambda value: value.name if isinstance(value, Reason) else "",
)
def test_what_is_damaged_or_not_ours_is_repaired_with_a_new_key(secret: WorkloadSecret, reason: Reason) -> None:
    cluster = FakeCluster.of(WEB, secrets=[secret])
    action = acting(cluster.decide())
    assert (action.kind, action.reason) == (Kind.REPAIR, reason)
    assert action.precondition == Precondition(secret.uid, secret.resource_version)
    cluster.carry_out([action])
    assert cluster.decide().action is None


def test_a_certificate_from_a_clock_that_is_five_minutes_ahead_is_taken() -> None:
    assert FakeCluster.of(WEB, secrets=[with_material(not_before=NOW + timedelta(minutes=5))]).decide().action is None


@pytest.mark.parametrize(
    ("secret", "reason"),
    [
        (with_material(root_digest=""), Reason.ROOT_CHANGED),
        (with_material(root_digest="an older bundle"), Reason.ROOT_CHANGED),
        (replace(GOOD, mark=""), Reason.METADATA_CHANGED),
        (replace(GOOD, account_annotation=""), Reason.METADATA_CHANGED),
        (replace(GOOD, account_annotation="other"), Reason.METADATA_CHANGED),
        (replace(GOOD, owner_uid=""), Reason.METADATA_CHANGED),
    ],
)
def test_what_stands_beside_a_good_certificate_is_replaced_without_a_new_key(
    secret: WorkloadSecret, reason: Reason
) -> None:
    cluster = FakeCluster.of(WEB, secrets=[secret])
    action = acting(cluster.decide())
    assert (action.kind, action.reason) == (Kind.UPDATE, reason)
    assert not action.kind.issues
    assert action.spiffe_id is None
    cluster.carry_out([action])
    assert cluster.decide().action is None


def test_a_certificate_by_a_retired_issuer_is_kept_as_long_as_its_root_is_in_the_bundle() -> None:
    cluster = FakeCluster.of(WEB, secrets=[GOOD])
    cluster.desired = replace(
        DESIRED,
        root_digest="both roots",
        anchors={ROOT: NOW + 30 * DAY, "new root": NOW + 3650 * DAY},
        issuers=DESIRED.issuers | {"new issuer"},
    )
    assert acting(cluster.decide()).kind is Kind.UPDATE
    cluster.desired = replace(cluster.desired, anchors={"new root": NOW + 3650 * DAY})
    assert acting(cluster.decide()).reason is Reason.UNTRUSTED


def test_a_certificate_ends_with_the_last_root_above_it() -> None:
    cluster = FakeCluster.of(WEB, secrets=[GOOD])
    cluster.desired = replace(DESIRED, anchors={ROOT: NOW + 2 * HOUR, "new root": NOW + 3650 * DAY})
    decision = cluster.decide()
    assert decision.ends == NOW + 2 * HOUR
    assert decision.due is not None
    assert decision.due < NOW + 2 * HOUR


def test_a_certificate_is_renewed_when_it_is_due_and_not_a_moment_earlier() -> None:
    cluster = FakeCluster.of(WEB, secrets=[GOOD])
    due = cluster.decide().due
    assert due is not None
    assert cluster.decide(now=due - timedelta(microseconds=1)).action is None
    decision = cluster.decide(now=due)
    action = acting(decision)
    assert (action.kind, action.reason) == (Kind.RENEW, Reason.DUE)
    assert decision.due is None, "it is due now: a time in the past would wake the caller at once, again and again"
    cluster.carry_out([action], due)
    assert cluster.decide(now=due).action is None


def test_an_ended_certificate_is_renewed() -> None:
    assert acting(FakeCluster.of(WEB, secrets=[GOOD]).decide(now=NOW + 30 * DAY)).kind is Kind.RENEW


def test_a_renewal_writes_all_else_too() -> None:
    cluster = FakeCluster.of(WEB, secrets=[replace(with_material(root_digest="old"), mark="")])
    cluster.carry_out(cluster.plan(NOW + 20 * HOUR).actions, NOW + 20 * HOUR)
    assert cluster.plan(NOW + 20 * HOUR).actions == ()


def test_the_minimum_grace_holds_for_short_lives_up_to_four_fifths_of_them() -> None:
    cluster = FakeCluster.of(WEB)
    cluster.settings = replace(SETTINGS, ttl=timedelta(minutes=15), rule=RenewalRule(jitter=0))
    cluster.carry_out(cluster.plan().actions)
    assert cluster.decide().due == NOW + timedelta(minutes=5)
    cluster.settings = replace(SETTINGS, ttl=timedelta(minutes=5), rule=RenewalRule(jitter=0))
    cluster.carry_out(cluster.plan(NOW + HOUR).actions, NOW + HOUR)
    due = cluster.decide(now=NOW + HOUR).due
    assert due is not None
    assert NOW + HOUR < due < NOW + HOUR + timedelta(minutes=1)


def test_where_the_issuer_ends_first_it_is_said_and_nothing_is_written() -> None:
    cluster = FakeCluster.of(WEB)
    cluster.desired = replace(DESIRED, validity=Validity(NOW - DAY, NOW + 10 * HOUR))
    cluster.carry_out(cluster.plan().actions)
    ends = NOW + 10 * HOUR
    for later in (6 * HOUR, 9 * HOUR, 9.99 * HOUR):
        decision = cluster.decide(now=NOW + later)
        assert decision.action is None
        assert finding(decision).concern is Concern.ISSUER_ENDS_FIRST
        assert decision.due == decision.ends == ends
    assert finding(cluster.decide(now=ends)).concern is Concern.ISSUER_NOT_VALID


def test_a_renewal_that_moves_the_end_by_a_tenth_of_its_life_is_made_and_a_smaller_one_waits() -> None:
    cluster = FakeCluster.of(WEB, secrets=[GOOD])  # ends in 24 hours
    cluster.desired = replace(DESIRED, validity=Validity(NOW - DAY, NOW + 25 * HOUR))
    decision = cluster.decide(now=NOW + 13 * HOUR)
    assert finding(decision).concern is Concern.ISSUER_ENDS_FIRST
    assert decision.action is None
    assert decision.due == NOW + 15 * HOUR, "a new one would live for ten hours then, and end one hour later"
    assert cluster.decide(now=NOW + 15 * HOUR - timedelta(seconds=1)).action is None
    cluster.carry_out([acting(cluster.decide(now=NOW + 15 * HOUR))], NOW + 15 * HOUR)
    assert cluster.decide(now=NOW + 24 * HOUR).action is None


def test_a_life_that_was_made_shorter_does_not_keep_an_old_certificate_from_renewal() -> None:
    cluster = FakeCluster.of(WEB, secrets=[with_material(not_after=NOW + 90 * DAY)])
    cluster.settings = replace(SETTINGS, ttl=HOUR)
    cluster.desired = replace(DESIRED, validity=Validity(NOW - DAY, NOW + 91 * DAY))
    assert acting(cluster.decide(now=NOW + 50 * DAY)).kind is Kind.RENEW


@pytest.mark.parametrize("validity", [Validity(NOW - DAY, NOW), Validity(NOW + HOUR, NOW + DAY)])
def test_while_the_issuer_is_not_valid_nothing_is_issued_and_the_bundle_is_still_replaced(validity: Validity) -> None:
    cluster = FakeCluster.of(WEB)
    cluster.desired = replace(DESIRED, validity=validity)
    decision = cluster.decide()
    assert decision.action is None
    assert finding(decision).concern is Concern.ISSUER_NOT_VALID
    assert decision.due == (validity.not_before if validity.not_before > NOW else None)
    broken = replace(GOOD, material=Damaged(Reason.INCOMPLETE, "key.pem missing", "old"))
    cluster.secrets[WEB.key] = broken
    decision = cluster.decide()
    assert acting(decision).kind is Kind.UPDATE
    assert finding(decision).concern is Concern.ISSUER_NOT_VALID


@pytest.mark.parametrize(
    "secret",
    [
        replace(GOOD, type="Opaque"),
        replace(GOOD, type="Opaque", material=Damaged(Reason.INCOMPLETE, "", "")),
        replace(GOOD, mark="another-ca"),
        replace(GOOD, mark="", account_annotation=""),
        replace(GOOD, mark="", account_annotation="other"),
    ],
)
def test_a_secret_that_is_not_ours_is_never_touched_and_that_is_said(secret: WorkloadSecret) -> None:
    cluster = FakeCluster.of(WEB, secrets=[secret])
    for now in (NOW, NOW + 365 * DAY):
        decision = cluster.decide(now=now)
        assert decision.action is None
        assert finding(decision).concern is Concern.FOREIGN
        assert finding(decision).subject.account_uid == WEB.uid
    del cluster.accounts[WEB.key]
    assert cluster.decide() == NOTHING


def test_a_secret_made_by_citadel_is_adopted_with_its_key_and_renewed_from_then_on() -> None:
    cluster = FakeCluster.of(WEB, secrets=[replace(GOOD, mark="", owner_uid="")])
    action = acting(cluster.decide())
    assert action.kind is Kind.UPDATE
    cluster.carry_out([action])
    assert cluster.secrets[WEB.key].mark == MARK
    assert cluster.decide().action is None
    assert acting(cluster.decide(now=NOW + DAY)).kind is Kind.RENEW


@pytest.mark.parametrize("labels", [{}, {"ca.istio.io/override": "false"}])
def test_the_secret_of_a_deleted_account_is_deleted_managed_or_not(labels: dict[str, str]) -> None:
    cluster = FakeCluster.of(secrets=[GOOD])
    cluster.namespaces = {"default": Namespace("default", labels)}
    action = acting(cluster.decide())
    assert (action.kind, action.reason) == (Kind.DELETE, Reason.ACCOUNT_GONE)
    assert action.precondition == Precondition(GOOD.uid, GOOD.resource_version)


def test_a_copy_of_a_secret_under_another_name_is_not_taken_for_that_of_a_deleted_account() -> None:
    copy = replace(GOOD, name="istio.web.backup")
    assert FakeCluster.of(WEB, secrets=[GOOD, copy]).plan().actions == ()


def test_secrets_of_other_names_are_nothing_to_us() -> None:
    assert FakeCluster.of(secrets=[replace(GOOD, name="web"), replace(GOOD, name="notistio.web")]).plan().actions == ()


def test_in_an_unmanaged_namespace_nothing_is_made() -> None:
    cluster = FakeCluster.of(WEB)
    cluster.namespaces = UNMANAGED
    assert cluster.decide() == NOTHING


def test_in_an_unmanaged_namespace_a_secret_stays_until_it_falls_due_and_is_deleted_then() -> None:
    cluster = FakeCluster.of(WEB, secrets=[GOOD])
    due = cluster.decide().due
    cluster.namespaces = UNMANAGED
    decision = cluster.decide()
    assert (decision.action, decision.due) == (None, due)
    assert due is not None
    action = acting(cluster.decide(now=due))
    assert (action.kind, action.reason) == (Kind.DELETE, Reason.UNMANAGED)
    cluster.carry_out([action])
    assert cluster.decide(now=due) == NOTHING


@pytest.mark.parametrize(
    "secret",
    [
        with_material(root_digest="old"),
        replace(GOOD, material=Damaged(Reason.UNPARSABLE, "junk", "bundle")),
        with_material(anchors=frozenset({"foreign root"})),
    ],
)
def test_in_an_unmanaged_namespace_a_secret_that_would_be_written_is_deleted_instead(secret: WorkloadSecret) -> None:
    cluster = FakeCluster.of(WEB, secrets=[secret])
    cluster.namespaces = UNMANAGED
    assert acting(cluster.decide()).kind is Kind.DELETE


def test_in_an_unmanaged_namespace_a_clock_that_is_late_deletes_nothing() -> None:
    cluster = FakeCluster.of(WEB, secrets=[GOOD])
    cluster.namespaces = UNMANAGED
    assert cluster.decide(now=NOW - HOUR).action is None


def test_in_an_unmanaged_namespace_a_secret_without_our_mark_may_be_another_cas() -> None:
    cluster = FakeCluster.of(WEB, secrets=[replace(GOOD, mark="")])
    cluster.namespaces = UNMANAGED
    assert cluster.decide(now=NOW + 30 * DAY) == NOTHING
    del cluster.accounts[WEB.key]
    assert cluster.decide(now=NOW + 30 * DAY) == NOTHING


@pytest.mark.parametrize("namespaces", [{"default": Namespace("default", terminating=True)}, {}])
def test_a_terminating_or_unseen_namespace_is_left_alone(namespaces: dict[str, Namespace]) -> None:
    for cluster in (FakeCluster.of(WEB), FakeCluster.of(secrets=[GOOD]), FakeCluster.of(WEB, secrets=[GOOD])):
        cluster.namespaces = namespaces
        assert cluster.decide(now=NOW + 30 * DAY) == NOTHING


def test_what_is_being_deleted_is_left_alone() -> None:
    going = replace(WEB, terminating=True)
    assert FakeCluster.of(going).decide() == NOTHING
    assert FakeCluster.of(going, secrets=[GOOD]).decide(now=NOW + 30 * DAY) == NOTHING
    secret = replace(GOOD, terminating=True)
    assert FakeCluster.of(WEB, secrets=[secret]).decide(now=NOW + 30 * DAY) == NOTHING
    assert FakeCluster.of(secrets=[secret]).decide() == NOTHING


def test_a_name_too_long_for_a_secret_is_reported() -> None:
    longest, longer = (ServiceAccount("default", "a" * length, "uid") for length in (247, 248))
    assert acting(FakeCluster.of(longest).decide(longest.key)).kind is Kind.CREATE
    decision = FakeCluster.of(longer).decide(longer.key)
    assert decision.action is None
    assert finding(decision).concern is Concern.NAME_TOO_LONG


def test_a_name_that_makes_no_identity_is_reported() -> None:
    odd = ServiceAccount("default", "a:b", "uid")
    for cluster in (FakeCluster.of(odd), FakeCluster.of(odd, secrets=[replace(secret_of(WEB), name="istio.a:b")])):
        cluster.secrets = {
            key: replace(each, account_annotation="a:b", owner_uid="uid") for key, each in cluster.secrets.items()
        }
        decision = cluster.decide(odd.key)
        assert decision.action is None
        assert finding(decision).concern is Concern.NO_IDENTITY


def test_an_immutable_secret_is_deleted_to_be_made_anew_and_only_when_something_is_wrong_with_it() -> None:
    cluster = FakeCluster.of(WEB, secrets=[replace(GOOD, immutable=True)])
    assert cluster.decide().action is None
    action = acting(cluster.decide(now=NOW + 20 * HOUR))
    assert (action.kind, action.reason, action.spiffe_id) == (Kind.DELETE, Reason.DUE, None)
    cluster.carry_out([action])
    assert acting(cluster.decide(now=NOW + 20 * HOUR)).kind is Kind.CREATE


def test_what_is_contended_is_left_alone_until_its_time_is_over() -> None:
    cluster = FakeCluster.of(WEB, secrets=[replace(GOOD, mark="")])
    cluster.left_alone = {WEB.key: NOW + HOUR}
    decision = cluster.decide()
    assert decision.action is None
    assert finding(decision).concern is Concern.CONTENDED
    assert decision.due == NOW + HOUR
    assert acting(cluster.decide(now=NOW + HOUR)).kind is Kind.UPDATE
    cluster.secrets = {WEB.key: GOOD}
    assert cluster.decide().finding is None, "it stands as it shall: nothing is contended"


def test_dns_names_of_an_account_are_asked_for_and_a_certificate_without_them_is_another() -> None:
    cluster = FakeCluster.of(WEB, secrets=[GOOD])
    cluster.settings = replace(SETTINGS, dns_names={WEB.key: ("web.default.svc",)})
    action = acting(cluster.decide())
    assert (action.reason, action.dns_names) == (Reason.WRONG_NAMES, ("web.default.svc",))
    cluster.carry_out([action])
    assert cluster.decide().action is None


def test_a_newly_managed_namespace_is_filled_at_once() -> None:
    accounts = [ServiceAccount("new", f"sa-{number}", f"uid-{number}") for number in range(20)]
    cluster = FakeCluster.of(*accounts)
    cluster.settings = replace(SETTINGS, namespaces=NamespaceRules("istio-system", enable_by_default=False))
    cluster.namespaces["new"] = Namespace("new")
    assert cluster.plan().actions == ()
    cluster.namespaces["new"] = Namespace("new", {"ca.istio.io/env": "istio-system"})
    assert [action.kind for action in cluster.plan().actions] == [Kind.CREATE] * 20


def test_a_plan_knows_when_the_first_of_its_decisions_is_due() -> None:
    other = ServiceAccount("default", "other", "uid-other")
    cluster = FakeCluster.of(WEB, other, secrets=[GOOD, secret_of(other)])
    plan = cluster.plan()
    assert plan.due == min(decision.due for decision in plan.decisions.values() if decision.due)
    assert plan.due is not None
    assert len(cluster.plan(plan.due).actions) == 1
    assert FakeCluster.of().plan().due is None
