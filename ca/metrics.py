"""The metrics of the CA. The names that Citadel and istiod gave their counters are kept, for existing dashboards.

Counters are plain numbers here and become metrics when they are collected. Whatever can be looked up at that moment
(how long the authority lives, which agents are in sync) is looked up then, so that no gauge can be out of date.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Self

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from istio_auth.errors import Code

# The labels of citadel_server_csr_sign_err_count (istiod, security/pkg/pki/error).
CSR_ERROR = "CSR_ERROR"
TTL_ERROR = "TTL_ERROR"
CA_NOT_READY = "CA_NOT_READY"
CERT_GEN_ERROR = "CERT_GEN_ERROR"


@dataclass(slots=True)
class Counts:
    """The numbers, for one event loop to write.

    Args:
        issued: certificates, by how their callers were proven.
        refused: refusals, by how the callers were proven (`none` if not at all) and the code of the reason.
        in_flight: requests being answered now.
        csr: calls of Istio's CreateCertificate.
        authentication_failures: such calls without a proven caller.
        sign_errors: such calls that failed later, by istiod's label.
        successes: such calls that were answered with a certificate.
    """

    issued: Counter[str] = field(default_factory=Counter)
    refused: Counter[tuple[str, Code]] = field(default_factory=Counter)
    in_flight: int = 0
    csr: int = 0
    authentication_failures: int = 0
    sign_errors: Counter[str] = field(default_factory=Counter)
    successes: int = 0


@dataclass(frozen=True, slots=True)
class Gauge:
    """A metric that is looked up when it is collected.

    Args:
        name: of the metric.
        help: what it is, in words.
        values: the values now, by the values of the labels.
        labels: the names of the labels.
    """

    name: str
    help: str
    values: Callable[[], Mapping[tuple[str, ...], float]]
    labels: tuple[str, ...] = ()

    @classmethod
    def single(cls, name: str, words: str, value: Callable[[], float]) -> Self:
        """One number without labels."""
        return cls(name, words, lambda: {(): float(value())})


class CAMetrics(Collector):
    """Shows the counts and gauges of a CA.

    Args:
        registry: where they are shown.
        counts: the numbers.
        gauges: what is looked up when asked.
    """

    def __init__(self, registry: CollectorRegistry, counts: Counts, gauges: Iterable[Gauge] = ()) -> None:
        self._counts = counts
        self._gauges = tuple(gauges)
        registry.register(self)

    def describe(self) -> list[Metric]:
        """Nothing in advance: the gauges can not be looked up before everything has started."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All of them as they are now."""
        yield from self._citadel()
        issued = CounterMetricFamily(
            "istio_auth_ca_certificates_issued", "Certificates issued, by how the caller was proven.", labels=["method"]
        )
        for method, count in self._counts.issued.items():
            issued.add_metric([method], count)
        yield issued
        refused = CounterMetricFamily(
            "istio_auth_ca_certificates_refused",
            "Certificates refused, by how the caller was proven and the kind of reason.",
            labels=["method", "reason"],
        )
        for (method, code), count in self._counts.refused.items():
            refused.add_metric([method, code.name.lower()], count)
        yield refused
        yield GaugeMetricFamily(
            "istio_auth_ca_requests_in_flight", "Requests being answered now.", value=self._counts.in_flight
        )
        for gauge in self._gauges:
            yield _family(gauge)

    def _citadel(self) -> Iterator[Metric]:
        counts = self._counts
        yield _citadel("csr_count", "CSRs received by Citadel server.", counts.csr)
        yield _citadel("authentication_failure_count", "Authentication failures.", counts.authentication_failures)
        yield _citadel("success_cert_issuance_count", "Certificates issued.", counts.successes)
        errors = Metric("citadel_server_csr_sign_err_count", "Errors occurred when signing the CSR.", "unknown")
        for label in (CSR_ERROR, TTL_ERROR, CA_NOT_READY, CERT_GEN_ERROR):
            errors.add_sample(errors.name, {"error": label}, counts.sign_errors[label])
        yield errors


def _citadel(name: str, words: str, count: int) -> Metric:
    # Without a type: as counters their names would end in "_total", and the old dashboards would not find them.
    metric = Metric(f"citadel_server_{name}", words, "unknown")
    metric.add_sample(metric.name, {}, count)
    return metric


def _family(gauge: Gauge) -> Metric:
    family = GaugeMetricFamily(gauge.name, gauge.help, labels=gauge.labels)
    for labels, value in gauge.values().items():
        family.add_metric(labels, value)
    return family
