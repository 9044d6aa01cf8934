"""The plan of secrets: whatever there is in a cluster, it converges, keeps to its bounds and wakes up in time."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from hypothesis import assume, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ca.controller.action import Concern, Kind, Reason
from ca.controller.material import Damaged, Material, read_material
from ca.controller.namespaces import NamespaceRules, Scope
from ca.controller.renewal import RenewalRule
from ca.controller.settings import Settings
from ca.controller.snapshot import SECRET_TYPE, Desired, Namespace, ServiceAccount, WorkloadSecret
from ca.profile import Validity
from istio_auth.bundle import TrustBundle
from istio_auth.pem import write_certificates, write_private_key
from tests.fakes.authority import FakeAuthority
from tests.fakes.workload_secrets import (
    BUNDLE,
    DAY,
    DESIRED,
    ISSUER,
    MARK,
    NOW,
    ROOT,
    FakeCluster,
    secret_of,
)

OVERRIDE = "ca.istio.io/override"
NAMESPACES: Mapping[str, Namespace] = {
    "managed": Namespace("managed"),
    "unmanaged": Namespace("unmanaged", {OVERRIDE: "false"}),
    "terminating": Namespace("terminating", terminating=True),
}
PLACES = (*NAMESPACES, "unseen")
A_MOMENT = timedelta(microseconds=1)
SOME = hypothesis_settings(max_examples=40)  # clusters are dear to make
LATER = st.timedeltas(timedelta(), 60 * DAY)


@st.composite
def materials(draw: st.DrawFn, account: ServiceAccount) -> Material | Damaged:
    root_digest = draw(st.sampled_from([BUNDLE, BUNDLE, "old", ""]))
    if draw(st.integers(0, 5)) == 0:
        reasons = [Reason.INCOMPLETE, Reason.UNPARSABLE, Reason.WRONG_KEY, Reason.UNUSABLE, Reason.WRONG_NAMES]
        return Damaged(draw(st.sampled_from(reasons)), "damaged", root_digest)
    begin = NOW + draw(st.timedeltas(-60 * DAY, DAY / 48))
    right = f"spiffe://cluster.local/ns/{account.namespace}/sa/{account.name}"
    return Material(
        draw(st.sampled_from([right, right, right, "spiffe://cluster.local/ns/x/sa/y"])),
        draw(st.sampled_from([frozenset(), frozenset(), frozenset({"web"})])),
        draw(st.integers(1, 1 << 159)),
        begin,
        begin + draw(st.timedeltas(timedelta(), 90 * DAY)),
        draw(st.sampled_from([ISSUER, ISSUER, ISSUER, "other"])),
        draw(st.sampled_from([frozenset({ROOT}), frozenset({ROOT, "new"}), frozenset({"foreign"}), frozenset()])),
        root_digest,
    )


@st.composite
def secrets(draw: st.DrawFn, account: ServiceAccount) -> WorkloadSecret:
    return replace(
        secret_of(account, draw(materials(account))),
        uid=draw(st.uuids().map(str)),
        type=draw(st.sampled_from([SECRET_TYPE] * 5 + ["Opaque"])),
        account_annotation=draw(st.sampled_from([account.name, account.name, "", "other"])),
        owner_uid=draw(st.sampled_from([account.uid, account.uid, "", "old"])),
        mark=draw(st.sampled_from([MARK, MARK, MARK, "", "other-ca"])),
        immutable=draw(st.integers(0, 9)) == 0,
        terminating=draw(st.integers(0, 9)) == 0,
    )


@st.composite
def settings(draw: st.DrawFn) -> Settings:
    rule = RenewalRule(
        draw(st.floats(0.01, 0.8)),
        draw(st.timedeltas(timedelta(), DAY)),
        draw(st.floats(0, 0.4, allow_subnormal=False)),
    )
    ttl = draw(st.timedeltas(timedelta(minutes=1), 60 * DAY))
    return Settings(MARK, NamespaceRules("istio-system"), ttl, rule)


@st.composite
def desires(draw: st.DrawFn) -> Desired:
    """An authority in any part of its life; its roots end no earlier than what its issuer signs."""
    end = NOW + timedelta(seconds=draw(st.integers(-86400, 120 * 86400)))
    begin = min(NOW + draw(st.sampled_from([-365, -365, -365, 0, 1])) * DAY, end - timedelta(hours=1))
    anchors = {ROOT: end + draw(st.sampled_from([0, 0, 30])) * DAY}
    if draw(st.booleans()):
        anchors["new"] = NOW + 3650 * DAY
    return replace(DESIRED, validity=Validity(begin, end), anchors=anchors)


@st.composite
def clusters(draw: st.DrawFn, *, size: int = 4) -> FakeCluster:
    cluster = FakeCluster(draw(desires()), draw(settings()), dict(NAMESPACES))
    for number in range(draw(st.integers(1, size))):
        account = ServiceAccount(draw(st.sampled_from(PLACES)), f"sa-{number}", f"uid-{number}")
        if draw(st.integers(0, 4)):
            cluster.accounts[account.key] = replace(account, terminating=draw(st.integers(0, 9)) == 0)
        if draw(st.integers(0, 3)):
            cluster.secrets[account.key] = draw(secrets(account))
    return cluster


@SOME
@given(clusters())
def test_a_plan_carried_out_leaves_nothing_to_do(cluster: FakeCluster) -> None:
    for _ in range(2):  # what is immutable is deleted first and made anew then
        cluster.carry_out(cluster.plan().actions)
    assert cluster.plan().actions == ()


@SOME
@given(clusters(), LATER)
def test_it_converges_at_every_time_and_each_secret_is_written_at_most_twice(
    cluster: FakeCluster, later: timedelta
) -> None:
    cluster.carry_out(cluster.plan().actions)
    for _ in range(2):
        cluster.carry_out(cluster.plan(NOW + later).actions, NOW + later)
    assert cluster.plan(NOW + later).actions == ()


@SOME
@given(clusters())
def test_the_same_facts_give_the_same_plan_and_each_object_is_decided_for_itself(cluster: FakeCluster) -> None:
    plan = cluster.plan()
    assert plan == cluster.plan()
    for key in {*cluster.accounts, *cluster.secrets}:
        assert cluster.decide(key) == plan.decisions[key]
    assert set(plan.actions) == {each.action for each in plan.decisions.values() if each.action}


@SOME
@given(clusters(), st.data())
def test_a_bad_object_changes_nothing_for_the_others(cluster: FakeCluster, data: st.DataObject) -> None:
    before = cluster.plan().decisions
    bad = ServiceAccount(data.draw(st.sampled_from(PLACES)), data.draw(st.text(max_size=300)), "uid-bad")
    assume(bad.key not in before)
    cluster.accounts[bad.key] = bad
    if data.draw(st.booleans()):
        cluster.secrets[bad.key] = data.draw(secrets(bad))
    after = cluster.plan().decisions
    assert {key: after[key] for key in before} == before


@SOME
@given(clusters(), LATER)
def test_what_is_not_ours_is_never_touched(cluster: FakeCluster, later: timedelta) -> None:
    for action in cluster.plan(NOW + later).actions:
        secret = cluster.secrets.get((action.subject.namespace, action.subject.service_account))
        assert (action.kind is Kind.CREATE) == (secret is None)
        if secret is not None:
            assert secret.type == SECRET_TYPE
            assert secret.mark in (MARK, "")
            assert secret.mark or secret.account_annotation == action.subject.service_account
            assert not secret.terminating


@SOME
@given(clusters(), LATER)
def test_namespaces_that_are_not_managed_only_ever_lose_secrets_of_ours(cluster: FakeCluster, later: timedelta) -> None:
    for action in cluster.plan(NOW + later).actions:
        namespace = action.subject.namespace
        scope = cluster.settings.namespaces.scope(namespace, cluster.namespaces.get(namespace))
        assert scope is not Scope.LEFT_ALONE
        if scope is Scope.UNMANAGED:
            assert action.kind is Kind.DELETE
            assert cluster.secrets[namespace, action.subject.service_account].mark == MARK


@SOME
@given(clusters(size=2), LATER)
def test_nothing_new_is_to_be_done_before_the_due_time_and_something_is_new_then(
    cluster: FakeCluster, later: timedelta
) -> None:
    for key, decision in cluster.plan().decisions.items():
        if decision.due is None:
            at_ease = cluster.decide(key, NOW + later)
            if decision.action is None and cluster.desired.validity.not_after > NOW + later:
                assert at_ease.action is None
            continue
        assert decision.due > NOW
        before = cluster.decide(key, min(NOW + later, decision.due - A_MOMENT))
        assert (before.action, _concern(before.finding)) == (decision.action, _concern(decision.finding))
        then = cluster.decide(key, decision.due)
        assert (then.action, _concern(then.finding)) != (decision.action, _concern(decision.finding))


@SOME
@given(clusters(), st.lists(st.floats(0, 0.999), min_size=2, max_size=2).map(sorted))
def test_what_is_to_be_done_stays_to_be_done_while_the_issuer_can_sign(
    cluster: FakeCluster, shares: list[float]
) -> None:
    validity = cluster.desired.validity
    first, second = (validity.not_before + (validity.not_after - validity.not_before) * share for share in shares)
    after = cluster.plan(second).decisions
    for key, decision in cluster.plan(first).decisions.items():
        if decision.action is not None and decision.action.reason is not Reason.NOT_YET_VALID:
            assert after[key].action is not None


@SOME
@given(clusters())
def test_as_long_as_the_issuer_lives_no_certificate_ends_without_a_renewal(cluster: FakeCluster) -> None:
    cluster.carry_out(cluster.plan().actions)
    cluster.carry_out(cluster.plan().actions)
    validity = cluster.desired.validity
    for key, decision in cluster.plan().decisions.items():
        if decision.ends is None or not decision.ends < validity.not_after - timedelta(seconds=1):
            continue
        at = max(NOW, decision.ends - A_MOMENT)
        if not validity.not_before <= at < validity.not_after:
            continue
        action = cluster.decide(key, at).action
        assert action is not None
        assert action.reason is Reason.DUE


@SOME
@given(clusters(), st.lists(st.integers(0, 9), min_size=1, max_size=5))
def test_near_the_end_of_the_issuer_a_certificate_is_not_made_again_and_again(
    cluster: FakeCluster, steps: list[int]
) -> None:
    validity = cluster.desired.validity
    assume(validity.not_before <= NOW < validity.not_after)
    end = NOW + cluster.settings.ttl / 2
    anchors = {each: max(end, anchor_ends) for each, anchor_ends in cluster.desired.anchors.items()}
    cluster.desired = replace(cluster.desired, validity=replace(validity, not_after=end), anchors=anchors)
    cluster.carry_out(cluster.plan().actions)
    cluster.carry_out(cluster.plan().actions)
    written = 0
    left = cluster.settings.ttl / 2
    for step in sorted(steps):
        at = NOW + left * step / 10
        issuing = [each for each in cluster.plan(at).actions if each.kind.issues]
        assert not [each for each in issuing if each.reason is not Reason.DUE]
        written += len(issuing)
        cluster.carry_out(issuing, at)
    assert written <= len(cluster.secrets)


@hypothesis_settings(max_examples=5)
@given(st.integers(0, 1 << 64))
def test_a_thousand_made_together_spread_over_a_tenth_of_their_life(seed: int) -> None:
    accounts = [ServiceAccount("managed", f"sa-{number}", f"uid-{seed}-{number}") for number in range(1000)]
    cluster = FakeCluster.of(*accounts)
    cluster.namespaces = dict(NAMESPACES)
    cluster.carry_out(cluster.plan().actions)
    dues = sorted(each.due for each in cluster.plan().decisions.values() if each.due is not None)
    assert len(dues) == 1000
    window, life = dues[-1] - dues[0], DAY
    assert 0.08 * life < window < 0.11 * life
    assert max(_most_within(dues, window / 20), 1) < 120


@given(st.sampled_from(["cert-chain.pem", "key.pem", "root-cert.pem"]), st.data())
def test_any_bytes_in_a_secret_are_read_or_called_damaged(which: str, data: st.DataObject) -> None:
    good = DATA[which]
    start = data.draw(st.integers(0, len(good)))
    end = data.draw(st.integers(start, min(len(good), start + 200)))
    changed = good[:start] + data.draw(st.binary(max_size=20)) + good[end:]
    assert isinstance(read_material(DATA | {which: changed}, OURS), Material | Damaged)


def _concern(finding: object) -> Concern | None:
    return getattr(finding, "concern", None)


def _most_within(instants: list[datetime], width: timedelta) -> int:
    return max(sum(start <= each < start + width for each in instants) for start in instants[::10])


AUTHORITY = FakeAuthority()
SVID = FakeAuthority(parent=AUTHORITY).svid()
OURS = TrustBundle(AUTHORITY.trust_domain, (AUTHORITY.certificate,))
DATA = {
    "cert-chain.pem": write_certificates(SVID.chain),
    "key.pem": write_private_key(SVID.private_key),
    "root-cert.pem": OURS.to_pem(),
}
