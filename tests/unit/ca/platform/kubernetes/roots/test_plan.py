"""What becomes of the ConfigMap with the trust bundle, and what is known of all of them together."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from ca.controller.namespaces import Scope
from ca.controller.snapshot import MARK_LABEL
from ca.platform.kubernetes.facts import ConfigMapFact
from ca.platform.kubernetes.roots.plan import (
    Foreign,
    Publication,
    Step,
    new_config_map,
    next_step,
    patch_of,
    read_config_map,
)
from tests.fakes.clock import FakeClock

OURS = ConfigMapFact("uid", "7", "roots", labelled=True, mark="istio-ca")
MINUTE = timedelta(minutes=1)


@pytest.mark.parametrize(
    ("scope", "found", "step"),
    [
        (Scope.MANAGED, None, Step.CREATE),
        (Scope.MANAGED, OURS, None),
        (Scope.MANAGED, replace(OURS, mark=""), None),  # somebody publishes the same: nothing to fight about
        (Scope.MANAGED, replace(OURS, mark="other"), None),
        (Scope.MANAGED, replace(OURS, pem="former roots"), Step.UPDATE),
        (Scope.MANAGED, replace(OURS, pem=None), Step.UPDATE),
        (Scope.MANAGED, replace(OURS, labelled=False), Step.UPDATE),
        (Scope.MANAGED, replace(OURS, pem="istiod's", mark=""), Step.UPDATE),
        (Scope.MANAGED, replace(OURS, pem="theirs", mark="other"), Foreign.ANOTHER_CA),
        (Scope.MANAGED, replace(OURS, pem="former roots", terminating=True), None),
        (Scope.MANAGED, replace(OURS, pem="former roots", immutable=True), Step.DELETE),
        (Scope.MANAGED, replace(OURS, pem="theirs", mark="other", immutable=True), Foreign.ANOTHER_CA),
        (Scope.MANAGED, replace(OURS, labelled=False, immutable=True), Step.UPDATE),
        (Scope.MANAGED, replace(OURS, immutable=True), None),
        (Scope.UNMANAGED, None, None),
        (Scope.UNMANAGED, OURS, Step.DELETE),
        (Scope.UNMANAGED, replace(OURS, pem="former roots"), Step.DELETE),
        (Scope.UNMANAGED, replace(OURS, mark=""), None),
        (Scope.UNMANAGED, replace(OURS, mark="other"), None),
        (Scope.UNMANAGED, replace(OURS, terminating=True), None),
        (Scope.LEFT_ALONE, None, None),
        (Scope.LEFT_ALONE, replace(OURS, pem="former roots"), None),
    ],
)
def test_what_is_done_in_one_namespace(scope: Scope, found: ConfigMapFact | None, step: Step | Foreign | None) -> None:
    assert next_step(scope, found, "roots", "istio-ca") is step


def test_what_is_created_is_read_back_as_right() -> None:
    made = new_config_map("roots", "istio-ca")
    metadata = made["metadata"]
    assert isinstance(metadata, dict)
    found = read_config_map(made | {"metadata": metadata | {"uid": "uid", "resourceVersion": "7"}})
    assert found == OURS
    assert next_step(Scope.MANAGED, found, "roots", "istio-ca") is None


def test_an_update_names_the_very_object_and_version_it_was_planned_for() -> None:
    patch = patch_of(OURS, "new roots", "istio-ca")
    assert patch["metadata"] == {
        "uid": "uid",
        "resourceVersion": "7",
        "labels": {"istio.io/config": "true", MARK_LABEL: "istio-ca"},
    }
    assert patch["data"] == {"root-cert.pem": "new roots"}


def test_the_same_bundle_in_many_namespaces_is_held_once() -> None:
    items = [{"data": {"root-cert.pem": "".join(["roots", " of ", "ours"])}} for _ in range(2)]
    first, second = map(read_config_map, items)  # type: ignore[arg-type]  # JSON is invariant
    assert first.pem is second.pem


def test_nothing_is_published_before_somebody_looked() -> None:
    assert Publication().since(0) is None


def test_a_bundle_is_published_when_the_last_namespace_holds_it_and_its_predecessors_with_it(clock: FakeClock) -> None:
    publication = Publication()
    publication.begin(4, ["a", "b"], clock.now())
    assert not publication.holds("a", clock.now())
    assert publication.since(4) is None
    clock.advance(MINUTE)
    assert publication.holds("b", clock.now())
    assert publication.since(4) == publication.since(3) == clock.now()
    assert publication.since(5) is None


def test_where_there_is_nothing_to_fill_a_bundle_is_published_at_once(clock: FakeClock) -> None:
    publication = Publication()
    publication.begin(4, [], clock.now())
    assert publication.since(4) == clock.now()


def test_a_namespace_that_comes_new_interrupts_until_it_is_filled_and_no_longer(clock: FakeClock) -> None:
    publication = Publication()
    publication.begin(4, ["a"], clock.now())
    publication.holds("a", clock.now())
    since = clock.now()
    clock.advance(MINUTE)
    publication.lacks("new")
    assert publication.since(4) is None
    publication.holds("new", clock.now())
    assert publication.since(4) == since


def test_a_namespace_that_had_the_bundle_and_lost_it_makes_the_time_begin_anew(clock: FakeClock) -> None:
    publication = Publication()
    publication.begin(4, ["a", "b"], clock.now())
    publication.holds("a", clock.now())
    publication.holds("b", clock.now())
    clock.advance(MINUTE)
    publication.lacks("a")
    assert publication.since(4) is None
    publication.holds("a", clock.now())
    assert publication.since(4) == clock.now()


def test_a_namespace_that_is_gone_is_waited_for_no_longer(clock: FakeClock) -> None:
    publication = Publication()
    publication.begin(4, ["a", "b"], clock.now())
    publication.holds("a", clock.now())
    publication.is_gone("b", clock.now())
    assert publication.since(4) == clock.now()
    assert publication.lacking == 0
