"""Secret discovery for callers that are known."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import ClassVar

import pytest
import structlog
from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse

from istio_auth.bundle import BundleSet
from istio_auth.door import TLSCaller, UnixCaller
from istio_auth.errors import MalformedError, NotAuthenticated
from istio_auth.registration import Registration, Selector
from istio_auth.rpc.method import Call
from istio_auth.spiffe_id import SpiffeID
from node_agent.attest.socket import SocketAttestor
from node_agent.attest.unix import UnixAttestor
from node_agent.metrics import Metrics
from node_agent.sds.secrets import SECRET_TYPE, Resource, Roots
from node_agent.sds.service import SecretDiscovery
from node_agent.sync import Consumers
from node_agent.workloads.cache import Held, WorkloadCache
from node_agent.workloads.registrations import Want
from tests.fakes.authority import FakeAuthority
from tests.fakes.waiting import until


class SameProcess:
    """A process handle under the hand of the test."""

    def __init__(self, *, alive: bool = True) -> None:
        self.is_alive = alive

    def alive(self) -> bool:
        return self.is_alive


def caller(uid: int = 1, *, alive: bool = True) -> UnixCaller:
    return UnixCaller(uid, 7, 42, "main", SameProcess(alive=alive))  # type: ignore[arg-type]  # only `alive` is asked


class Node:
    def __init__(self, authority: FakeAuthority) -> None:
        self.authority = authority
        self.cache = WorkloadCache(BundleSet((authority.bundle(),)))
        self.metrics = Metrics()
        attestors = (UnixAttestor(), SocketAttestor())
        self.discovery = SecretDiscovery(self.cache, authority.trust_domain, attestors=attestors, metrics=self.metrics)
        self.register("/web", "unix:uid:1", "socket:main")

    def register(self, path: str, *selectors: str) -> None:
        spiffe_id = SpiffeID(self.authority.trust_domain, path)
        self.cache.register((Registration(spiffe_id, frozenset(map(Selector.parse, selectors))),))

    def issue(self, path: str = "/web") -> None:
        svid = self.authority.svid(path)
        self.cache.put([Held(svid, Want(svid.id), svid.not_after)])

    def connect(self, who: UnixCaller | TLSCaller) -> Stream:
        return Stream(self, who)

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"istio_auth_agent_{name}", labels) or 0.0


class Stream:
    """A client of the service, without gRPC in between."""

    made: ClassVar[list[Stream]] = []

    def __init__(self, node: Node, who: UnixCaller | TLSCaller) -> None:
        self._requests: asyncio.Queue[DiscoveryRequest | None] = asyncio.Queue()
        method = node.discovery.service().methods["StreamSecrets"]
        assert method.stream_function is not None
        answers = method.stream_function(self._sent(), Call(who, {}, "id", None))
        self._answers = answers
        self._next: asyncio.Future[DiscoveryResponse] | None = None
        self.last = DiscoveryResponse()
        self.made.append(self)

    async def _sent(self) -> AsyncIterator[DiscoveryRequest]:
        while (request := await self._requests.get()) is not None:
            yield request

    def send(self, *names: str, refusal: str = "", type_url: str = SECRET_TYPE) -> None:
        request = DiscoveryRequest(resource_names=names, type_url=type_url, response_nonce=self.last.nonce)
        request.version_info = self.last.version_info
        request.node.id = "sidecar-1"
        if refusal:
            request.error_detail.message = refusal
        self._requests.put_nowait(request)

    def end(self) -> None:
        self._requests.put_nowait(None)

    def _reading(self) -> asyncio.Future[DiscoveryResponse]:
        if self._next is None:
            self._next = asyncio.ensure_future(anext(self._answers))
        return self._next

    async def close(self) -> None:
        if self._next is not None:
            self._next.cancel()
            await asyncio.wait([self._next])
        await self._answers.aclose()

    async def receive(self) -> DiscoveryResponse:
        async with asyncio.timeout(60):
            self.last = await self._reading()
        self._next = None
        return self.last

    async def silent(self) -> bool:
        """Whether nothing comes while the service has had every chance to say something."""
        reading = self._reading()
        for _ in range(20):
            await asyncio.sleep(0)
        return not reading.done()


@pytest.fixture
async def node(authority: FakeAuthority) -> AsyncIterator[Node]:
    yield Node(authority)
    while Stream.made:  # what a stream leaves behind must not be told in the log of a later test
        await Stream.made.pop().close()


async def test_a_registered_caller_gets_its_secrets_and_every_change_of_them(node: Node) -> None:
    node.issue()
    stream = node.connect(caller())
    stream.send("default", "ROOTCA")
    assert len((await stream.receive()).resources) == 2
    first = stream.last.version_info
    stream.send("default", "ROOTCA")
    assert await stream.silent()
    node.issue()
    assert (await stream.receive()).version_info != first


async def test_a_change_that_is_anothers_is_no_news(node: Node, authority: FakeAuthority) -> None:
    node.issue()
    stream = node.connect(caller())
    stream.send("default")
    await stream.receive()
    node.cache.trust(BundleSet((authority.bundle(sequence=2),)))
    assert await stream.silent()


async def test_a_caller_that_no_registration_fits_waits_and_the_log_says_why(node: Node) -> None:
    node.issue()
    stream = node.connect(caller(uid=2))
    with structlog.testing.capture_logs() as lines:
        stream.send("default", "ROOTCA")
        assert await stream.silent()
    (told,) = [line for line in lines if line["log_level"] == "warning"]
    assert told["selectors"] == ["socket:main", "unix:gid:7", "unix:uid:2"]
    assert told["nearest"] == "spiffe://cluster.local/web"
    assert told["missing"] == ["unix:uid:1"]
    assert node.value("callers_unknown_total") == 1
    node.register("/web", "unix:uid:2")
    node.issue()
    assert len((await stream.receive()).resources) == 2


async def test_a_caller_without_any_registration_is_told_so_in_the_log(node: Node) -> None:
    node.cache.register(())
    stream = node.connect(caller())
    with structlog.testing.capture_logs() as lines:
        stream.send("default")
        assert await stream.silent()
    assert "missing" not in next(line for line in lines if line["log_level"] == "warning")


async def test_a_caller_whose_registration_goes_gets_nothing_more(node: Node) -> None:
    node.issue()
    stream = node.connect(caller())
    stream.send("default")
    await stream.receive()
    node.register("/other", "unix:uid:2")
    node.issue("/other")
    assert await stream.silent()
    again = node.connect(caller())
    again.send("default")
    assert await again.silent()


async def test_a_process_that_has_ended_is_no_caller(node: Node) -> None:
    node.issue()
    with pytest.raises(NotAuthenticated):
        await node.connect(caller(alive=False)).receive()


async def test_a_caller_over_tls_is_no_workload(node: Node) -> None:
    with pytest.raises(NotAuthenticated):
        await node.connect(TLSCaller((), None, "[::1]:1")).receive()


async def test_a_request_for_another_type_ends_the_stream(node: Node) -> None:
    node.issue()
    stream = node.connect(caller())
    stream.send("default", type_url="type.googleapis.com/envoy.config.listener.v3.Listener")
    with pytest.raises(MalformedError):
        await stream.receive()
    assert len(node.discovery.clients()) == 0


async def test_a_refusal_is_logged_in_the_clients_words_and_counted_for_each_secret(node: Node) -> None:
    node.issue()
    stream = node.connect(caller())
    stream.send("default", "ROOTCA")
    await stream.receive()
    with structlog.testing.capture_logs() as lines:
        stream.send("default", "ROOTCA", refusal="Failed to load private key")
        assert await stream.silent()
    (told,) = [line for line in lines if line["log_level"] == "error"]
    assert "Failed to load private key" in told["reason"]
    assert told["secrets"] == ["default", "ROOTCA"]
    assert told["node"] == "sidecar-1"
    assert node.value("sds_nacks_total", resource="default") == 1
    assert node.value("sds_nacks_total", resource="ROOTCA") == 1
    assert node.value("sds_requests_total", kind="nack") == 1
    (client,) = node.discovery.clients()
    assert (client.refusals, list(client.refused)) == (1, ["default", "ROOTCA"])


async def test_refusals_are_counted_by_what_was_asked_for_and_never_by_ten_thousand_names(node: Node) -> None:
    node.cache.register(
        tuple(
            Registration(SpiffeID(node.authority.trust_domain, f"/w/{number}"), frozenset({Selector("unix", "uid:1")}))
            for number in range(30)
        )
    )
    for number in range(30):
        node.issue(f"/w/{number}")
    own = str(node.authority.trust_domain.id)
    names = [f"{own}/w/{number}" for number in range(30)]
    stream = node.connect(caller())
    stream.send(*names, own)
    await stream.receive()
    stream.send(*names, own, refusal="no")
    assert await stream.silent()
    assert node.value("sds_nacks_total", resource="workload") == 30
    assert node.value("sds_nacks_total", resource="trust domain") == 1
    labels = {
        sample.labels["resource"]
        for metric in node.metrics.registry.collect()
        for sample in metric.samples
        if sample.name.endswith("sds_nacks_total")
    }
    assert labels == {"workload", "trust domain"}


async def test_what_a_client_refuses_again_and_again_is_one_refusal(node: Node) -> None:
    node.issue()
    stream = node.connect(caller())
    stream.send("default")
    await stream.receive()
    with structlog.testing.capture_logs() as lines:
        for _ in range(20):
            stream.send("default", refusal="no")
        assert await stream.silent()
        await until(lambda: node.value("sds_requests_total", kind="again") == 19)
    assert len([line for line in lines if line["log_level"] == "error"]) == 1
    assert node.value("sds_nacks_total", resource="default") == 1


async def test_a_line_of_the_log_is_no_longer_than_we_want_whatever_a_client_asks_for(node: Node) -> None:
    stream = node.connect(caller())
    with structlog.testing.capture_logs() as lines:
        stream.send(*(f"{number}-{'x' * 2000}" for number in range(100)))
        assert await stream.silent()
    (told,) = [line for line in lines if "waits" in line["event"]]
    assert len(str(told)) < 4000


async def test_a_thousand_streams_share_one_copy_of_each_secret(
    node: Node, authority: FakeAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[str] = []
    serialise = Resource.of

    def counted(secret: Secret, roots: Roots | None = None) -> Resource:
        made.append(secret.name)
        return serialise(secret, roots)

    monkeypatch.setattr(Resource, "of", counted)
    node.issue()
    streams = [node.connect(caller()) for _ in range(200)]
    for stream in streams:
        stream.send("default", "ROOTCA")
        await stream.receive()
    assert sorted(made) == ["ROOTCA", "default"]
    node.issue()
    for stream in streams:
        await stream.receive()
    assert sorted(made) == ["ROOTCA", "default", "default"]


async def test_no_line_of_the_log_holds_a_key(node: Node) -> None:
    node.issue()
    stream = node.connect(caller())
    with structlog.testing.capture_logs() as lines:
        stream.send("default", "other")
        await stream.receive()
        stream.send("default", refusal="no")
        assert await stream.silent()
    assert lines
    assert "PRIVATE" not in repr(lines)


async def test_who_has_taken_the_bundle_can_be_counted_and_named(node: Node, authority: FakeAuthority) -> None:
    told: list[Consumers] = []
    node.discovery.subscribe(lambda: told.append(node.discovery.consumers()))
    node.issue()
    taken, lagging, other = (node.connect(caller()) for _ in range(3))
    for stream, names in ((taken, ["ROOTCA"]), (lagging, ["ROOTCA"]), (other, ["default"])):
        stream.send(*names)
        await stream.receive()
    taken.send("ROOTCA")
    assert await taken.silent()
    assert told[-1] == Consumers(2, 1, ("spiffe://cluster.local/web (sidecar-1)",))
    assert (len(node.discovery.clients()), node.discovery.waiting()) == (3, 0)
    node.cache.trust(BundleSet((FakeAuthority().bundle(sequence=2),)))
    assert node.discovery.consumers().current == 0
    await lagging.receive()
    lagging.end()
    with pytest.raises(StopAsyncIteration):
        await anext(lagging._answers)
    await until(lambda: len(node.discovery.clients()) == 2)
    assert told[-1].total == 1
