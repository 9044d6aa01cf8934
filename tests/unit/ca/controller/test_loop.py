"""The controller around the plan: whatever the cluster does meanwhile, each service account ends up with its secret."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from structlog.testing import capture_logs

from ca.audit import Audit
from ca.authority.authority import Authority, open_authority
from ca.authority.state import IssuerState
from ca.controller.action import Action, Kind, Reason
from ca.controller.loop import Pace, SecretController
from ca.controller.material import CHAIN, KEY, ROOT
from ca.controller.namespaces import OVERRIDE_LABEL, NamespaceRules
from ca.controller.pairs import METHOD, PairMaker
from ca.controller.report import Reports
from ca.controller.settings import Settings
from ca.controller.snapshot import AccountKey
from ca.controller.tally import ControllerMetrics, Tally
from ca.issuer import Issuer, ReservedNames
from ca.metrics import Counts
from ca.profile import IssuanceProfile
from istio_auth.errors import ConflictError, NotReady
from istio_auth.keys import new_private_key
from istio_auth.pem import read_certificates
from istio_auth.spiffe_id import TrustDomain
from istio_auth.svid import X509SVID
from istio_auth.verify import verify_chain
from tests.fakes.authority import FakeAuthority
from tests.fakes.authority_store import MemoryAuthorityStore
from tests.fakes.background import in_background
from tests.fakes.clock import FakeClock
from tests.fakes.issuance_log import MemoryIssuanceLog
from tests.fakes.secret_cluster import MemoryEvents, SecretCluster
from tests.fakes.waiting import until

LOCAL = TrustDomain("cluster.local")
SETTINGS = Settings("istio-ca", NamespaceRules("istio-system"))
PACE = Pace(workers=4, look=timedelta(milliseconds=5))
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@dataclass
class Bench:
    """A controller with everything around it."""

    clock: FakeClock
    store: MemoryAuthorityStore
    authority: Authority
    issuer: Issuer
    log: MemoryIssuanceLog
    cluster: SecretCluster
    counts: Counts = field(default_factory=Counts)
    events: MemoryEvents = field(default_factory=MemoryEvents)
    tally: Tally = field(default_factory=Tally)
    leading: bool = True

    def controller(self, pace: Pace = PACE, *, settings: Settings = SETTINGS) -> SecretController:
        pairs = PairMaker(self.issuer, self.authority, Audit(self.counts), self.tally, ttl=settings.ttl)
        return SecretController(
            self.cluster,
            self.cluster,
            self.authority,
            pairs=pairs,
            reports=Reports(self.events),
            settings=settings,
            clock=self.clock,
            leading=lambda: self.leading,
            tally=self.tally,
            pace=pace,
        )

    @asynccontextmanager
    async def running(self, pace: Pace = PACE, *, settings: Settings = SETTINGS) -> AsyncIterator[SecretController]:
        """A controller at work, which has done all there was to do."""
        controller = self.controller(pace, settings=settings)
        task = asyncio.create_task(controller.run())
        try:
            await quiet(controller)
            yield controller
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    def svid(self, key: AccountKey) -> X509SVID:
        """What is in a secret, which must be of use to its workload at this moment."""
        data = self.cluster.data[key]
        svid = X509SVID.parse(data[CHAIN], data[KEY])
        assert data[ROOT] == self.authority.root_pem()
        assert verify_chain(svid.chain, self.authority.bundle, self.clock.now()) == svid.id
        assert str(svid.id) == f"spiffe://cluster.local/ns/{key[0]}/sa/{key[1]}"
        return svid

    def kinds(self) -> list[Kind]:
        return [action.kind for action in self.cluster.writes]

    @contextmanager
    def others(self, key: AccountKey) -> Iterator[None]:
        """What happens to all others while this one can not be written."""

        def refuse(action: Action) -> None:
            if action.subject.service_account == key[1]:
                raise NotReady("etcdserver: no space")

        self.cluster.before = refuse
        yield
        self.cluster.before = lambda _: None


async def quiet(controller: SecretController) -> None:
    """Return when there is nothing left to do."""
    await until(lambda: controller.idle)


@pytest.fixture
async def bench(clock: FakeClock) -> AsyncIterator[Bench]:
    store, log = MemoryAuthorityStore(), MemoryIssuanceLog()
    authority = open_authority(store, LOCAL, clock)
    issuer = Issuer(authority, IssuanceProfile(), log, clock, ReservedNames.of(LOCAL), threads=1)
    cluster = SecretCluster(lambda: authority.bundle)
    cluster.add_namespace()
    yield Bench(clock, store, authority, issuer, log, cluster)
    await issuer.close()


async def test_every_service_account_gets_a_secret_of_its_own_and_the_certificate_is_on_record(bench: Bench) -> None:
    keys = [bench.cluster.add_account(name) for name in ("web", "api", "default")]
    async with bench.running():
        late = bench.cluster.add_account("late")
        await until(lambda: late in bench.cluster.secrets)
    for key in (*keys, late):
        bench.svid(key)
        assert bench.cluster.secrets[key].owner_uid == bench.cluster.accounts[key].uid
    assert len({bench.cluster.data[key][KEY] for key in bench.cluster.data}) == 4
    assert {str(record.grant.spiffe_id) for record in bench.log.records} == {
        str(bench.svid(k).id) for k in (*keys, late)
    }
    assert bench.counts.issued[METHOD] == 4
    assert bench.log.records[0].attested.details["reason"] == Reason.ABSENT.value


async def test_a_restart_with_everything_in_place_writes_and_signs_nothing(bench: Bench) -> None:
    for number in range(20):
        bench.cluster.add_account(f"web-{number}")
    async with bench.running():
        pass
    bench.cluster.writes.clear()
    signed = len(bench.log.records)
    async with bench.running() as controller:
        controller._look_at_everything()
        await quiet(controller)
    assert bench.cluster.writes == []
    assert len(bench.log.records) == signed


async def test_a_deleted_secret_comes_back_and_is_counted_as_that(bench: Bench) -> None:
    key = bench.cluster.add_account()
    async with bench.running():
        bench.cluster.remove(key)
        await until(lambda: key in bench.cluster.secrets)
        bench.svid(key)
        assert bench.tally.remade == 1


async def test_the_secret_of_a_deleted_service_account_goes(bench: Bench) -> None:
    key, other = bench.cluster.add_account(), bench.cluster.add_account("other")
    async with bench.running():
        bench.cluster.remove_account(key)
        await until(lambda: key not in bench.cluster.secrets)
        assert other in bench.cluster.secrets


async def test_a_service_account_that_was_made_anew_gets_a_new_key_under_its_new_uid(bench: Bench) -> None:
    key = bench.cluster.add_account(uid="first")
    async with bench.running():
        first = bench.cluster.data[key][KEY]
        bench.cluster.add_account(uid="second")
        await until(lambda: bench.cluster.secrets[key].owner_uid == "second")
        assert bench.cluster.data[key][KEY] != first
        bench.svid(key)


async def test_a_damaged_secret_is_repaired_and_the_others_are_let_be(bench: Bench) -> None:
    key, other = bench.cluster.add_account(), bench.cluster.add_account("other")
    async with bench.running() as controller:
        bench.cluster.put(key, bench.cluster.data[key] | {KEY: bench.cluster.data[other][KEY]})
        await quiet(controller)
        bench.svid(key)
        assert bench.kinds() == [Kind.CREATE, Kind.CREATE, Kind.REPAIR]


async def test_a_secret_of_another_type_is_looked_at_once_told_of_and_never_touched(bench: Bench) -> None:
    key = bench.cluster.add_account()
    bench.cluster.put(key, {"password": b"x"}, type="Opaque")
    before = bench.cluster.secrets[key]
    async with bench.running() as controller:
        for _ in range(5):
            controller._changed(key)
            await quiet(controller)
        assert bench.cluster.secrets[key] == before
        assert bench.cluster.looks == 1
        assert bench.events.reasons(key) == ["ForeignSecret"]
        assert bench.cluster.writes == []


async def test_when_a_secret_of_another_type_is_gone_ours_takes_its_place_at_the_next_look_at_everything(
    bench: Bench,
) -> None:
    key = bench.cluster.add_account()
    bench.cluster.put(key, {}, type="Opaque")
    async with bench.running(replace(PACE, resync=timedelta(milliseconds=20))) as controller:
        signed = len(bench.log.records)
        looks = bench.cluster.looks
        await until(lambda: bench.cluster.looks > looks + 2)
        assert len(bench.log.records) == signed  # a look costs no certificate
        del bench.cluster.secrets[key]
        await until(lambda: bench.cluster.writes)
        await quiet(controller)
        bench.svid(key)


async def test_one_that_can_not_be_written_holds_nobody_up_and_is_tried_again_ever_more_seldom(bench: Bench) -> None:
    bad = bench.cluster.add_account("bad")
    good = [bench.cluster.add_account(f"good-{number}") for number in range(10)]
    with bench.others(bad):
        async with bench.running() as controller:
            for key in good:
                bench.svid(key)
            assert bench.events.reasons(bad) == ["SecretFailed"]
            for attempts in range(2, 6):
                bench.clock.advance(timedelta(minutes=5))
                await until(lambda: bench.tally.failed.total() == attempts)  # noqa: B023  # waited for at once
            assert bench.events.reasons(bad) == ["SecretFailed"]  # no news
            failing = [standing.failing for standing in controller.present().standing()]
            assert sorted(failing) == [False] * 10 + [True]
            bench.cluster.before = lambda _: None
            bench.clock.advance(timedelta(minutes=5))
            await until(lambda: bad in bench.cluster.secrets)
            await quiet(controller)
            assert not any(standing.failing for standing in controller.present().standing())


async def test_one_that_can_not_be_written_costs_no_certificate_at_each_attempt(bench: Bench) -> None:
    bad = bench.cluster.add_account("bad")
    with bench.others(bad):
        async with bench.running():
            for attempts in range(2, 6):
                bench.clock.advance(timedelta(minutes=5))
                await until(lambda: bench.tally.failed.total() == attempts)  # noqa: B023  # waited for at once
            assert len(bench.log.records) == 1
            bench.clock.advance(12 * HOUR)
            await until(lambda: bench.tally.failed.total() == 6)
            assert len(bench.log.records) == 2  # what is written has most of its life before it
            bench.cluster.before = lambda _: None
            bench.clock.advance(timedelta(minutes=5))
            await until(lambda: bad in bench.cluster.secrets)
    bench.svid(bad)
    assert len(bench.log.records) == 2


async def test_a_pair_that_was_not_written_is_not_used_under_another_bundle_or_for_another_account(
    bench: Bench,
) -> None:
    bad = bench.cluster.add_account("bad")
    with bench.others(bad):
        async with bench.running():
            root = FakeAuthority(now=bench.clock.now()).certificate
            changed = replace(bench.authority.state, retired=(IssuerState(root, root),), sequence=2)
            bench.store.content = changed.to_json()
            await asyncio.to_thread(bench.authority.reload)
            await until(lambda: len(bench.log.records) == 2)
            bench.cluster.remove_account(bad)
            bench.cluster.add_account("bad")
            await until(lambda: len(bench.log.records) == 3)
            bench.cluster.before = lambda _: None
            bench.clock.advance(timedelta(minutes=5))
            await until(lambda: bad in bench.cluster.secrets)
    bench.svid(bad)
    assert len({record.certificate for record in bench.log.records}) == 3


async def test_the_wait_after_a_failure_doubles_and_what_the_api_server_asks_for_counts(bench: Bench) -> None:
    key = bench.cluster.add_account()
    asked_for = [timedelta()]

    def refuse(_: Action) -> None:
        raise NotReady("too many requests", retry_after=asked_for[0])

    bench.cluster.before = refuse
    async with bench.running(replace(PACE, first_retry=MINUTE, longest_retry=HOUR)) as controller:
        waits = []
        for attempt in range(2, 7):
            when = controller._agenda.next()
            assert when is not None
            waits.append(when - bench.clock.now())
            bench.clock.time = when
            if attempt == 6:
                asked_for[0] = 5 * HOUR
            await until(lambda: bench.tally.failed.total() == attempt)  # noqa: B023  # waited for at once
            await quiet(controller)
        for exponent, wait in enumerate(waits):
            assert MINUTE / 2 <= wait / 2**exponent <= MINUTE
        when = controller._agenda.next()
        assert when == bench.clock.now() + 5 * HOUR
        assert key not in bench.cluster.secrets


async def test_one_that_hangs_holds_up_no_more_than_itself(bench: Bench) -> None:
    slow = bench.cluster.add_account("slow")
    bench.cluster.gates[slow] = asyncio.Event()
    others = [bench.cluster.add_account(f"web-{number}") for number in range(10)]
    controller = bench.controller(replace(PACE, workers=2))
    task = asyncio.create_task(controller.run())
    await until(lambda: all(key in bench.cluster.secrets for key in others))
    for _ in range(3):
        controller._changed(slow)  # nobody else takes it up
    await asyncio.sleep(0.01)
    assert bench.cluster.at_once == 1
    bench.cluster.gates[slow].set()
    await quiet(controller)
    assert bench.kinds().count(Kind.CREATE) == 11
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_no_more_are_written_at_once_than_there_are_workers(bench: Bench) -> None:
    go_on = asyncio.Event()
    for number in range(30):
        bench.cluster.gates[bench.cluster.add_account(f"web-{number}")] = go_on
    controller = bench.controller(replace(PACE, workers=3))
    async with in_background(controller.run()):
        await until(lambda: bench.cluster.at_once == 3)
        go_on.set()
        await quiet(controller)
    assert (bench.cluster.most_at_once, len(bench.cluster.writes)) == (3, 30)


async def test_a_fault_of_our_own_in_one_is_an_event_and_the_others_go_on(bench: Bench) -> None:
    bad, good = bench.cluster.add_account("bad"), bench.cluster.add_account("good")

    def trip(action: Action) -> None:
        if action.subject.service_account == "bad":
            raise ZeroDivisionError

    bench.cluster.before = trip
    with capture_logs() as logs:
        async with bench.running():
            bench.svid(good)
            assert bench.events.reasons(bad) == ["SecretFailed"]
    assert any(line.get("exc_info") for line in logs)


async def test_a_secret_that_somebody_changed_between_plan_and_write_is_looked_at_and_planned_anew(
    bench: Bench,
) -> None:
    key = bench.cluster.add_account()
    async with bench.running() as controller:

        def interfere(_: Action) -> None:
            bench.cluster.before = lambda _: None
            bench.cluster.late = True  # and nobody tells us
            bench.cluster.put(key, {}, account_annotation="other")

        bench.cluster.before = interfere
        bench.cluster.put(key, {})
        await quiet(controller)
        bench.svid(key)
        assert bench.cluster.looks == 1
        bench.cluster.show()
        await quiet(controller)
        assert bench.kinds() == [Kind.CREATE, Kind.REPAIR]


async def test_a_write_whose_answer_was_lost_is_found_and_not_done_again(bench: Bench) -> None:
    key = bench.cluster.add_account()

    def lose(_: Action) -> None:
        bench.cluster.after = lambda _: None
        raise NotReady("connection reset")

    bench.cluster.after = lose
    bench.cluster.late = True
    async with bench.running() as controller:
        bench.clock.advance(MINUTE)  # it is tried again, while the watch is behind
        await until(lambda: bench.cluster.looks)
        await quiet(controller)
        assert bench.kinds() == [Kind.CREATE]
        assert not any(standing.failing for standing in controller.present().standing())
        bench.cluster.show()
        await quiet(controller)
        assert bench.kinds() == [Kind.CREATE]
        bench.svid(key)


async def test_what_was_written_is_not_written_again_while_the_watch_is_behind(bench: Bench) -> None:
    key = bench.cluster.add_account()
    bench.cluster.late = True
    async with bench.running() as controller:
        for _ in range(5):
            controller._changed(key)
            await quiet(controller)
        assert bench.kinds() == [Kind.CREATE]
        assert len(bench.log.records) == 1
        bench.cluster.show()
        bench.cluster.remove(key)  # and what is shown later counts again
        await until(lambda: len(bench.cluster.writes) == 2)


async def test_one_that_ends_between_signing_and_writing_leaves_the_rest_to_the_next(bench: Bench) -> None:
    keys = [bench.cluster.add_account(f"web-{number}") for number in range(6)]
    bench.cluster.gates = {keys[0]: asyncio.Event(), keys[3]: asyncio.Event()}
    first = asyncio.create_task(bench.controller().run())
    await until(lambda: len(bench.cluster.secrets) == 4 and bench.cluster.at_once == 2)
    first.cancel()
    await asyncio.gather(first, return_exceptions=True)
    assert first.cancelled()
    assert bench.cluster.at_once == 0
    bench.cluster.gates.clear()
    async with bench.running():
        for key in keys:
            bench.svid(key)
    assert bench.kinds() == [Kind.CREATE] * 6


async def test_a_certificate_is_renewed_when_it_is_due_and_not_before(bench: Bench) -> None:
    keys = [bench.cluster.add_account(f"web-{number}") for number in range(20)]
    async with bench.running() as controller:
        before = {key: bench.svid(key) for key in keys}
        bench.clock.advance(9 * HOUR)
        await asyncio.sleep(0.03)
        await quiet(controller)
        assert bench.kinds() == [Kind.CREATE] * 20
        bench.clock.advance(2 * HOUR)
        await until(lambda: Kind.RENEW in bench.kinds())
        await quiet(controller)
        assert bench.kinds().count(Kind.RENEW) < 20  # they do not all come at once
        bench.clock.advance(2 * HOUR)
        await until(lambda: bench.kinds().count(Kind.RENEW) == 20)
        await quiet(controller)
        for key, old in before.items():
            assert bench.svid(key).not_after > old.not_after
            assert bench.svid(key).leaf.public_key() != old.leaf.public_key()
        assert bench.events.told == []


async def test_another_bundle_goes_into_every_secret_and_keys_and_chains_stay(bench: Bench) -> None:
    keys = [bench.cluster.add_account(f"web-{number}") for number in range(5)]
    async with bench.running() as controller:
        before = {key: bench.svid(key) for key in keys}
        root = FakeAuthority(now=bench.clock.now()).certificate
        state = bench.authority.state
        bench.store.content = replace(state, retired=(IssuerState(root, root),), sequence=2).to_json()
        await asyncio.to_thread(bench.authority.reload)
        await until(lambda: bench.kinds().count(Kind.UPDATE) == 5)
        await quiet(controller)
        assert {key: bench.svid(key) for key in keys} == before
        assert len(read_certificates(bench.cluster.data[keys[0]][ROOT])) == 2
        assert bench.kinds() == [Kind.CREATE] * 5 + [Kind.UPDATE] * 5
        assert controller.degraded() is None


async def test_one_that_is_changed_back_three_times_in_a_minute_is_left_alone_for_a_while(bench: Bench) -> None:
    key, other = bench.cluster.add_account(), bench.cluster.add_account("other")
    async with bench.running() as controller:
        for _ in range(3):
            assert controller.degraded() is None
            bench.clock.advance(timedelta(seconds=15))
            bench.cluster.put(key, {})
            await quiet(controller)
        assert bench.events.reasons(key) == ["SecretContended"]
        assert controller.degraded() is not None
        written = len(bench.cluster.writes)
        assert written == 4  # two made, one of them repaired twice
        bench.cluster.put(key, {})
        bench.cluster.put(other, {})
        await quiet(controller)
        assert [action.subject.service_account for action in bench.cluster.writes[written:]] == ["other"]
        bench.clock.advance(11 * MINUTE)
        await until(lambda: bench.cluster.data[key])
        await quiet(controller)
        bench.svid(key)
        assert controller.degraded() is None


async def test_one_that_leads_no_more_writes_nothing_and_tells_nobody(bench: Bench) -> None:
    key = bench.cluster.add_account()
    bench.leading = False
    async with bench.running() as controller:
        assert bench.cluster.writes == []
        assert bench.events.told == []
        bench.leading = True
        bench.clock.advance(MINUTE)
        await until(lambda: key in bench.cluster.secrets)
        await quiet(controller)
        bench.svid(key)


async def test_one_change_of_somebodys_is_one_however_often_it_takes_to_undo_it(bench: Bench) -> None:
    key = bench.cluster.add_account()
    async with bench.running() as controller:
        with bench.others(key):
            bench.cluster.put(key, {})
            for attempts in range(1, 6):
                await until(lambda: bench.tally.failed.total() >= attempts)  # noqa: B023  # waited for at once
                bench.clock.advance(timedelta(seconds=10))
        bench.clock.advance(MINUTE)
        await until(lambda: bench.cluster.data[key])
        await quiet(controller)
        bench.svid(key)
        assert bench.events.reasons(key) == ["SecretFailed"]
        with bench.others(key):  # and what fails again after all was well is told again
            bench.cluster.put(key, {})
            await quiet(controller)
        assert bench.events.reasons(key) == ["SecretFailed"] * 2


async def test_a_fight_over_a_secret_is_not_held_against_the_next_account_of_that_name(bench: Bench) -> None:
    key = bench.cluster.add_account()
    async with bench.running() as controller:
        for _ in range(3):
            bench.cluster.put(key, {})
            await quiet(controller)
        assert controller.degraded() is not None
        bench.cluster.add_account()  # deleted and made anew before anybody could look
        await quiet(controller)
        bench.svid(key)
        assert controller.degraded() is None


async def test_changes_of_our_own_and_those_that_are_far_apart_are_no_fight(bench: Bench) -> None:
    key = bench.cluster.add_account()
    async with bench.running() as controller:
        for number in range(6):
            bench.clock.advance(timedelta(seconds=31))
            bench.cluster.put(key, {})  # somebody damages it, now and then
            await quiet(controller)
            root = FakeAuthority(now=bench.clock.now()).certificate
            state = bench.authority.state
            bench.store.content = replace(
                state, retired=(IssuerState(root, root),), sequence=state.sequence + 1
            ).to_json()
            await asyncio.to_thread(bench.authority.reload)  # and we want it otherwise all the time
            await until(lambda: bench.kinds().count(Kind.UPDATE) == number + 1)  # noqa: B023  # waited for at once
            await quiet(controller)
        assert bench.events.told == []
        bench.svid(key)


async def test_whether_it_leads_is_asked_after_signing_right_before_the_write(bench: Bench) -> None:
    bench.cluster.add_account()
    controller = bench.controller()
    bench.log.gate.clear()
    task = asyncio.create_task(controller.run())
    assert await asyncio.to_thread(bench.log.arrived.acquire, timeout=30)
    bench.leading = False  # while the certificate was made
    bench.log.gate.set()
    await quiet(controller)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert len(bench.log.records) == 1
    assert bench.cluster.writes == []


async def test_a_namespace_that_becomes_managed_is_filled_at_once_and_one_that_ends_is_left_alone(bench: Bench) -> None:
    bench.cluster.add_namespace("shop", labels={OVERRIDE_LABEL: "false"})
    bench.cluster.add_namespace("old", terminating=True)
    keys = [bench.cluster.add_account(f"web-{number}", "shop") for number in range(3)]
    bench.cluster.add_account("web", "old")
    async with bench.running() as controller:
        assert bench.cluster.writes == []
        assert controller.present().standing() == []
        bench.cluster.add_namespace("shop", labels={OVERRIDE_LABEL: "true"})
        await quiet(controller)
        for key in keys:
            bench.svid(key)
        assert len(bench.cluster.writes) == 3


async def test_what_nobody_told_of_is_found_by_the_next_look_at_everything(bench: Bench) -> None:
    async with bench.running(replace(PACE, resync=timedelta(milliseconds=20))):
        other = SecretCluster(lambda: bench.authority.bundle)
        key = other.add_account("silent")
        bench.cluster.accounts[key] = other.accounts[key]
        await until(lambda: key in bench.cluster.secrets)


async def test_nothing_is_decided_before_everything_was_listed(bench: Bench) -> None:
    bench.cluster.synced.clear()
    bench.cluster.add_account()
    task = asyncio.create_task(bench.controller().run())
    await asyncio.sleep(0.02)
    assert bench.cluster.writes == []
    bench.cluster.synced.set()
    await until(lambda: bench.cluster.writes)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_certificate_that_can_not_be_signed_is_counted_told_of_and_made_later(bench: Bench) -> None:
    key = bench.cluster.add_account()
    bench.log.broken = True
    async with bench.running():
        assert bench.tally.sign_errors == 1
        assert bench.events.reasons(key) == ["SecretFailed"]
        assert bench.cluster.writes == []
        bench.log.broken = False
        bench.clock.advance(MINUTE)
        await until(lambda: key in bench.cluster.secrets)


async def test_a_key_of_another_kind_is_made_on_a_thread_and_one_that_can_not_be_made_is_counted(bench: Bench) -> None:
    key = bench.cluster.add_account()
    made: list[Any] = []

    def new_key() -> Any:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        if not made:
            made.append(None)
            raise OSError("the device is away")
        made.append(new_private_key())
        return made[-1]

    pairs = PairMaker(bench.issuer, bench.authority, Audit(bench.counts), bench.tally, ttl=DAY, new_key=new_key)
    async with bench.running() as controller:
        controller._pairs = pairs
        bench.cluster.remove(key)
        await until(lambda: bench.tally.key_errors == 1)
        bench.clock.advance(MINUTE)
        await until(lambda: key in bench.cluster.secrets)
        assert bench.svid(key).leaf.public_key() == made[-1].public_key()


async def test_the_metrics_tell_what_stands_and_what_was_done_by_our_names_and_citadels(bench: Bench) -> None:
    web, api = bench.cluster.add_account("web"), bench.cluster.add_account("api")
    foreign, bad = bench.cluster.add_account("foreign"), bench.cluster.add_account("bad")
    bench.cluster.put(foreign, {}, type="Opaque")
    with bench.others(bad):
        async with bench.running() as controller:
            bench.cluster.remove(web)
            bench.cluster.remove_account(api)
            await quiet(controller)
            bench.clock.advance(MINUTE)
            bench.cluster.add_account("younger")
            await quiet(controller)
            bench.clock.advance(-MINUTE)
            registry = CollectorRegistry()
            ControllerMetrics(registry, bench.tally, controller.present(), bench.clock)

            def value(name: str, **labels: str) -> float | None:
                return registry.get_sample_value(name, labels)

            assert value("istio_auth_ca_secrets_managed") == 4
            assert value("istio_auth_ca_secrets_failing") == 1
            assert value("istio_auth_ca_secrets_due") == 0
            assert value("istio_auth_ca_secrets_waiting") == 0
            assert value("istio_auth_ca_secret_concerns", concern="foreign") == 1
            assert value("istio_auth_ca_secrets_written_total", kind="create", reason="absent") == 4
            assert (
                value("istio_auth_ca_secret_failures_total", kind="create", reason="not_ready")
                == bench.tally.failed.total()
                > 0
            )
            assert value("istio_auth_ca_secret_shortest_remaining_seconds") == DAY.total_seconds()
            bench.clock.advance(HOUR)
            assert value("istio_auth_ca_secret_shortest_remaining_seconds") == (DAY - HOUR).total_seconds()
            assert value("citadel_secret_controller_svc_acc_created_cert_count") == 3
            assert value("citadel_secret_controller_secret_deleted_cert_count") == 1
            assert value("citadel_secret_controller_svc_acc_deleted_cert_count") == 1
            assert value("citadel_secret_controller_csr_sign_err_count") == 0
    assert value("istio_auth_ca_secrets_managed") == 0  # whoever does not run looks after nothing
    assert value("istio_auth_ca_secret_shortest_remaining_seconds") is None


async def test_one_that_never_becomes_what_it_shall_be_is_given_up_for_a_while(bench: Bench) -> None:
    key = bench.cluster.add_account()

    def always_first(_: Action) -> None:
        raise ConflictError("somebody was first")

    bench.cluster.before = always_first
    async with bench.running():
        assert bench.cluster.looks == 5
        assert bench.events.reasons(key) == ["SecretFailed"]
