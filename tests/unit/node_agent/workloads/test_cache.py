"""What the workloads of a node hold."""

from __future__ import annotations

from istio_auth.bundle import BundleSet
from istio_auth.registration import Registration, Selector, earned
from istio_auth.spiffe_id import SpiffeID
from node_agent.workloads.cache import Held, WorkloadCache
from node_agent.workloads.registrations import Want
from tests.fakes.authority import FakeAuthority

U1, U2, S = Selector("unix", "uid:1"), Selector("unix", "uid:2"), Selector("socket", "s")


def ident(authority: FakeAuthority, path: str) -> SpiffeID:
    return SpiffeID(authority.trust_domain, path)


def held(authority: FakeAuthority, path: str) -> Held:
    svid = authority.svid(path)
    return Held(svid, Want(svid.id), svid.not_after)


def filled(authority: FakeAuthority) -> WorkloadCache:
    cache = WorkloadCache(BundleSet((authority.bundle(),)))
    cache.register(
        (
            Registration(ident(authority, "/b"), frozenset({U1})),
            Registration(ident(authority, "/a"), frozenset({U1, S})),
            Registration(ident(authority, "/c"), frozenset({U2})),
            Registration(ident(authority, "/b"), frozenset({S})),
        )
    )
    cache.put(held(authority, path) for path in ("/a", "/b", "/c"))
    return cache


def test_a_workload_holds_what_its_selectors_earn_in_the_order_of_registration(authority: FakeAuthority) -> None:
    snapshot = filled(authority).snapshot
    context = snapshot.context_of(dict.fromkeys(each.spiffe_id for each in earned(snapshot.registrations, {U1, S})))
    assert [svid.id.path for svid in context.svids] == ["/b", "/a"]
    assert context.bundles == BundleSet((authority.bundle(),))


def test_a_workload_that_is_no_longer_registered_loses_its_key_at_once(authority: FakeAuthority) -> None:
    cache = filled(authority)
    cache.register((Registration(ident(authority, "/a"), frozenset({U1})),))
    assert set(cache.snapshot.held) == {ident(authority, "/a")}


def test_an_svid_that_comes_after_its_registration_went_is_not_kept(authority: FakeAuthority) -> None:
    cache = filled(authority)
    late = held(authority, "/c")
    cache.register(())
    assert cache.put([late]) == []
    assert not cache.snapshot.held


def test_a_snapshot_once_taken_does_not_change(authority: FakeAuthority) -> None:
    cache = filled(authority)
    before = cache.snapshot
    kept = dict(before.held)
    cache.put([held(authority, "/a")])
    cache.drop({ident(authority, "/b")})
    cache.trust(BundleSet())
    assert before.held == kept
    assert cache.snapshot.held != kept
    assert len(before.bundles.bundles) == 1


def test_subscribers_hear_of_changes_until_they_end(authority: FakeAuthority) -> None:
    cache = filled(authority)
    told: list[int] = []
    end = cache.subscribe(lambda: told.append(len(cache.snapshot.held)))
    cache.drop({ident(authority, "/a")})
    cache.drop({ident(authority, "/a")})  # no change
    cache.put([])
    end()
    cache.drop({ident(authority, "/b")})
    assert told == [2]
