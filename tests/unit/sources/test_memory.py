"""A source in memory: one snapshot, replaced whole."""

from __future__ import annotations

import threading

import pytest

from istio_auth.bundle import BundleSet
from istio_auth.errors import NotReady, VerificationError
from istio_auth.sources.memory import MemorySource
from istio_auth.spiffe_id import TrustDomain
from istio_auth.x509_source import X509Context
from tests.fakes.authority import FakeAuthority


def context(authority: FakeAuthority, path: str = "/web") -> X509Context:
    return X509Context((authority.svid(path),), BundleSet((authority.bundle(),)))


def test_an_empty_source_is_not_ready() -> None:
    source = MemorySource()
    for ask in (source.x509_context, source.svid, lambda: source.bundle(TrustDomain("cluster.local"))):
        with pytest.raises(NotReady):
            ask()


def test_a_context_without_svid_still_knows_its_bundles(authority: FakeAuthority) -> None:
    source = MemorySource(X509Context((), BundleSet((authority.bundle(),))))
    assert source.bundle(authority.trust_domain) == authority.bundle()
    with pytest.raises(NotReady):
        source.svid()
    with pytest.raises(VerificationError):
        source.bundle(TrustDomain("elsewhere"))


def test_the_same_snapshot_comes_back_until_it_is_replaced(authority: FakeAuthority) -> None:
    first, second = context(authority), context(authority)
    source = MemorySource(first)
    assert source.x509_context() is first
    source.replace(second)
    assert source.x509_context() is second
    assert source.svid() is second.svid


def test_subscribers_hear_of_each_change_until_they_leave(authority: FakeAuthority) -> None:
    source = MemorySource.of(authority.svid(), authority.bundle())
    heard: list[str] = []
    end_one = source.subscribe(lambda: heard.append("one"))
    end_two = source.subscribe(lambda: heard.append("two"))
    source.replace(context(authority))
    end_one()
    end_one()
    source.replace(context(authority))
    end_two()
    source.replace(context(authority))
    assert heard == ["one", "two", "two"]


def test_a_subscriber_sees_what_it_is_told_of_and_may_leave_meanwhile(authority: FakeAuthority) -> None:
    source, second = MemorySource(), context(authority)
    seen: list[X509Context] = []

    def changed() -> None:
        seen.append(source.x509_context())
        end()

    end = source.subscribe(changed)
    source.replace(second)
    source.replace(context(authority))
    assert seen == [second]


def test_snapshots_are_never_mixed(authority: FakeAuthority, foreign_authority: FakeAuthority) -> None:
    pair = [context(authority), context(foreign_authority)]
    source, done, torn = MemorySource(pair[0]), threading.Event(), []

    def look() -> None:
        while not done.is_set():
            held = source.x509_context()
            if held not in pair or held.svid.id.trust_domain != next(iter(held.bundles)).trust_domain:
                torn.append(held)

    reader = threading.Thread(target=look)
    reader.start()
    for turn in range(2000):
        source.replace(pair[turn % 2])
    done.set()
    reader.join(10)
    assert not torn
