"""The status of sources as metrics, for programs with `prometheus_client`, which only this module imports.

REGISTRY.register(SourceMetrics({"server": source}))
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from istio_auth.sources.source import Source

_LABELS = ("source", "spiffe_id")


class SourceMetrics(Collector):
    """Shows the `status` of each source, asked at each scrape; `spiffe_id` is empty while a source holds no SVID.

    Args:
        sources: the sources, by the name under which each is shown.
    """

    def __init__(self, sources: Mapping[str, Source]) -> None:
        self._sources = dict(sources)

    def collect(self) -> Iterator[Metric]:
        """The figures as they are now."""
        ready = GaugeMetricFamily(
            "istio_auth_source_ready", "Whether the source has an SVID or bundles to serve.", labels=_LABELS
        )
        age = GaugeMetricFamily(
            "istio_auth_source_age_seconds", "How long what it serves has been held.", labels=_LABELS
        )
        remaining = GaugeMetricFamily(
            "istio_auth_source_remaining_seconds", "How long the default SVID is still valid.", labels=_LABELS
        )
        updates = CounterMetricFamily("istio_auth_source_updates", "How often it got something new.", labels=_LABELS)
        for name, source in self._sources.items():
            status = source.status()
            labels = (name, str(status.spiffe_id or ""))
            ready.add_metric(labels, status.ready)
            updates.add_metric(labels, status.updates)
            if status.age is not None:
                age.add_metric(labels, status.age.total_seconds())
            if status.remaining is not None:
                remaining.add_metric(labels, status.remaining.total_seconds())
        yield from (ready, age, remaining, updates)

    def describe(self) -> Iterator[Metric]:
        """The names alone, so that a registry sees duplicates; registering asks no source for its status."""
        return SourceMetrics({}).collect()
