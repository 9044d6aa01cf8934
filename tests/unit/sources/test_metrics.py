"""What a scrape shows of sources."""

from __future__ import annotations

from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from istio_auth.bundle import BundleSet
from istio_auth.sources.memory import MemorySource
from istio_auth.sources.metrics import SourceMetrics
from istio_auth.x509_source import X509Context
from tests.fakes.authority import HOUR, FakeAuthority
from tests.fakes.clock import FakeClock


@pytest.fixture
def clock(authority: FakeAuthority) -> FakeClock:
    return FakeClock(authority.now)


def test_a_scrape_shows_each_source_by_name_and_spiffe_id(authority: FakeAuthority, clock: FakeClock) -> None:
    web = authority.svid("/web", not_before=authority.now, not_after=authority.now + 10 * HOUR)
    server, client = MemorySource(clock=clock), MemorySource(clock=clock)
    registry = CollectorRegistry()
    registry.register(SourceMetrics({"server": server, "client": client}))
    server.replace(X509Context((web,), BundleSet()))
    clock.advance(timedelta(seconds=1.5))
    id_label = f'source="server",spiffe_id="{web.id}"'
    assert figures(registry) == {
        f"istio_auth_source_ready{{{id_label}}} 1.0",
        f"istio_auth_source_age_seconds{{{id_label}}} 1.5",
        f"istio_auth_source_remaining_seconds{{{id_label}}} 35998.5",
        f"istio_auth_source_updates_total{{{id_label}}} 1.0",
        'istio_auth_source_ready{source="client",spiffe_id=""} 0.0',
        'istio_auth_source_updates_total{source="client",spiffe_id=""} 0.0',
    }
    server.replace(X509Context((web,), BundleSet()))
    server.close()
    assert figures(registry) >= {
        'istio_auth_source_ready{source="server",spiffe_id=""} 0.0',
        'istio_auth_source_updates_total{source="server",spiffe_id=""} 2.0',
    }


def test_remaining_life_ends_at_nothing(authority: FakeAuthority, clock: FakeClock) -> None:
    source, registry = MemorySource(clock=clock), CollectorRegistry()
    registry.register(SourceMetrics({"server": source}))
    source.replace(X509Context((authority.svid("/web"),), BundleSet()))
    clock.advance(1000 * HOUR)
    (line,) = [line for line in figures(registry) if "remaining" in line]
    assert line.endswith("} 0.0")


def test_two_collectors_in_one_registry_are_told_at_once() -> None:
    registry = CollectorRegistry()
    registry.register(SourceMetrics({"server": MemorySource()}))
    with pytest.raises(ValueError, match="istio_auth_source_ready"):
        registry.register(SourceMetrics({"client": MemorySource()}))


def figures(registry: CollectorRegistry) -> set[str]:
    return {line for line in generate_latest(registry).decode().splitlines() if not line.startswith("#")}
