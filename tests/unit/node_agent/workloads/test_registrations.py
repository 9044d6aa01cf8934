"""What is registered for this node."""

from __future__ import annotations

from datetime import timedelta

import pytest

from istio_auth.errors import ConfigurationError, ConflictError
from istio_auth.registration import Registration, Selector
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from node_agent.workloads.registrations import Delta, Registrations, Want, checked, from_file, observable, wants

LOCAL = TrustDomain("cluster.local")
UID = frozenset({Selector("unix", "uid:1")})


def registration(path: str, **fields: object) -> Registration:
    return Registration(SpiffeID(LOCAL, path), UID, **fields)  # type: ignore[arg-type]  # the fields, by name


A, B, C = registration("/a"), registration("/b"), registration("/c")


def whole(**put: Registration | ConfigurationError) -> Delta:
    return Delta("e1", 0, 5, put)


class TestADelta:
    def test_that_is_whole_replaces_everything(self) -> None:
        state = Registrations("e0", 3, {"x": C}).after(whole(b=B, a=A))
        assert (state.epoch, state.revision, state.all()) == ("e1", 5, (A, B))

    def test_that_follows_puts_and_removes(self) -> None:
        state = Registrations().after(whole(a=A, b=B)).after(Delta("e1", 5, 6, {"a": C}, frozenset({"b"})))
        assert (state.revision, state.by_key) == (6, {"a": C})

    @pytest.mark.parametrize("delta", [Delta("e1", 4, 6, {"a": C}), Delta("e2", 5, 6, {"a": C})])
    def test_that_does_not_follow_is_refused(self, delta: Delta) -> None:
        with pytest.raises(ConflictError):
            Registrations().after(whole(a=A)).after(delta)

    def test_with_a_bad_entry_loses_that_one_and_its_older_self_alone(self) -> None:
        state = Registrations().after(whole(a=A, b=B))
        assert state.after(Delta("e1", 5, 6, {"a": ConfigurationError("bad"), "c": C})).by_key == {"b": B, "c": C}


class TestWants:
    def test_are_one_for_each_identity_with_the_shortest_life_and_all_names(self) -> None:
        hour, day = timedelta(hours=1), timedelta(days=1)
        several = [
            registration("/a", ttl=day, dns_names=("a",)),
            registration("/a", ttl=hour, dns_names=("b",)),
            registration("/a"),
            registration("/b"),
        ]
        a, b = SpiffeID(LOCAL, "/a"), SpiffeID(LOCAL, "/b")
        assert wants(several) == {a: Want(a, hour, frozenset({"a", "b"})), b: Want(b)}


@pytest.mark.parametrize("path", ["/ca", "/agent/node-1"])
def test_no_workload_is_registered_as_the_ca_or_an_agent(path: str) -> None:
    with pytest.raises(ConfigurationError):
        checked(registration(path), LOCAL)
    assert checked(A, LOCAL) is A


def test_no_workload_is_registered_in_another_trust_domain() -> None:
    with pytest.raises(ConfigurationError):
        checked(A, TrustDomain("foreign.test"))


GOOD = b"""
[[registration]]
spiffe_id = "spiffe://cluster.local/a"
selectors = ["unix:uid:1"]
ttl = "1h"
dns_names = ["a.local"]
hint = "main"
"""


class TestAFile:
    def test_says_registrations(self) -> None:
        expected = registration("/a", ttl=timedelta(hours=1), dns_names=("a.local",), hint="main")
        assert from_file(GOOD, LOCAL).all() == (expected,)

    def test_may_be_empty(self) -> None:
        assert from_file(b"", LOCAL).all() == ()

    @pytest.mark.parametrize(
        ("good", "bad"),
        [
            ("cluster.local/a", "foreign.test/a"),
            ("cluster.local/a", "cluster.local/ca"),
            ("cluster.local/a", "cluster.local/a b"),
            ('["unix:uid:1"]', "[]"),
            ('["unix:uid:1"]', '["unix"]'),
            ('["unix:uid:1"]', '"unix:uid:1"'),
            ('"1h"', '"1 hour"'),
            ('"1h"', "1"),
            ("a.local", "A_local"),
            ("hint", "hnt"),
            ("[[registration]]", "[[registrations]]"),
            ("[[registration]]", "[registration]"),
            ("spiffe_id =", "agents ="),
            ("ttl =", "ttl"),
        ],
    )
    def test_with_one_fault_is_refused(self, good: str, bad: str) -> None:
        text = GOOD.decode()
        assert good in text
        with pytest.raises(ConfigurationError):
            from_file(text.replace(good, bad).encode(), LOCAL)

    def test_with_the_same_registration_twice_is_refused(self) -> None:
        with pytest.raises(ConfigurationError):
            from_file(GOOD + GOOD, LOCAL)

    def test_that_is_no_text_is_refused(self) -> None:
        with pytest.raises(ConfigurationError):
            from_file(b"\xff\xfe", LOCAL)


def test_a_registration_that_asks_for_what_nobody_observes_here_is_left_aside() -> None:
    of_pod = Registration(SpiffeID(LOCAL, "/pod"), frozenset({Selector("k8s", "ns:shop"), Selector("unix", "uid:1")}))
    assert observable((A, of_pod, B), unobserved=frozenset({"k8s"})) == (A, B)
    assert observable((A, of_pod, B), unobserved=frozenset()) == (A, of_pod, B)
