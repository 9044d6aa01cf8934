"""Sync: an agent is sent what it lacks, then every change; and its word is kept."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from datetime import timedelta
from typing import ClassVar

import pytest

from ca.agents.folder import AgentFolder
from ca.service.sync_book import MAX_STREAMS
from istio_auth.door import TLSCaller
from istio_auth.errors import Code, IstioAuthError
from istio_auth.pem import write_der
from istio_auth.proto import node_pb2
from tests.fakes.authority import FakeAuthority
from tests.fakes.standalone import NOBODY, REGISTERED, StandaloneCA, call

SOON = 60.0
DB = """[[registration]]
spiffe_id = "spiffe://cluster.local/ns/default/sa/db"
agents = ["node-1"]
selectors = ["unix:uid:2000", "unix:gid:1"]
hint = "db"
"""


class Stream:
    """The agent's end of a stream."""

    made: ClassVar[list[Stream]] = []

    def __init__(self, ca: StandaloneCA, caller: TLSCaller, *authorization: str) -> None:
        self._up: asyncio.Queue[node_pb2.SyncRequest | None] = asyncio.Queue()
        self._down = ca.sync.stream(self._requests(), call(caller, *authorization))
        self.made.append(self)

    async def _requests(self) -> AsyncIterator[node_pb2.SyncRequest]:
        while (request := await self._up.get()) is not None:
            yield request

    def say(self, request: node_pb2.SyncRequest) -> None:
        self._up.put_nowait(request)

    def end(self) -> None:
        self._up.put_nowait(None)

    async def hear(self) -> node_pb2.SyncResponse:
        async with asyncio.timeout(SOON):
            return await anext(self._down)

    async def fails(self) -> IstioAuthError:
        with pytest.raises(IstioAuthError) as caught:
            await self.hear()
        return caught.value

    async def close(self) -> None:
        await self._down.aclose()


@pytest.fixture(autouse=True)
async def streams_end() -> AsyncIterator[None]:
    """What a stream leaves behind must not be told in the log of a later test."""
    yield
    while Stream.made:
        await Stream.made.pop().close()


async def opened(ca: StandaloneCA, caller: TLSCaller, **said: object) -> tuple[Stream, node_pb2.SyncResponse]:
    stream = Stream(ca, caller)
    stream.say(node_pb2.SyncRequest(**said))  # type: ignore[arg-type]  # the message's fields, by name
    return stream, await stream.hear()


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(SOON):
        while not condition():  # noqa: ASYNC110  # what it waits for tells nobody
            await asyncio.sleep(0.005)


def write(ca: StandaloneCA, text: str) -> None:
    ca.registrations.write_text(text)


async def test_an_agent_that_holds_nothing_is_sent_everything(ca: StandaloneCA) -> None:
    _, response = await opened(ca, await ca.enrolled())
    (bundle,) = response.bundles
    own = ca.platform.authority.bundle
    assert (bundle.trust_domain, bundle.sequence) == ("cluster.local", own.sequence)
    assert list(bundle.x509_authorities) == [write_der(root) for root in own.x509_authorities]
    delta = response.registrations
    assert (delta.from_revision, delta.to_revision) == (0, 1)
    (registration,) = delta.put
    assert registration.spiffe_id == "spiffe://cluster.local/ns/default/sa/web"
    assert list(registration.selectors) == ["unix:uid:1000"]
    assert (registration.ttl_seconds, list(registration.dns_names)) == (3600, ["web.default.svc"])


async def test_an_agent_that_holds_all_of_it_is_sent_only_changes(ca: StandaloneCA) -> None:
    agent = await ca.enrolled()
    first, response = await opened(ca, agent)
    await first.close()
    stream = Stream(ca, agent)
    held = response.registrations
    stream.say(
        node_pb2.SyncRequest(epoch=held.epoch, revision=held.to_revision, bundle_sequence=response.bundles[0].sequence)
    )
    assert await stream.hear() == node_pb2.SyncResponse()  # by which it knows that the CA listens
    hearing = asyncio.create_task(stream.hear())
    await asyncio.sleep(0)
    assert not hearing.done()
    write(ca, REGISTERED + DB)
    await ca.platform.reload_if_changed()
    news = await hearing
    assert not news.bundles
    assert (news.registrations.from_revision, news.registrations.to_revision) == (1, 2)
    assert [put.hint for put in news.registrations.put] == ["db"]
    write(ca, DB)
    await ca.platform.reload_if_changed()
    gone = (await stream.hear()).registrations
    assert (gone.from_revision, gone.to_revision, len(gone.put)) == (2, 3, 0)
    assert list(gone.removed) == [held.put[0].key]


async def test_a_new_bundle_is_sent_at_once(ca: StandaloneCA) -> None:
    stream, first = await opened(ca, await ca.enrolled())
    ca.clock.advance(timedelta(days=365 * 9))
    assert await asyncio.to_thread(ca.platform.authority.renew_if_due, ca.clock.now())
    ca.clock.advance(timedelta(days=-365 * 9))  # the agent's certificate lives
    news = await stream.hear()
    assert news.bundles[0].sequence == first.bundles[0].sequence + 1
    assert len(news.bundles[0].x509_authorities) == 2
    assert not news.HasField("registrations")


async def test_an_agents_word_is_kept_beyond_its_stream(ca: StandaloneCA) -> None:
    stream, response = await opened(ca, await ca.enrolled(), agent_version="1.0")
    book, sequence = ca.platform.sync_book, response.bundles[0].sequence
    assert dict(book.lagging(sequence)) == {"node-1": 1}
    stream.say(
        node_pb2.SyncRequest(
            bundle_sequence=sequence, consumers=5, consumers_current=3, laggards=["a", "b"], agent_version="1.0"
        )
    )
    await until(lambda: book.entries["node-1"].sequence == sequence)
    entry = book.entries["node-1"]
    assert (entry.consumers, entry.consumers_current, entry.laggards, entry.version) == (5, 3, ("a", "b"), "1.0")
    assert dict(book.lagging(sequence)) == {"node-1": 2}
    stream.end()
    with pytest.raises(StopAsyncIteration):
        await stream.hear()
    assert book.entries["node-1"].streams == 0
    assert dict(book.lagging(sequence)) == {"node-1": 2}


async def test_what_an_agent_says_is_bounded(ca: StandaloneCA) -> None:
    _, _ = await opened(
        ca,
        await ca.enrolled(),
        epoch="e" * 5000,
        revision=2**64 - 1,
        consumers=3,
        consumers_current=2**32 - 1,
        laggards=["x" * 1000] * 1000,
        agent_version="v" * 1000,
    )
    entry = ca.platform.sync_book.entries["node-1"]
    assert entry.consumers_current == 3
    assert (len(entry.laggards), len(entry.laggards[0]), len(entry.version)) == (100, 256, 256)


async def test_eviction_by_another_process_ends_the_stream(ca: StandaloneCA) -> None:
    stream, _ = await opened(ca, await ca.enrolled())
    other, _ = await opened(ca, await ca.enrolled("node-2"))
    failing = asyncio.create_task(stream.fails())
    AgentFolder(ca.folder / "agents").evict("node-1", ca.clock.now())
    await ca.platform.reload_if_changed()
    assert (await failing).code is Code.NOT_AUTHORIZED
    assert set(ca.platform.sync_book.entries) == {"node-2"}
    write(ca, REGISTERED.replace("node-1", "node-2") + "\n")  # of another size: two writes may have one time stamp
    await ca.platform.reload_if_changed()
    assert (await other.hear()).registrations.put


async def test_nobody_waits_for_an_agent_that_is_away_and_not_welcome_any_more(ca: StandaloneCA) -> None:
    for name in ("node-1", "node-2"):
        stream, _ = await opened(ca, await ca.enrolled(name))
        await stream.close()
    (ca.folder / "agents" / "node-1.json").unlink()  # as if its node had gone
    await ca.platform.reload_if_changed()
    assert set(ca.platform.sync_book.entries) == {"node-2"}


async def test_the_stream_ends_with_the_certificate(ca: StandaloneCA) -> None:
    stream, _ = await opened(ca, await ca.enrolled())
    ca.clock.advance(timedelta(hours=25))
    write(ca, REGISTERED + DB)
    await ca.platform.reload_if_changed()
    assert (await stream.fails()).code is Code.NOT_READY


async def test_the_stream_outlives_a_root_that_the_agent_sends_along(ca: StandaloneCA) -> None:
    agent = await ca.enrolled()
    ended = FakeAuthority(now=ca.clock.now() - timedelta(days=1000)).certificate
    stream, _ = await opened(ca, replace(agent, chain=(*agent.chain, ended)))
    ca.registrations.write_text(REGISTERED + DB)
    await ca.platform.reload_if_changed()
    assert len((await stream.hear()).registrations.put) == 1
    await stream.close()


async def test_only_an_agent_with_a_certificate_may_sync(ca: StandaloneCA) -> None:
    agent = await ca.enrolled()
    for stream, code in (
        (Stream(ca, NOBODY), Code.NOT_AUTHENTICATED),
        (Stream(ca, NOBODY, f"Bearer {ca.token('node-2')}"), Code.NOT_AUTHORIZED),
        (Stream(ca, await ca.workload(agent)), Code.NOT_AUTHORIZED),
        (Stream(ca, agent, "Bearer x"), Code.NOT_AUTHENTICATED),
    ):
        assert (await stream.fails()).code is code
    await opened(ca, agent)


async def test_an_agent_has_a_bounded_number_of_streams(ca: StandaloneCA) -> None:
    agent = await ca.enrolled()
    streams = [(await opened(ca, agent))[0] for _ in range(MAX_STREAMS)]
    assert (await Stream(ca, agent).fails()).code is Code.EXHAUSTED
    await streams[0].close()
    await opened(ca, agent)


async def test_an_agent_that_says_nothing_is_sent_away(ca: StandaloneCA, monkeypatch: pytest.MonkeyPatch) -> None:
    agent = await ca.enrolled()
    ended = Stream(ca, agent)
    ended.end()
    assert (await ended.fails()).code is Code.MALFORMED
    with monkeypatch.context() as hasty:
        hasty.setattr("ca.service.sync.FIRST_WORD_WITHIN", timedelta(milliseconds=10))
        assert (await Stream(ca, agent).fails()).code is Code.MALFORMED
    await opened(ca, agent)
    assert ca.platform.sync_book.entries["node-1"].streams == 1
