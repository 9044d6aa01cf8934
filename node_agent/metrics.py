"""What can be counted and measured of the agent, for Prometheus. Gauges are read off the live state at each scrape."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_PREFIX = "istio_auth_agent"


class Metrics:
    """The agent's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.issued = self._counter("svids_issued", "SVIDs taken into use", "kind")
        self.failed = self._counter("svid_failures", "Requests for SVIDs that failed", "kind", "reason")
        self.bad_answers = self._counter("bad_answers", "Answers of the CA that were refused", "fault")
        self.lapsed = self._counter("svids_lapsed", "SVIDs that ended before a new one came", "kind")
        self.syncs = self._counter("syncs", "Sync streams that ended, by how", "reason")
        self.bundle_refused = self._counter("bundles_refused", "Bundles of the CA that were not taken")
        self.bad_registrations = self._counter("bad_registrations", "Registrations that could not be used")
        self.callers_refused = self._counter("callers_refused", "Callers refused at a socket", "socket")
        self.streams_refused = self._counter(
            "streams_refused", "Times that a caller was refused for being over a limit", "limit"
        )
        self.callers_unknown = self._counter("callers_unknown", "Streams of callers that no registration fits")
        self.sds_requests = self._counter("sds_requests", "Requests of SDS clients, by what they were", "kind")
        self.sds_responses = self._counter("sds_responses", "Answers sent to SDS clients")
        self.sds_nacks = self._counter("sds_nacks", "Secrets that SDS clients refused", "resource")
        self.workload_api_responses = self._counter("workload_api_responses", "Messages sent by the Workload API")
        self.files_written = self._counter("files_written", "Times that certificates were written to files", "files")
        self.files_failed = self._counter(
            "files_failed", "Attempts to write files or tell their reader that failed", "files"
        )
        self.csi_publishes = self._counter(
            "csi_publishes", "Calls that publish volumes, by what came of them", "outcome"
        )
        self.csi_publish_seconds = Histogram(
            f"{_PREFIX}_csi_publish_seconds", "How long they took", ["outcome"], registry=self.registry
        )

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"{_PREFIX}_{name}", about, labels, registry=self.registry)

    def gauge(self, name: str, about: str, value: Callable[[], float]) -> None:
        """Measure something at each scrape."""
        Gauge(f"{_PREFIX}_{name}", about, registry=self.registry).set_function(value)

    def seconds_until(
        self, name: str, about: str, moment: Callable[[], datetime | None], now: Callable[[], datetime]
    ) -> None:
        """Measure at each scrape how far off an instant is: negative once past, not a number while there is none."""

        def seconds() -> float:
            return float("nan") if (then := moment()) is None else (then - now()).total_seconds()

        self.gauge(name, about, seconds)
