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


@pytest.mark.parametrize(
    "text",
    [
        "k8s:ns:shop",
        "k8s:sa:web",
        "k8s:sa:web.v2",
        "k8s:node:node-1.example",
        "k8s:pod:web-0",
        "k8s:pod-uid:0c3ff9ee-8a7c-4a3b-8d5b-6f1f2f3a4b5c",
        "k8s:pod-uid:5d4e2a6f1c9b8a7f6e5d4c3b2a190807",
        "k8s:container:app",
        "k8s:label:app=web",
        "k8s:label:app.kubernetes.io/name=web_1.2-x",
        "k8s:label:app=",
    ],
)
def test_a_registration_can_ask_for_what_is_known_of_a_pod(text: str) -> None:
    assert str(Selector.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "k8s:namespace:shop",
        "k8s:ns:Shop",
        "k8s:ns:shop.web",
        "k8s:ns:" + "a" * 64,
        "k8s:sa:shop/web",
        "k8s:sa:" + ".".join(["abc"] * 64),
        "k8s:pod-uid:a_b",
        "k8s:label:app",
        "k8s:label:=web",
        "k8s:label:/app=web",
        "k8s:label:a/b/c=web",
        "k8s:label:app=a=b",
        "k8s:label:app=" + "a" * 64,
        "k8s:container:",
    ],
)
def test_a_kubernetes_selector_that_no_pod_can_have_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="fits nobody: write k8s:ns:NAMESPACE"):
        Selector.parse(text)


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
