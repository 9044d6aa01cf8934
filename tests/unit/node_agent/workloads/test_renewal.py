"""Every registered workload keeps a live SVID."""

from __future__ import annotations

import itertools
from datetime import timedelta

import pytest
from prometheus_client import CollectorRegistry

from istio_auth.bundle import BundleSet
from istio_auth.errors import Exhausted, NotAuthorized
from istio_auth.registration import Registration, Selector
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from node_agent.backoff import Backoff
from node_agent.metrics import Metrics
from node_agent.workloads.cache import WorkloadCache
from node_agent.workloads.plan import LONGEST_WAIT, first_to_lapse, plan
from node_agent.workloads.renewal import MAX_BATCH, Renewals
from tests.fakes.certificate_client import FakeCA, Fault, away
from tests.fakes.clock import FakeClock

LOCAL = TrustDomain("cluster.local")
UID = frozenset({Selector("unix", "uid:1")})
HOUR, MINUTE, SECOND = timedelta(hours=1), timedelta(minutes=1), timedelta(seconds=1)


def ident(name: object) -> SpiffeID:
    return SpiffeID(LOCAL, f"/{name}")


class Node:
    """A node with workloads, under the hand of the test: `pass_time` moves both its clocks."""

    def __init__(self, clock: FakeClock, *names: object) -> None:
        self.clock, self.seconds = clock, 0.0
        self.ca = FakeCA(clock)
        self.cache = WorkloadCache(BundleSet((self.ca.root.bundle(),)))
        self.metrics = Metrics()
        self.is_ready = True
        draws = itertools.cycle([0.1, 0.5, 0.9])
        self.renewals = Renewals(
            self.cache,
            self.ca.proven(),
            ready=lambda: self.is_ready,
            clock=clock,
            metrics=self.metrics,
            draw=lambda: next(draws),
            backoff=lambda longest: Backoff(longest=longest, monotonic=lambda: self.seconds, draw=lambda: 0.5),
        )
        self.register(*names)

    def register(self, *names: object, ttl: timedelta | None = None) -> None:
        self.cache.register(tuple(Registration(ident(name), UID, ttl) for name in names))

    async def settle(self) -> timedelta:
        """Steps until there is nothing to do at once."""
        for _ in range(1000):
            if (wait := await self.renewals.step()) > timedelta():
                return wait
        pytest.fail("the renewals do not come to rest")

    async def pass_time(self, duration: timedelta) -> None:
        """Live through a stretch of time as the loop would."""
        end = self.seconds + duration.total_seconds()
        while True:
            wait = min((await self.settle()).total_seconds(), end - self.seconds)
            if wait <= 0:
                return
            self.seconds += wait
            self.clock.advance(timedelta(seconds=wait))

    def serial(self, name: object) -> int:
        return self.cache.snapshot.held[ident(name)].svid.leaf.serial_number

    def value(self, name: str, **labels: str) -> float:
        registry: CollectorRegistry = self.metrics.registry
        return registry.get_sample_value(f"istio_auth_agent_{name}", labels) or 0.0


async def test_each_workload_gets_an_svid_with_a_key_of_its_own(clock: FakeClock) -> None:
    node = Node(clock, "a", "b")
    await node.settle()
    held = node.cache.snapshot.held
    assert {spiffe_id: each.svid.id for spiffe_id, each in held.items()} == {ident(n): ident(n) for n in "ab"}
    assert held[ident("a")].svid.key_pem() != held[ident("b")].svid.key_pem()
    assert node.ca.calls == ["sign"]
    assert node.value("svids_issued_total", kind="workload") == 2


async def test_an_svid_is_renewed_around_half_of_its_life_with_a_new_key(clock: FakeClock) -> None:
    node = Node(clock, "a")
    await node.settle()
    first = node.cache.snapshot.held[ident("a")].svid
    await node.pass_time(HOUR / 2 * 0.85)
    assert node.cache.snapshot.held[ident("a")].svid is first
    await node.pass_time(HOUR / 2 * 0.3)
    second = node.cache.snapshot.held[ident("a")].svid
    assert second is not first
    assert second.key_pem() != first.key_pem()
    assert node.ca.signed == 2


async def test_a_validity_that_begins_long_before_a_short_life_is_no_reason_to_renew_at_once(clock: FakeClock) -> None:
    node = Node(clock)
    node.ca.set_back = timedelta(minutes=2)  # as istiod has it, and as is left when a signer is about to end
    node.register("a", ttl=MINUTE)
    await node.pass_time(10 * MINUTE)
    assert 18 <= node.ca.signed <= 24
    assert node.value("svids_lapsed_total", kind="workload") == 0


async def test_svids_made_together_are_not_renewed_together(clock: FakeClock) -> None:
    node = Node(clock, *range(30))
    await node.settle()
    assert len({each.due for each in node.cache.snapshot.held.values()}) == 3  # as many as there are draws


async def test_many_workloads_go_in_batches(clock: FakeClock) -> None:
    node = Node(clock, *range(MAX_BATCH * 2 + 1))
    await node.settle()
    assert [len(batch) for batch in node.ca.batches] == [MAX_BATCH, MAX_BATCH, 1]
    assert len(node.cache.snapshot.held) == MAX_BATCH * 2 + 1


async def test_nothing_is_asked_before_we_can_prove_ourselves(clock: FakeClock) -> None:
    node = Node(clock, "a")
    node.is_ready = False
    assert await node.settle() > timedelta()
    assert node.ca.calls == []
    node.is_ready = True
    await node.settle()
    assert node.ca.signed == 1


async def test_a_ca_that_is_away_is_asked_by_one_batch_at_a_time_ever_smaller_and_ever_more_rarely(
    clock: FakeClock,
) -> None:
    node = Node(clock, *range(200))
    node.ca.failure = away()
    await node.pass_time(10 * MINUTE)
    assert [len(batch) for batch in node.ca.batches[:7]] == [50, 25, 12, 6, 3, 1, 1]
    assert 10 <= len(node.ca.batches) <= 30
    node.ca.failure = None
    node.ca.batches.clear()
    await node.pass_time(MINUTE)
    assert [len(batch) for batch in node.ca.batches] == [1, 2, 4, 8, 16, 32, 50, 50, 37]
    assert len(node.cache.snapshot.held) == 200


async def test_a_ca_too_slow_for_a_batch_is_asked_for_as_much_as_it_can(clock: FakeClock) -> None:
    node = Node(clock, *range(200))
    node.ca.most = 7
    await node.pass_time(5 * MINUTE)
    assert len(node.cache.snapshot.held) == 200


async def test_an_entry_that_makes_the_ca_fail_holds_up_no_other(clock: FakeClock) -> None:
    node = Node(clock, *range(60))
    node.ca.poison = {ident(0)}
    await node.pass_time(5 * MINUTE)
    assert node.cache.snapshot.wanted.keys() - node.cache.snapshot.held.keys() == {ident(0)}
    refusal = node.renewals.refusal(node.cache.snapshot.wanted[ident(0)])
    assert refusal is not None
    assert "a defect" in refusal
    node.ca.batches.clear()
    await node.pass_time(20 * MINUTE)
    assert len(node.ca.batches) < 100
    node.ca.poison.clear()
    await node.pass_time(6 * MINUTE)
    assert ident(0) in node.cache.snapshot.held


async def test_a_ca_that_is_away_is_not_taken_for_one_that_an_entry_makes_fail(clock: FakeClock) -> None:
    node = Node(clock, *range(3))
    node.ca.failure = away()
    await node.pass_time(10 * MINUTE)
    assert not any(map(node.renewals.refusal, node.cache.snapshot.wanted.values()))
    node.ca.failure = None
    await node.pass_time(MINUTE)
    assert len(node.cache.snapshot.held) == 3


async def test_a_ca_away_for_longer_than_half_a_life_costs_nobody_a_certificate(clock: FakeClock) -> None:
    node = Node(clock, "a", "b")
    await node.settle()
    before = {name: node.serial(name) for name in "ab"}
    node.ca.failure = away()
    await node.pass_time(HOUR * 0.95)
    assert {name: node.serial(name) for name in "ab"} == before
    assert node.value("svids_lapsed_total", kind="workload") == 0
    node.ca.failure = None
    await node.pass_time(HOUR * 0.04)
    assert node.serial("a") != before["a"]


async def test_what_has_really_ended_is_served_no_more_and_comes_back_with_the_ca(clock: FakeClock) -> None:
    node = Node(clock, "a")
    await node.settle()
    node.ca.failure = away()
    await node.pass_time(HOUR + MINUTE)
    assert not node.cache.snapshot.held
    assert node.value("svids_lapsed_total", kind="workload") == 1
    node.ca.failure = None
    await node.pass_time(2 * MINUTE)
    assert set(node.cache.snapshot.held) == {ident("a")}


async def test_a_retry_hint_is_honoured(clock: FakeClock) -> None:
    node = Node(clock, "a")
    node.ca.failure = Exhausted("too much", retry_after=20 * SECOND)
    await node.pass_time(19 * SECOND)
    assert node.ca.signed == 1
    await node.pass_time(8 * SECOND)
    assert node.ca.signed == 2


async def test_one_refused_entry_holds_up_no_other_and_waits_for_itself(clock: FakeClock) -> None:
    node = Node(clock, "a", "b")
    node.ca.refusals[ident("a")] = NotAuthorized("no")
    await node.pass_time(10 * MINUTE)
    assert set(node.cache.snapshot.held) == {ident("b")}
    asked = sum(ident("a") in batch for batch in node.ca.batches)
    assert 5 <= asked <= 15
    assert node.value("svid_failures_total", kind="workload", reason="NOT_AUTHORIZED") == asked
    del node.ca.refusals[ident("a")]
    await node.pass_time(5 * MINUTE)
    assert set(node.cache.snapshot.held) == {ident("a"), ident("b")}


async def test_a_refusal_that_is_over_is_forgotten(clock: FakeClock) -> None:
    node = Node(clock, "a")
    node.ca.refusals[ident("a")] = NotAuthorized("no")
    await node.pass_time(HOUR)
    del node.ca.refusals[ident("a")]
    await node.pass_time(10 * MINUTE)
    node.ca.refusals[ident("a")] = NotAuthorized("no")
    node.ca.batches.clear()
    await node.pass_time(HOUR * 0.6)
    assert node.ca.signed >= 7  # the waits are short again; with the old ones it would be two or three


@pytest.mark.parametrize("fault", [fault for fault in Fault if fault is not Fault.NONE], ids=lambda each: each.value)
async def test_a_bad_answer_is_counted_and_never_replaces_a_good_svid(clock: FakeClock, fault: Fault) -> None:
    node = Node(clock, "a")
    await node.settle()
    good = node.serial("a")
    node.ca.fault = fault
    await node.pass_time(HOUR * 0.9)
    assert node.serial("a") == good
    bad = [sample.value for metric in node.metrics.bad_answers.collect() for sample in metric.samples]
    assert max(bad) > 1
    node.ca.fault = Fault.NONE
    await node.pass_time(HOUR * 0.09)
    assert node.serial("a") != good


async def test_another_lifetime_calls_for_another_svid_at_once(clock: FakeClock) -> None:
    node = Node(clock, "a")
    await node.settle()
    node.register("a", ttl=10 * MINUTE)
    assert node.cache.snapshot.held  # the old one serves until the new one is there
    await node.settle()
    svid = node.cache.snapshot.held[ident("a")].svid
    assert svid.not_after - clock.now() == 10 * MINUTE
    await node.settle()
    assert node.ca.signed == 2


async def test_a_clock_set_back_a_little_changes_nothing(clock: FakeClock) -> None:
    node = Node(clock, "a")
    await node.settle()
    clock.advance(-MINUTE)
    await node.pass_time(MINUTE)
    assert node.ca.signed == 1


async def test_a_clock_set_back_before_the_validity_with_the_cas_is_healed_by_one_renewal(clock: FakeClock) -> None:
    node = Node(clock, "a", "b")
    await node.settle()
    clock.advance(-timedelta(minutes=30))
    await node.pass_time(10 * MINUTE)
    assert node.ca.signed == 4
    assert all(each.svid.not_before <= clock.now() for each in node.cache.snapshot.held.values())


async def test_a_clock_set_back_on_this_machine_alone_makes_no_storm_and_loses_nothing(clock: FakeClock) -> None:
    node = Node(clock, "a")
    await node.settle()
    good = node.serial("a")
    node.ca.clock = FakeClock(clock.now())
    clock.advance(-timedelta(days=1))
    await node.pass_time(HOUR)
    assert node.serial("a") == good
    assert node.ca.signed < 40


async def test_a_clock_that_is_ahead_of_the_cas_makes_no_storm(clock: FakeClock) -> None:
    node = Node(clock, "a")
    node.ca.clock = FakeClock(clock.now() - timedelta(minutes=40))  # what is new is past its half already
    await node.pass_time(5 * MINUTE)
    assert node.ca.signed == 1
    assert node.cache.snapshot.held


async def test_a_clock_set_forward_a_day_and_back_loses_nothing_even_while_the_ca_is_away(clock: FakeClock) -> None:
    node = Node(clock, "a", "b", "gone")
    await node.settle()
    good = {name: node.serial(name) for name in "ab"}
    node.ca.failure = away()
    clock.advance(timedelta(days=1))
    await node.pass_time(MINUTE)
    assert not node.cache.snapshot.held
    node.register("a", "b")
    clock.advance(-timedelta(days=1))
    await node.pass_time(MINUTE)
    assert {name: node.serial(name) for name in "ab"} == good
    assert len(node.cache.snapshot.held) == 2
    assert node.renewals.trouble is None
    node.ca.failure = None
    await node.pass_time(HOUR * 0.6)
    assert node.serial("a") != good["a"]


async def test_a_clock_set_forward_on_this_machine_alone_refuses_what_it_takes_for_expired_and_heals(
    clock: FakeClock,
) -> None:
    node = Node(clock, "a")
    await node.settle()
    good = node.serial("a")
    node.ca.clock = FakeClock(clock.now())
    clock.advance(timedelta(days=1))
    await node.pass_time(5 * MINUTE)
    assert not node.cache.snapshot.held
    assert node.value("bad_answers_total", fault="expired") > 0
    clock.advance(-timedelta(days=1))
    await node.pass_time(MINUTE)
    assert node.serial("a") == good
    assert node.renewals.refusal(node.cache.snapshot.wanted[ident("a")]) is None


async def test_what_ended_is_not_served_again_in_the_place_of_what_came_since(clock: FakeClock) -> None:
    node = Node(clock, "a")
    await node.settle()
    clock.advance(2 * HOUR)
    await node.settle()
    fresh = node.serial("a")
    clock.advance(-90 * MINUTE)  # now the first would live, and the second not yet
    node.ca.failure = away()
    await node.pass_time(MINUTE)
    assert node.serial("a") == fresh


async def test_trouble_is_told_with_its_beginning_and_is_over_when_nobody_needs_the_ca(clock: FakeClock) -> None:
    node = Node(clock, "a")
    node.ca.failure = away()
    await node.pass_time(10 * MINUTE)
    assert "connection refused" in str(node.renewals.trouble)
    assert node.renewals.failing_for == 10 * MINUTE
    node.register()
    await node.settle()
    assert not node.renewals.trouble
    assert node.renewals.failing_for is None


async def test_a_refusal_is_told_with_its_beginning(clock: FakeClock) -> None:
    node = Node(clock, "a")
    node.ca.refusals[ident("a")] = NotAuthorized("no")
    await node.pass_time(10 * MINUTE)
    want = node.cache.snapshot.wanted[ident("a")]
    assert node.renewals.refused_for(want) == 10 * MINUTE
    node.ca.refusals.clear()
    await node.pass_time(6 * MINUTE)
    assert node.renewals.refused_for(want) is None


async def test_a_clock_set_forward_is_noticed_within_half_a_minute(clock: FakeClock) -> None:
    node = Node(clock, "a")
    assert await node.settle() <= LONGEST_WAIT
    clock.advance(HOUR * 0.7)
    await node.settle()
    assert node.ca.signed == 2


async def test_no_wait_is_negative_or_longer_than_it_takes_to_notice_a_jump(clock: FakeClock) -> None:
    node = Node(clock, "a")
    await node.settle()
    for jump in (HOUR, -10 * HOUR, timedelta(days=400), timedelta(days=-900)):
        clock.advance(jump)
        wait = plan(node.cache.snapshot, frozenset(), clock.now()).wait
        assert wait > timedelta()
        assert timedelta() < await node.settle() <= LONGEST_WAIT


async def test_the_forecast_names_the_first_end(clock: FakeClock) -> None:
    node = Node(clock)
    assert first_to_lapse(node.cache.snapshot) is None
    node.register("a")
    await node.settle()
    node.register("a", "b")
    clock.advance(10 * MINUTE)
    await node.settle()
    assert first_to_lapse(node.cache.snapshot) == node.cache.snapshot.held[ident("a")].svid.not_after


async def test_the_most_urgent_come_first(clock: FakeClock) -> None:
    node = Node(clock, *range(MAX_BATCH))
    await node.settle()
    node.ca.failure = away()
    node.register(*range(MAX_BATCH), "new")
    await node.pass_time(HOUR * 0.6)
    assert node.ca.batches[-1][0] == ident("new")
