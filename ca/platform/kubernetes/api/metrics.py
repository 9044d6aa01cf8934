"""A metric of the requests to the API server, by verb and resource as roles spell them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from prometheus_client.core import CounterMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry


class APICalls(Collector):
    """Shows how often the API server was asked.

    Args:
        registry: where it is shown.
        calls: how often each verb was used on each resource.
    """

    def __init__(self, registry: CollectorRegistry, calls: Mapping[tuple[str, str], int]) -> None:
        self._calls = calls
        registry.register(self)

    def collect(self) -> Iterator[Metric]:
        """The counts as they are now."""
        family = CounterMetricFamily(
            "istio_auth_ca_api_calls", "Requests to the API server, repeated ones too.", labels=["verb", "resource"]
        )
        for labels, count in self._calls.items():
            family.add_metric(labels, count)
        yield family
