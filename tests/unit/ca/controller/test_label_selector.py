"""Label selectors mean what they mean to the API server; most sentences are those apimachinery tests its own with."""

from __future__ import annotations

import pytest

from ca.controller.label_selector import LabelSelector, Requirement, is_label_value
from istio_auth.errors import ConfigurationError


def wants(key: str, operator: str, *values: str) -> Requirement:
    return Requirement(key, operator, frozenset(values))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("", ()),
        ("  ", ()),
        ("\rx", (wants("x", "exists"),)),
        ("this-is-a-dns.domain.com/key-with-dash", (wants("this-is-a-dns.domain.com/key-with-dash", "exists"),)),
        (
            "this-is-another-dns.domain.com/key-with-dash in (so,what)",
            (wants("this-is-another-dns.domain.com/key-with-dash", "in", "so", "what"),),
        ),
        (
            "0.1.2.domain/99 notin (10.10.100.1, tick.tack.clock)",
            (wants("0.1.2.domain/99", "notin", "10.10.100.1", "tick.tack.clock"),),
        ),
        ("foo  in\t (abc)", (wants("foo", "in", "abc"),)),
        ("x notin\n (abc)", (wants("x", "notin", "abc"),)),
        ("x in (abc,)", (wants("x", "in", "abc", ""),)),
        ("x in ()", (wants("x", "in", ""),)),
        ("x in(a)", (wants("x", "in", "a"),)),
        (
            "x notin (abc,,def),bar,z in (),w",
            (wants("x", "notin", "abc", "", "def"), wants("bar", "exists"), wants("z", "in", ""), wants("w", "exists")),
        ),
        ("x,y in (a)", (wants("x", "exists"), wants("y", "in", "a"))),
        ("x=a", (wants("x", "in", "a"),)),
        ("x==a,y!=b", (wants("x", "in", "a"), wants("y", "notin", "b"))),
        ("x=,z= ", (wants("x", "in", ""), wants("z", "in", ""))),
        ("x>1,z<5", (wants("x", ">", "1"), wants("z", "<", "5"))),
        ("!x, ! y", (wants("x", "absent"), wants("y", "absent"))),
        ("in in (in),notin", (wants("in", "in", "in"), wants("notin", "exists"))),
    ],
)
def test_a_selector_is_understood(text: str, meant: tuple[Requirement, ...]) -> None:
    assert LabelSelector.parse(text).requirements == meant


@pytest.mark.parametrize(
    "text",
    [
        *("x=a||y=b", "x==a==b", "!x=a", "!x in (a)", "x<a", "x>", "x,,y", ",x,y", "x nott in (y)", "a in (xyz),"),
        *("a in (xyz)b notin ()", "a in (xyz abc)", "a notin(", "a (", "(", "xin (a)", "x y", "x in a", "!", "x=a b"),
        *(
            "-x",
            "x-",
            "a/b/c",
            "/x",
            "A.b/x",
            "x" * 64,
            f"x={'y' * 64}",
            "x=-y",
            "x in (-)",
            "ä",
            f"{'a' * 254}/x",
            "x,",
        ),
    ],
)
def test_what_is_no_selector_is_refused_with_its_text(text: str) -> None:
    with pytest.raises(ConfigurationError, match="is no label selector"):
        LabelSelector.parse(text)


@pytest.mark.parametrize(
    ("text", "labels", "picked"),
    [
        ("", {}, True),
        ("x", {"x": ""}, True),
        ("x", {}, False),
        ("!x", {}, True),
        ("!x", {"x": "1"}, False),
        ("x=y", {"x": "y"}, True),
        ("x=y", {"x": "z"}, False),
        ("x=y", {}, False),
        ("x=", {"x": ""}, True),
        ("x=", {}, False),
        ("x!=y", {}, True),
        ("x!=y", {"x": "y"}, False),
        ("x in (a,b)", {"x": "b"}, True),
        ("x in (a,b)", {}, False),
        ("x notin (a,b)", {}, True),
        ("x notin (a,b)", {"x": "a"}, False),
        ("x>1", {"x": "2"}, True),
        ("x>1", {"x": "1"}, False),
        ("x>1", {"x": "many"}, False),
        ("x>1", {}, False),
        ("x<7", {"x": "06"}, True),
        ("x=a,y!=b", {"x": "a", "y": "c"}, True),
        ("x=a,y!=b", {"x": "a", "y": "b"}, False),
    ],
)
def test_a_selector_picks_by_all_its_requirements(text: str, labels: dict[str, str], picked: bool) -> None:
    assert LabelSelector.parse(text).matches(labels) is picked


def test_a_value_of_a_label_is_short_and_plain() -> None:
    assert all(map(is_label_value, ("", "a", "istio-ca.v1_2", "a" * 63)))
    assert not any(map(is_label_value, ("a" * 64, "-a", "a ", "a/b", "a\n")))
