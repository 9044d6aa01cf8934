"""The metrics of the secret controller. Citadel's names are kept, for its dashboards.

Counters are plain numbers and become metrics when they are collected; the present state is looked up then.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector, CollectorRegistry

from ca.controller.action import Concern, Kind, Reason
from istio_auth.clock import Clock
from istio_auth.errors import Code


@dataclass(frozen=True, slots=True)
class Standing:
    """The state of one service account of a managed namespace.

    Args:
        ends: when the certificate in its secret ends; None when there is none to speak of.
        due: when the next decision is due; None when nothing is.
        concern: what an operator should hear; None for nothing.
        failing: whether the last attempt to do what is needed failed.
    """

    ends: datetime | None
    due: datetime | None
    concern: Concern | None
    failing: bool = False


@dataclass(slots=True)
class Tally:
    """The numbers, for one event loop to write. They outlive a term of leading.

    Args:
        written: writes and deletions of secrets, by kind and reason.
        failed: failed attempts, by kind and the code of the error; the kind is None if no action was decided on yet.
        key_errors: keys that could not be made.
        sign_errors: certificates that could not be made.
        remade: secrets that were created again because somebody had deleted them.
    """

    written: Counter[tuple[Kind, Reason]] = field(default_factory=Counter)
    failed: Counter[tuple[Kind | None, Code]] = field(default_factory=Counter)
    key_errors: int = 0
    sign_errors: int = 0
    remade: int = 0


@dataclass(frozen=True, slots=True)
class Present:
    """The present state, for gauges.

    Args:
        standing: the state of each service account of a managed namespace.
        waiting: how many are waiting to be looked at.
    """

    standing: Callable[[], list[Standing]]
    waiting: Callable[[], int]


class ControllerMetrics(Collector):
    """Shows the numbers of the controller.

    Args:
        registry: where they are shown.
        tally: the numbers.
        present: the present state.
        clock: tells the time.
    """

    def __init__(self, registry: CollectorRegistry, tally: Tally, present: Present, clock: Clock) -> None:
        self._tally = tally
        self._present = present
        self._clock = clock
        registry.register(self)

    def describe(self) -> list[Metric]:
        """Nothing in advance: `collect` looks everything up."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All of them as they are now."""
        yield from self._counters()
        yield from self._citadel()
        yield from self._gauges()

    def _counters(self) -> Iterator[Metric]:
        written = CounterMetricFamily(
            "istio_auth_ca_secrets_written",
            "Writes and deletions of secrets, by what was done and why.",
            labels=["kind", "reason"],
        )
        for (kind, reason), count in self._tally.written.items():
            written.add_metric([kind.value, reason.name.lower()], count)
        yield written
        failed = CounterMetricFamily(
            "istio_auth_ca_secret_failures",
            "Attempts on secrets that failed, by what should have been done and the kind of reason.",
            labels=["kind", "reason"],
        )
        for (wanted, code), count in self._tally.failed.items():
            failed.add_metric([wanted.value if wanted else "look", code.name.lower()], count)
        yield failed

    def _citadel(self) -> Iterator[Metric]:
        written = self._tally.written
        created = sum(count for (kind, _), count in written.items() if kind is Kind.CREATE)
        deleted = written[Kind.DELETE, Reason.ACCOUNT_GONE]
        for name, words, count in (
            ("svc_acc_created_cert_count", "Certificates created for service accounts.", created - self._tally.remade),
            ("svc_acc_deleted_cert_count", "Certificates deleted with their service accounts.", deleted),
            ("secret_deleted_cert_count", "Certificates created anew for deleted secrets.", self._tally.remade),
            ("csr_err_count", "Keys and requests that could not be made.", self._tally.key_errors),
            ("csr_sign_err_count", "Certificates that could not be signed.", self._tally.sign_errors),
        ):
            # Without a type: as counters their names would end in "_total", and the old dashboards would not find them.
            metric = Metric(f"citadel_secret_controller_{name}", words, "unknown")
            metric.add_sample(metric.name, {}, count)
            yield metric

    def _gauges(self) -> Iterator[Metric]:
        standing, now = self._present.standing(), self._clock.now()
        due = sum(each.due is not None and each.due <= now for each in standing)
        for name, words, value in (
            ("istio_auth_ca_secrets_managed", "Service accounts whose secrets are looked after.", len(standing)),
            ("istio_auth_ca_secrets_due", "Secrets whose renewal is due and was not made yet.", due),
            (
                "istio_auth_ca_secrets_failing",
                "Secrets for which what should be done can not be done.",
                sum(each.failing for each in standing),
            ),
            ("istio_auth_ca_secrets_waiting", "Service accounts that wait to be looked at.", self._present.waiting()),
        ):
            yield GaugeMetricFamily(name, words, value=value)
        remaining = GaugeMetricFamily(
            "istio_auth_ca_secret_shortest_remaining_seconds",
            "The life that is left to the certificate that ends first.",
        )
        if ends := [each.ends for each in standing if each.ends is not None]:
            remaining.add_metric([], (min(ends) - now).total_seconds())
        yield remaining
        concerns = Counter(each.concern for each in standing)
        found = GaugeMetricFamily(
            "istio_auth_ca_secret_concerns", "Secrets that somebody should look at, by why.", labels=["concern"]
        )
        for concern in Concern:
            found.add_metric([concern.name.lower()], concerns[concern])
        yield found
