"""What is said to a CA, and what is made of its answers, in each of the two contracts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta

import pytest
from google.protobuf.message import Message

from istio_auth.errors import Exhausted, IstioAuthError, NotAuthorized, NotReady
from istio_auth.keys import new_private_key
from istio_auth.pem import write_certificates, write_der
from istio_auth.proto import istio_ca_pb2, node_pb2
from istio_auth.registration import Registration, Selector
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from node_agent.ca_client.answer import BadAnswer
from node_agent.ca_client.csr import request_for
from node_agent.ca_client.istio_contract import IstioClient
from node_agent.ca_client.node_service import NodeServiceClient
from node_agent.ca_client.port import AnyCA, Metadata, News, NotOffered, Report, Response
from tests.fakes.authority import FakeAuthority

LOCAL = TrustDomain("cluster.local")
WEB, DB = SpiffeID(LOCAL, "/web"), SpiffeID(LOCAL, "/db")
SECONDS = timedelta(seconds=5)


class Wire:
    """A CA's end of the wire: answers each call with what the test says, and keeps what was sent."""

    def __init__(self, answer: Callable[[Message], Message]) -> None:
        self.answer = answer
        self.requests: list[Message] = []
        self.paths: list[str] = []
        self.metadata: list[Metadata] = []

    async def unary(
        self,
        path: str,
        request: Message,
        response_type: type[Response],
        *,
        timeout: timedelta,  # noqa: ASYNC109  # as the port has it
        metadata: Metadata = (),
    ) -> Response:
        assert timeout == SECONDS
        self.paths.append(path)
        self.requests.append(request)
        self.metadata.append(metadata)
        await asyncio.sleep(0)
        response = self.answer(request)
        assert isinstance(response, response_type)
        return response

    async def stream(
        self, path: str, requests: AsyncIterator[Message], response_type: type[Response]
    ) -> AsyncIterator[Response]:
        self.paths.append(path)
        async for request in requests:
            self.requests.append(request)
            response = self.answer(request)
            assert isinstance(response, response_type)
            yield response


def failing(error: IstioAuthError) -> Callable[[Message], Message]:
    def answer(_: Message) -> Message:
        raise error

    return answer


class TestIstiosContract:
    async def test_takes_leaf_and_intermediates_and_leaves_the_roots_alone(self, authority: FakeAuthority) -> None:
        middle = FakeAuthority(parent=authority)
        chain = middle.chain()
        elements = [*(write_certificates([each]).decode() for each in chain), authority.bundle().to_pem().decode()]
        wire = Wire(lambda _: istio_ca_pb2.IstioCertificateResponse(cert_chain=elements))
        key = new_private_key()
        client = IstioClient(wire, timeout=SECONDS)
        assert await client.sign([request_for(WEB, key, ttl=timedelta(hours=1))]) == [chain]
        sent = wire.requests[0]
        assert isinstance(sent, istio_ca_pb2.IstioCertificateRequest)
        assert sent.csr.startswith("-----BEGIN CERTIFICATE REQUEST-----")
        assert sent.validity_duration == 3600
        assert sent.metadata["ImpersonatedIdentity"] == str(WEB)
        assert wire.metadata == [()]

    async def test_names_nobody_else_for_our_own_certificate_and_carries_the_token(self) -> None:
        wire = Wire(lambda _: istio_ca_pb2.IstioCertificateResponse())
        await IstioClient(wire, timeout=SECONDS).sign([request_for(WEB, new_private_key(), own=True)], token="t")
        sent = wire.requests[0]
        assert isinstance(sent, istio_ca_pb2.IstioCertificateRequest)
        assert not sent.HasField("metadata")
        assert sent.validity_duration == 0
        assert wire.metadata == [(("authorization", "Bearer t"),)]

    @pytest.mark.parametrize("elements", [[], ["one"], ["garbage", "roots"]])
    async def test_refuses_an_answer_that_is_none(self, elements: list[str]) -> None:
        wire = Wire(lambda _: istio_ca_pb2.IstioCertificateResponse(cert_chain=elements))
        (outcome,) = await IstioClient(wire, timeout=SECONDS).sign([request_for(WEB, new_private_key())])
        assert isinstance(outcome, BadAnswer)

    async def test_answers_each_request_for_itself(self, authority: FakeAuthority) -> None:
        elements = [write_certificates(authority.chain()).decode(), authority.bundle().to_pem().decode()]

        def answer(request: Message) -> Message:
            assert isinstance(request, istio_ca_pb2.IstioCertificateRequest)
            if request.metadata["ImpersonatedIdentity"] == str(DB):
                raise NotAuthorized("not yours")
            return istio_ca_pb2.IstioCertificateResponse(cert_chain=elements)

        requests = [request_for(each, new_private_key()) for each in (WEB, DB, WEB)]
        outcomes = await IstioClient(Wire(answer), timeout=SECONDS).sign(requests)
        assert [isinstance(outcome, IstioAuthError) for outcome in outcomes] == [False, True, False]

    @pytest.mark.parametrize("error", [NotReady("away"), Exhausted("too much"), NotOffered("what?")])
    async def test_a_trouble_of_the_cas_own_is_not_blamed_on_a_request(self, error: IstioAuthError) -> None:
        requests = [request_for(each, new_private_key()) for each in (WEB, DB)]
        with pytest.raises(type(error)):
            await IstioClient(Wire(failing(error)), timeout=SECONDS).sign(requests)


def issued(*chain: bytes) -> node_pb2.SignResult:
    return node_pb2.SignResult(issued=node_pb2.Issued(chain=chain))


class TestNodeService:
    async def test_asks_for_many_and_takes_each_answer_for_itself(self, authority: FakeAuthority) -> None:
        chain = authority.chain()
        refusal = node_pb2.Refusal(code="EXHAUSTED", message="too much", retry_after_ms=1500)
        results = [issued(*map(write_der, chain)), node_pb2.SignResult(refusal=refusal), issued(b"garbage")]
        wire = Wire(lambda _: node_pb2.SignResponse(results=results))
        requests = [request_for(WEB, new_private_key(), ttl=timedelta(minutes=1)), request_for(DB, new_private_key())]
        client = NodeServiceClient(wire, LOCAL, timeout=SECONDS)
        first, second, third = await client.sign([*requests, requests[0]])
        assert first == chain
        assert isinstance(second, Exhausted)
        assert second.retry_after == timedelta(seconds=1.5)
        assert isinstance(third, BadAnswer)
        sent = wire.requests[0]
        assert isinstance(sent, node_pb2.SignRequest)
        assert [(entry.spiffe_id, entry.ttl_seconds) for entry in sent.entries[:2]] == [(str(WEB), 60), (str(DB), 0)]
        assert sent.entries[0].csr == requests[0].csr_der

    async def test_a_code_that_nobody_knows_is_an_error_all_the_same(self) -> None:
        refused = node_pb2.SignResult(refusal=node_pb2.Refusal(code="WHATEVER"))
        wire = Wire(lambda _: node_pb2.SignResponse(results=[refused, node_pb2.SignResult()]))
        requests = [request_for(WEB, new_private_key())] * 2
        outcomes = await NodeServiceClient(wire, LOCAL, timeout=SECONDS).sign(requests)
        assert all(isinstance(outcome, IstioAuthError) for outcome in outcomes)

    async def test_too_few_answers_are_none(self) -> None:
        wire = Wire(lambda _: node_pb2.SignResponse())
        with pytest.raises(NotReady):
            await NodeServiceClient(wire, LOCAL, timeout=SECONDS).sign([request_for(WEB, new_private_key())])

    async def news(self, response: node_pb2.SyncResponse, sequence: int = 4) -> News:
        async def reports() -> AsyncIterator[Report]:
            yield Report("e", 3, sequence, 5, 2, ("laggard",))

        self.wire = Wire(lambda _: response)
        client = NodeServiceClient(self.wire, LOCAL, timeout=SECONDS, version="1.0")
        return await anext(aiter(client.sync(reports())))

    async def test_tells_what_it_holds_and_hears_news(self, authority: FakeAuthority) -> None:
        bundle = node_pb2.Bundle(trust_domain="cluster.local", x509_authorities=[write_der(authority.root)], sequence=9)
        good = node_pb2.Registration(
            key="a", spiffe_id=str(WEB), selectors=["unix:uid:1"], ttl_seconds=60, dns_names=["web"], hint="h"
        )
        bad = node_pb2.Registration(key="b", spiffe_id=str(WEB))
        delta = node_pb2.RegistrationDelta(epoch="e", from_revision=3, to_revision=4, put=[good, bad], removed=["c"])
        news = await self.news(node_pb2.SyncResponse(bundles=[bundle], registrations=delta))
        assert news.bundles == (authority.bundle(sequence=9),)
        assert news.delta is not None
        expected = Registration(WEB, frozenset({Selector("unix", "uid:1")}), timedelta(minutes=1), ("web",), "h")
        assert news.delta.put["a"] == expected
        assert isinstance(news.delta.put["b"], IstioAuthError)
        assert (news.delta.from_revision, news.delta.to_revision, news.delta.removed) == (3, 4, frozenset("c"))
        sent = self.wire.requests[0]
        assert isinstance(sent, node_pb2.SyncRequest)
        assert (sent.epoch, sent.revision, sent.bundle_sequence, sent.agent_version) == ("e", 3, 4, "1.0")
        assert (sent.consumers, sent.consumers_current, list(sent.laggards)) == (5, 2, ["laggard"])

    async def test_tells_the_largest_number_there_is_of_a_pinned_sequence_above_it(self) -> None:
        await self.news(node_pb2.SyncResponse(), sequence=1 << 70)
        (sent,) = self.wire.requests
        assert isinstance(sent, node_pb2.SyncRequest)
        assert sent.bundle_sequence == (1 << 64) - 1

    async def test_news_without_registrations_are_no_empty_registrations(self) -> None:
        assert (await self.news(node_pb2.SyncResponse())).delta is None

    @pytest.mark.parametrize(
        "bundle",
        [node_pb2.Bundle(trust_domain="Cluster"), node_pb2.Bundle(trust_domain="a", x509_authorities=[b"x"])],
    )
    async def test_a_bundle_that_is_none_ends_the_stream(self, bundle: node_pb2.Bundle) -> None:
        with pytest.raises(NotReady):
            await self.news(node_pb2.SyncResponse(bundles=[bundle]))


class TestAnyCA:
    def both(self, node_answer: Callable[[Message], Message]) -> tuple[AnyCA, Wire, Wire]:
        node = Wire(node_answer)
        istio = Wire(lambda _: istio_ca_pb2.IstioCertificateResponse())
        clients = NodeServiceClient(node, LOCAL, timeout=SECONDS), IstioClient(istio, timeout=SECONDS)
        return AnyCA(*clients), node, istio

    async def test_uses_our_own_service_where_the_ca_has_it(self) -> None:
        client, node, istio = self.both(lambda _: node_pb2.SignResponse(results=[node_pb2.SignResult()]))
        await client.sign([request_for(WEB, new_private_key())])
        assert (len(node.requests), len(istio.requests)) == (1, 0)

    async def test_uses_istios_contract_from_then_on_where_it_has_not(self) -> None:
        client, node, istio = self.both(failing(NotOffered("no such service")))
        for _ in range(2):
            await client.sign([request_for(WEB, new_private_key())])
        assert (len(node.requests), len(istio.requests)) == (1, 2)

    @pytest.mark.parametrize("error", [NotReady("away"), NotAuthorized("no")])
    async def test_does_not_take_another_trouble_for_a_missing_service(self, error: IstioAuthError) -> None:
        client, _, istio = self.both(failing(error))
        with pytest.raises(type(error)):
            await client.sign([request_for(WEB, new_private_key())])
        assert not istio.requests
