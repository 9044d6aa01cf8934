"""Which workload earns which identity."""

from __future__ import annotations

import pytest

from istio_auth.errors import ConfigurationError
from istio_auth.registration import Registration, Selector, check_dns_name, earned, nearest
from istio_auth.spiffe_id import SpiffeID

WEB = SpiffeID.parse("spiffe://cluster.local/ns/default/sa/web")
DB = SpiffeID.parse("spiffe://cluster.local/ns/default/sa/db")


def selectors(*texts: str) -> frozenset[Selector]:
    return frozenset(map(Selector.parse, texts))


def test_a_selector_has_a_type_and_a_value() -> None:
    selector = Selector.parse("unix:uid:1000")
    assert (selector.type, selector.value) == ("unix", "uid:1000")
    assert str(selector) == "unix:uid:1000"


@pytest.mark.parametrize(
    "text",
    ["", "unix", "unix:", ":uid", "Unix:uid", "1x:y", "unix:uid 1", "unix:uid\n", "unix:\x00", "unix:" + "a" * 501],
)
def test_what_is_no_selector_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        Selector.parse(text)


@pytest.mark.parametrize("text", ["unix:uid:web", "unix:uid:", "unix:user:1", "unix:uid:01", "unix:uid:-1"])
def test_a_unix_selector_that_nobody_can_have_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        Selector.parse(text)
    assert str(Selector.parse("unix:uid:0")) == "unix:uid:0"


def test_all_selectors_must_be_observed() -> None:
    registration = Registration(WEB, selectors("unix:uid:1", "socket:web"))
    assert registration.fits(selectors("unix:uid:1", "socket:web", "unix:gid:1"))
    assert not registration.fits(selectors("unix:uid:1"))
    assert not registration.fits(frozenset())
    assert registration.missing(selectors("unix:uid:1")) == selectors("socket:web")


def test_a_registration_that_would_fit_everybody_can_not_be_made() -> None:
    with pytest.raises(ConfigurationError):
        Registration(WEB, frozenset())


def test_a_trust_domain_is_no_workload() -> None:
    with pytest.raises(ConfigurationError):
        Registration(WEB.trust_domain.id, selectors("unix:uid:1"))


def test_a_workload_earns_every_registration_that_fits() -> None:
    web, db = Registration(WEB, selectors("unix:uid:1")), Registration(DB, selectors("unix:uid:1", "socket:db"))
    assert earned([web, db], selectors("unix:uid:1")) == [web]
    assert earned([web, db], selectors("unix:uid:1", "socket:db")) == [web, db]
    assert earned([web, db], selectors("unix:uid:2")) == []


def test_a_refusal_is_explained_by_the_nearest_registration() -> None:
    web, db = Registration(WEB, selectors("unix:uid:1", "x:a", "x:b")), Registration(DB, selectors("x:a", "x:c"))
    assert nearest([web, db], selectors("x:a")) is db
    assert nearest([], selectors("x:a")) is None


@pytest.mark.parametrize("name", ["web", "web.default.svc.cluster.local", "1.example", "a-b.c", "a" * 63 + ".b"])
def test_dns_names_that_can_stand_in_a_certificate(name: str) -> None:
    check_dns_name(name)
    assert Registration(WEB, selectors("x:a"), dns_names=(name,)).dns_names == (name,)


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "a.",
        ".a",
        "a..b",
        "-a",
        "a-",
        "A",
        "*.a",
        "a b",
        "a\n",
        "a_b",
        "\u00e9",
        "a" * 64,
        ".".join(["abc"] * 64),
        "127.0.0.1",
        "1",
    ],
)
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(ConfigurationError):
        check_dns_name(name)
    with pytest.raises(ConfigurationError):
        Registration(WEB, selectors("x:a"), dns_names=(name,))
