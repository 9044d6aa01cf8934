"""The source that follows a Workload API, through all that happens to an agent and its socket."""

from __future__ import annotations

import asyncio
import gc
import socket
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest

from istio_auth import WorkloadAPISource, any_id, client_context, server_context
from istio_auth.errors import ConfigurationError, MissingError, NotAuthorized, NotReady, VerificationError
from istio_auth.proto import workload_api_pb2 as messages
from istio_auth.sources import following
from istio_auth.svid import X509SVID
from istio_auth.x509_source import X509Context
from tests.fakes import workload_api as fake
from tests.fakes.authority import FakeAuthority
from tests.fakes.clock import FakeClock
from tests.fakes.tls import meet, talk
from tests.fakes.waiting import until
from tests.fakes.workload_api import FakeWorkloadAPI
from tests.vectors.x509_svid import FEDERATED, LOCAL

PATIENCE = timedelta(seconds=60)
WEB, DB = LOCAL.svid(), LOCAL.svid("/ns/default/sa/db")
BUNDLE = LOCAL.bundle()
GOOD = fake.x509(fake.entry(WEB, BUNDLE))
RENEWED = fake.x509(fake.entry(LOCAL.svid(), BUNDLE))


@pytest.fixture
def source(api: FakeWorkloadAPI) -> Iterator[WorkloadAPISource]:
    """One that holds the first SVID."""
    api.x509.say(GOOD)
    with WorkloadAPISource(api.address) as found:
        found.wait_until_ready(PATIENCE)
        yield found


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def our_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name == "istio-auth Workload API"]


class TestBeginning:
    async def test_an_agent_that_is_there_is_asked_at_once(self, api: FakeWorkloadAPI) -> None:
        api.x509.say(fake.x509(fake.entry(WEB, BUNDLE), fake.entry(DB, BUNDLE), federated=[FEDERATED.bundle()]))
        async with WorkloadAPISource(api.address) as source:
            await source.ready(PATIENCE)
            assert [svid.id for svid in source.x509_context().svids] == [WEB.id, DB.id]
            assert source.bundle(LOCAL.trust_domain).x509_authorities == BUNDLE.x509_authorities
            assert source.bundle(FEDERATED.trust_domain).x509_authorities == FEDERATED.bundle().x509_authorities

    def test_a_socket_that_appears_later_is_waited_for(self, tmp_path: Path) -> None:
        api = FakeWorkloadAPI(tmp_path / "later" / "agent.sock")
        api.x509.say(GOOD)
        with WorkloadAPISource(api.address) as source:
            wait_for(lambda: "No such file" in str(source.status().trouble))
            with pytest.raises(NotReady, match=r"later/agent\.sock.*No such file.*see whether the agent runs"):
                source.wait_until_ready(timedelta(milliseconds=20))
            api.path.parent.mkdir()
            with api:
                source.wait_until_ready(PATIENCE)
                assert source.svid().id == WEB.id

    def test_wa_13_a_workload_without_identity_is_told_why_and_gets_one_later(self, api: FakeWorkloadAPI) -> None:
        api.x509.refuse(grpc.StatusCode.PERMISSION_DENIED)
        with WorkloadAPISource(api.address) as source:
            wait_for(lambda: "no identity issued" in str(source.status().trouble))
            with pytest.raises(NotReady, match=r"no identity issued.*this workload is registered"):
                source.wait_until_ready(timedelta(milliseconds=20))
            with pytest.raises(NotAuthorized, match="knows no identity of this workload"):
                source.x509_context()
            api.x509.say(GOOD)
            source.wait_until_ready(PATIENCE)

    def test_we_07_the_environment_says_where_the_agent_is(
        self, api: FakeWorkloadAPI, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("SPIFFE_ENDPOINT_SOCKET", raising=False)
        with pytest.raises(ConfigurationError, match="SPIFFE_ENDPOINT_SOCKET"):
            WorkloadAPISource()
        monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", api.address)
        api.x509.say(GOOD)
        with WorkloadAPISource() as source:
            source.wait_until_ready(PATIENCE)

    def test_a_wrong_address_is_refused_and_leaves_nothing_behind(self) -> None:
        with pytest.raises(ConfigurationError, match="without a host name"):
            WorkloadAPISource("unix://run/agent.sock")
        assert our_threads() == []

    async def test_an_agent_that_refuses_the_call_itself_is_not_called_again(self, api: FakeWorkloadAPI) -> None:
        api.x509.refuse(grpc.StatusCode.INVALID_ARGUMENT, "security header missing")
        async with WorkloadAPISource(api.address) as source:
            await until(lambda: not our_threads())
            assert api.x509.calls == 1
            assert "security header missing; it is not asked again: " in str(source.status().trouble)


class TestPicking:
    @pytest.fixture
    def two(self, api: FakeWorkloadAPI) -> FakeWorkloadAPI:
        api.x509.say(fake.x509(fake.entry(WEB, BUNDLE, hint="internal"), fake.entry(DB, BUNDLE, hint="external")))
        return api

    def test_wa_12_the_first_svid_is_the_default(self, two: FakeWorkloadAPI) -> None:
        with WorkloadAPISource(two.address) as source:
            source.wait_until_ready(PATIENCE)
            assert source.svid().id == WEB.id
            assert source.svid("external").id == DB.id

    @pytest.mark.parametrize("pick", ["external", lambda svids: svids[-1]], ids=["by hint", "by function"])
    def test_another_one_can_be_picked(
        self, two: FakeWorkloadAPI, pick: str | Callable[[Sequence[X509SVID]], X509SVID]
    ) -> None:
        with WorkloadAPISource(two.address, pick=pick) as source:
            source.wait_until_ready(PATIENCE)
            assert source.svid().id == DB.id
            assert [svid.id for svid in source.x509_context().svids] == [DB.id, WEB.id]

    async def test_wa_05_a_picked_svid_that_does_not_come_any_more_is_not_replaced_by_another(
        self, two: FakeWorkloadAPI
    ) -> None:
        async with WorkloadAPISource(two.address, pick="external") as source:
            await source.ready(PATIENCE)
            two.x509.say(fake.x509(fake.entry(WEB, BUNDLE, hint="internal")))
            await until(lambda: not source.status().ready)
            with pytest.raises(MissingError, match="has the hint 'external'; there are 'internal'"):
                source.x509_context()

    @pytest.mark.parametrize(
        ("pick", "why"),
        [(lambda svids: svids[5], "failed: IndexError"), (lambda _svids: WEB, "none of those that it was given")],
    )
    async def test_a_function_that_picks_nothing_is_told(
        self, two: FakeWorkloadAPI, pick: Callable[[Sequence[X509SVID]], X509SVID], why: str
    ) -> None:
        async with WorkloadAPISource(two.address, pick=pick) as source:
            await until(lambda: why in str(source.status().trouble))
            with pytest.raises(MissingError, match=why):
                source.x509_context()


class TestFollowing:
    async def test_wa_06_each_change_is_followed_and_told(
        self, api: FakeWorkloadAPI, source: WorkloadAPISource
    ) -> None:
        seen: list[X509Context] = []

        async def follow() -> None:
            async for context in source.updates():
                seen.append(context)  # noqa: PERF401  # one by one is the point

        following = asyncio.create_task(follow())
        await until(lambda: len(seen) == 1)
        api.x509.say(RENEWED)
        await until(lambda: len(seen) == 2)
        assert seen[1].svid.leaf != seen[0].svid.leaf
        assert source.x509_context() is seen[1]
        source.close()
        await following

    async def test_wa_05_a_federated_bundle_that_is_redacted_is_not_trusted_any_more(
        self, api: FakeWorkloadAPI, source: WorkloadAPISource
    ) -> None:
        api.x509.say(fake.x509(fake.entry(WEB, BUNDLE), federated=[FEDERATED.bundle()]))
        await until(lambda: len(source.x509_context().bundles.bundles) == 2)
        assert source.bundle(FEDERATED.trust_domain)
        api.x509.say(GOOD)
        await until(lambda: len(source.x509_context().bundles.bundles) == 1)
        with pytest.raises(VerificationError, match="not among the trusted domains"):
            source.bundle(FEDERATED.trust_domain)

    async def test_the_same_answer_again_is_no_change(self, api: FakeWorkloadAPI, source: WorkloadAPISource) -> None:
        held = source.x509_context()
        for calls in (1, 2, 3):
            api.x509.end()
            await until(lambda calls=calls: api.x509.calls > calls)  # type: ignore[misc]  # a default binds the loop's value
        api.x509.say(RENEWED)
        await until(lambda: source.x509_context() is not held)
        assert source.status().updates == 2

    async def test_contexts_follow_it_both_ways(self, api: FakeWorkloadAPI, source: WorkloadAPISource) -> None:
        server, client = server_context(source, any_id()), client_context(source, any_id())
        talk(*meet(client, server))
        other = FakeAuthority("cluster.local")
        api.x509.say(fake.x509(fake.entry(other.svid(), other.bundle())))
        await until(lambda: source.status().updates == 2)
        ends = meet(client, server)
        talk(*ends)
        assert ends[0].tls.getpeercert(binary_form=True) is not None


class TestFederation:
    async def test_a_partners_bundle_that_can_not_be_read_does_not_keep_our_own_svid_from_being_renewed(
        self, api: FakeWorkloadAPI, source: WorkloadAPISource
    ) -> None:
        held = source.x509_context()
        bad = {str(FEDERATED.trust_domain.id): b"junk"}
        api.x509.say(messages.X509SVIDResponse(svids=RENEWED.svids, federated_bundles=bad))
        await until(lambda: source.x509_context() is not held)
        await until(lambda: source.status().trouble)
        assert "'spiffe://partner.test' is left out" in str(source.status().trouble)
        assert source.status().ready
        with pytest.raises(VerificationError, match="not among the trusted domains"):
            source.bundle(FEDERATED.trust_domain)
        api.x509.say(fake.x509(*RENEWED.svids, federated=[FEDERATED.bundle()]))
        await until(lambda: source.status().trouble is None)
        assert source.bundle(FEDERATED.trust_domain)


class TestRedaction:
    async def test_wa_14_a_refusal_in_mid_stream_takes_everything_away_at_once(
        self, api: FakeWorkloadAPI, source: WorkloadAPISource
    ) -> None:
        told = threading.Event()
        source.subscribe(told.set)
        server, client = server_context(source, any_id()), client_context(source, any_id())
        talk(*meet(client, server))
        api.x509.refuse(grpc.StatusCode.PERMISSION_DENIED)
        await until(told.is_set)
        with pytest.raises(NotAuthorized, match=r"knows no identity of this workload.*no identity issued"):
            source.x509_context()
        for end in meet(client, server)[:1]:
            assert isinstance(end.refusal, NotAuthorized)
        assert not source.status().ready
        api.x509.say(GOOD)
        await source.ready(PATIENCE)
        talk(*meet(client, server))
        assert source.status().trouble is None

    async def test_wa_14_a_refusal_after_an_outage_takes_everything_away_as_well(
        self, api: FakeWorkloadAPI, source: WorkloadAPISource
    ) -> None:
        api.stop()
        api.x509.refuse(grpc.StatusCode.PERMISSION_DENIED)
        api.start()
        await until(lambda: not source.status().ready)
        with pytest.raises(NotAuthorized):
            source.svid()


class TestOutages:
    @pytest.mark.parametrize(
        "code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.RESOURCE_EXHAUSTED]
    )
    async def test_any_other_error_takes_nothing_away(
        self, api: FakeWorkloadAPI, source: WorkloadAPISource, code: grpc.StatusCode
    ) -> None:
        held = source.x509_context()
        api.x509.refuse(code, "not my day")
        await until(lambda: source.status().trouble)
        assert "not my day" in str(source.status().trouble)
        assert source.x509_context() is held
        api.x509.say(RENEWED)
        await until(lambda: source.x509_context() is not held)
        assert source.status().trouble is None

    @pytest.mark.parametrize(
        "answer",
        [
            b"\xff\xff\xff",
            RENEWED.SerializeToString()[:-30],
            b"",
            fake.x509(fake.entry(WEB, BUNDLE, x509_svid_key=fake.entry(DB, BUNDLE).x509_svid_key)).SerializeToString(),
            messages.X509SVIDResponse(svids=RENEWED.svids, crl=[bytes(5 << 20)]).SerializeToString(),
        ],
        ids=["garbage", "half", "empty", "wrong key", "too large"],
    )
    async def test_wa_09_an_answer_that_can_not_be_taken_changes_nothing_and_is_told(
        self, api: FakeWorkloadAPI, source: WorkloadAPISource, answer: bytes
    ) -> None:
        held = source.x509_context()
        api.x509.say(answer)
        await until(lambda: source.status().trouble)
        assert source.x509_context() is held
        api.x509.say(RENEWED)
        await until(lambda: source.x509_context() is not held)
        assert source.status().trouble is None

    async def test_wa_07_an_agent_that_starts_anew_at_the_same_path_is_found_again(
        self, api: FakeWorkloadAPI, source: WorkloadAPISource
    ) -> None:
        held = source.x509_context()
        for renewed in (RENEWED, GOOD):
            api.stop()
            await until(lambda: source.status().trouble)
            assert source.x509_context() is held
            api.x509.say(renewed)
            api.start()
            await until(lambda held=held: source.x509_context() is not held)  # type: ignore[misc]  # a default binds the loop's value
            held = source.x509_context()

    async def test_an_agent_lost_for_an_hour_leaves_the_last_svid_until_its_end_and_then_a_clear_refusal(
        self, api: FakeWorkloadAPI, caplog: pytest.LogCaptureFixture
    ) -> None:
        clock = FakeClock(datetime.now(UTC))
        short = LOCAL.svid(not_after=clock.now() + timedelta(minutes=50))
        api.x509.say(fake.x509(fake.entry(short, BUNDLE)))
        async with WorkloadAPISource(api.address, clock=clock) as source:
            await source.ready(PATIENCE)
            api.stop()
            await until(lambda: source.status().trouble)
            for _ in range(4):
                clock.advance(timedelta(minutes=10))
                assert source.svid().leaf == short.leaf
            await until(lambda: "no renewal has come" in caplog.text)  # the source's own thread may say it
            clock.advance(timedelta(minutes=20))
            with pytest.raises(NotReady, match=r"has ended at .* and was not renewed .*see whether the agent runs"):
                source.x509_context()
            api.x509.say(fake.x509(fake.entry(LOCAL.svid(not_after=clock.now() + timedelta(hours=1)), BUNDLE)))
            api.start()
            await source.ready(PATIENCE)
            assert source.status().trouble is None

    async def test_an_agent_that_stalls_is_told_and_called_anew(self, api: FakeWorkloadAPI) -> None:
        async with WorkloadAPISource(api.address, timeout=timedelta(milliseconds=200)) as source:
            await until(lambda: api.x509.calls >= 2)
            assert "was not answered within 0.2 seconds" in str(source.status().trouble)
            api.x509.say(GOOD)
            await source.ready(PATIENCE)


class TestFaultsOfOurOwn:
    async def test_what_goes_wrong_in_this_process_does_not_end_the_following(
        self, api: FakeWorkloadAPI, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        take, faults = WorkloadAPISource._take, ["a fault"]

        def faulty(source: WorkloadAPISource, context: X509Context) -> None:
            if faults:
                raise RuntimeError(faults.pop())
            take(source, context)

        monkeypatch.setattr(WorkloadAPISource, "_take", faulty)
        monkeypatch.setattr(following, "_PAUSE", timedelta(milliseconds=50))
        api.x509.say(GOOD)
        async with WorkloadAPISource(api.address) as source:
            await source.ready(PATIENCE)
            assert source.svid().id == WEB.id
        assert "following the Workload API failed" in caplog.text

    async def test_a_subscriber_that_fails_or_closes_the_source_harms_nobody(
        self, api: FakeWorkloadAPI, source: WorkloadAPISource, caplog: pytest.LogCaptureFixture
    ) -> None:
        told = threading.Event()

        def failing() -> None:
            raise RuntimeError("a subscriber's fault")

        source.subscribe(failing)
        source.subscribe(told.set)
        api.x509.say(RENEWED)
        await until(told.is_set)
        assert "a subscriber's fault" in caplog.text
        source.subscribe(source.close)
        api.x509.say(GOOD)
        await until(lambda: not our_threads())
        with pytest.raises(NotReady, match="is closed"):
            source.svid()


class TestEnd:
    async def test_closing_ends_the_stream_and_the_thread_and_gives_everything_back(self, api: FakeWorkloadAPI) -> None:
        api.x509.say(GOOD)
        before = descriptors()
        for _ in range(3):
            source = WorkloadAPISource(api.address)
            await source.ready(PATIENCE)
            assert our_threads()
            await asyncio.to_thread(source.close)
            source.close()
            assert our_threads() == []
            with pytest.raises(NotReady, match="is closed"):
                source.x509_context()
        await until(lambda: api.x509.open == 0)
        await until(lambda: descriptors() <= before)

    def test_closing_is_quick_while_the_agent_is_away(self, tmp_path: Path) -> None:
        source = WorkloadAPISource(f"unix://{tmp_path}/nobody.sock")
        with pytest.raises(NotReady):
            source.wait_until_ready(timedelta(seconds=1))
        source.close()
        assert our_threads() == []

    async def test_a_source_that_nobody_holds_any_more_ends_its_thread(self, api: FakeWorkloadAPI) -> None:
        api.x509.say(GOOD)
        source = WorkloadAPISource(api.address)
        await source.ready(PATIENCE)
        gone = weakref.ref(source)
        del source
        gc.collect()
        await until(lambda: gone() is None)  # its thread holds it while it hands it an answer
        await until(lambda: not our_threads())

    def test_a_program_that_closes_nothing_ends_well(self, api: FakeWorkloadAPI) -> None:
        api.x509.say(GOOD)
        program = (
            "from datetime import timedelta\n"
            "from istio_auth import WorkloadAPISource\n"
            f"source = WorkloadAPISource({api.address!r})\n"
            "source.wait_until_ready(timedelta(seconds=60))\n"
            "print(source.svid().id)\n"
        )
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout, done.stderr) == (0, f"{WEB.id}\n", "")

    async def test_a_thousand_updates_leak_nothing(self, api: FakeWorkloadAPI, source: WorkloadAPISource) -> None:
        answers = [fake.x509(fake.entry(LOCAL.svid(), BUNDLE)) for _ in range(4)]

        async def updates(count: int) -> None:
            for _ in range(count):
                held = source.x509_context()
                answers.append(answers.pop(0))
                api.x509.say(answers[0])
                await until(lambda held=held: source.x509_context() is not held)  # type: ignore[misc]  # a default binds the loop's value

        await updates(50)
        gc.collect()
        tracemalloc.start()
        before = descriptors(), threading.active_count(), tracemalloc.get_traced_memory()[0]
        await updates(950)
        gc.collect()
        after = descriptors(), threading.active_count(), tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()
        assert after[:2] == before[:2]
        assert after[2] - before[2] < 200_000  # bytes: the key of one SVID alone, kept each time, would be more
        assert source.status().updates == 1001

    async def test_agents_that_come_and_go_leave_nothing_behind(
        self, api: FakeWorkloadAPI, source: WorkloadAPISource
    ) -> None:
        before = _sockets()
        for _ in range(4):
            api.stop()
            await until(lambda: source.status().trouble)
            api.start()
            await until(lambda: not source.status().trouble)
        await until(lambda: _sockets() == before)  # the old connection goes on a thread of gRPC's
        assert our_threads() == ["istio-auth Workload API"]


def _sockets() -> int:
    count = 0
    for descriptor in Path("/proc/self/fd").iterdir():
        try:
            count += str(descriptor.readlink()).startswith("socket:")
        except OSError:
            continue
    return count


def test_a_socket_that_is_no_agents_is_told_and_nothing_is_left_open(tmp_path: Path) -> None:
    path = tmp_path / "plain.sock"
    with socket.socket(socket.AF_UNIX) as plain:
        plain.bind(str(path))
        before = _sockets()
        with WorkloadAPISource(f"unix://{path}") as source:
            wait_for(lambda: "refused" in str(source.status().trouble))
            with pytest.raises(NotReady, match=r"plain\.sock"):
                source.wait_until_ready(timedelta(milliseconds=20))
        wait_for(lambda: _sockets() <= before)


def wait_for(condition: Callable[[], object]) -> None:
    """As `until`, without a loop, which has sockets of its own."""
    over = time.monotonic() + PATIENCE.total_seconds()
    while not condition():
        assert time.monotonic() < over
        time.sleep(0.005)
