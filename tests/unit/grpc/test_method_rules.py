"""Which authorizer decides on which method: the longest rule alone, and nobody where there is none."""

from __future__ import annotations

import pytest

from istio_auth.authorize import any_id, is_id, one_of
from istio_auth.errors import ConfigurationError, NotAuthorized
from istio_auth.grpc import MethodRules
from istio_auth.spiffe_id import SpiffeID

WEB = SpiffeID.parse("spiffe://cluster.local/ns/default/sa/web")
DB = SpiffeID.parse("spiffe://cluster.local/ns/default/sa/db")


def allowed(rules: MethodRules, method: str, peer: SpiffeID) -> bool:
    try:
        rules.check(method, peer)
    except NotAuthorized:
        return False
    return True


def test_a_method_without_a_rule_is_closed_to_everybody() -> None:
    for rules in (MethodRules({}), MethodRules({"/shop.Orders/": any_id(), "/shop.Stock/Count": any_id()})):
        with pytest.raises(NotAuthorized, match=r"there is no rule for /shop\.Stock/Take, so nobody may call it"):
            rules.check("/shop.Stock/Take", WEB)


def test_the_longest_rule_decides_alone() -> None:
    rules = MethodRules({"/": is_id(DB), "/shop.Orders/": is_id(WEB), "/shop.Orders/Delete": one_of()})
    assert [allowed(rules, method, WEB) for method in ("/a.B/C", "/shop.Orders/Get", "/shop.Orders/Delete")] == [
        False,
        True,
        False,
    ]
    assert [allowed(rules, method, DB) for method in ("/a.B/C", "/shop.Orders/Get", "/shop.Orders/Delete")] == [
        True,
        False,
        False,
    ]


@pytest.mark.parametrize(
    "method", ["/shop.OrdersAdmin/Get", "/shop/Get", "/shop.Orders", "shop.Orders/Get", "//Get", ""]
)
def test_a_rule_for_a_service_is_for_no_other_whose_name_begins_like_it(method: str) -> None:
    rules = MethodRules({"/shop.Orders/": any_id(), "/shop.Orders/Get": any_id()})
    assert not allowed(rules, method, WEB)
    assert allowed(rules, "/shop.Orders/Get", WEB)


def test_rules_that_change_later_change_nothing() -> None:
    rules = {"/shop.Orders/": is_id(WEB)}
    checked = MethodRules(rules)
    rules["/"] = any_id()
    assert not allowed(checked, "/a.B/C", WEB)


@pytest.mark.parametrize(
    "name",
    ["", "shop.Orders", "/shop.Orders", "shop.Orders/Get", "/shop.Orders/*", "*", "/a/b/c", "//", "//Get", "/ /"],
)
def test_what_names_no_methods_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="names no methods"):
        MethodRules({name: any_id()})


@pytest.mark.parametrize("name", ["/", "/shop.Orders/", "/shop.Orders/Get", "/Orders/"])
def test_what_names_some_is_not(name: str) -> None:
    MethodRules({name: any_id()})
