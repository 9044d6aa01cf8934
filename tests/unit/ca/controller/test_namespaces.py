"""Which namespaces are managed: each rule yields to those above it."""

from __future__ import annotations

import pytest

from ca.controller.label_selector import LabelSelector
from ca.controller.namespaces import NamespaceRules, Scope
from ca.controller.snapshot import Namespace

SELECTING = NamespaceRules("istio-system", selector=LabelSelector.parse("mesh in (on)"))
LISTING = NamespaceRules("istio-system", enable_by_default=False, explicit=frozenset({"listed"}))
BY_DEFAULT, NOT_BY_DEFAULT = NamespaceRules("istio-system"), NamespaceRules("istio-system", enable_by_default=False)


def scope(rules: NamespaceRules, labels: dict[str, str], *, name: str = "default") -> Scope:
    return rules.scope(name, Namespace(name, labels))


@pytest.mark.parametrize(
    ("rules", "labels", "managed"),
    [
        (BY_DEFAULT, {}, True),
        (NOT_BY_DEFAULT, {}, False),
        (BY_DEFAULT, {"ca.istio.io/override": "false"}, False),
        (NOT_BY_DEFAULT, {"ca.istio.io/override": "true"}, True),
        (BY_DEFAULT, {"ca.istio.io/override": "no"}, True),
        (NOT_BY_DEFAULT, {"ca.istio.io/override": "True"}, False),
        (NOT_BY_DEFAULT, {"ca.istio.io/env": "istio-system"}, True),
        (BY_DEFAULT, {"ca.istio.io/env": "other-system"}, False),
        (BY_DEFAULT, {"ca.istio.io/env": ""}, False),
        (BY_DEFAULT, {"ca.istio.io/env": "other-system", "ca.istio.io/override": "true"}, True),
        (NOT_BY_DEFAULT, {"ca.istio.io/env": "istio-system", "ca.istio.io/override": "false"}, False),
        (BY_DEFAULT, {"ca.istio.io/env": "other-system", "ca.istio.io/override": "maybe"}, False),
        (SELECTING, {"mesh": "on"}, True),
        (SELECTING, {"mesh": "off"}, False),
        (SELECTING, {}, False),
        (SELECTING, {"ca.istio.io/override": "true"}, True),
        (SELECTING, {"mesh": "on", "ca.istio.io/env": "other-system"}, False),
        (LISTING, {}, False),
    ],
)
def test_labels_then_the_selector_then_the_default_decide(
    rules: NamespaceRules, labels: dict[str, str], managed: bool
) -> None:
    assert scope(rules, labels) is (Scope.MANAGED if managed else Scope.UNMANAGED)


def test_a_listed_namespace_is_managed_whatever_its_labels_say_and_also_when_it_can_not_be_seen() -> None:
    assert scope(LISTING, {"ca.istio.io/override": "false"}, name="listed") is Scope.MANAGED
    assert LISTING.scope("listed", None) is Scope.MANAGED


def test_an_unseen_or_terminating_namespace_is_left_alone() -> None:
    assert BY_DEFAULT.scope("default", None) is Scope.LEFT_ALONE
    going = Namespace("listed", {"ca.istio.io/override": "true"}, terminating=True)
    assert BY_DEFAULT.scope("listed", going) is Scope.LEFT_ALONE
    assert LISTING.scope("listed", going) is Scope.LEFT_ALONE
