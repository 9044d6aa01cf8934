"""Streams of secret discovery of any length: whatever clients and the world do, everybody ends up with the present."""

from __future__ import annotations

import hashlib

from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from node_agent.sds.secrets import SECRET_TYPE, Content, Resource, Roots
from node_agent.sds.session import Kind, Session

NAMES = ("default", "ROOTCA", "spiffe://cluster.local/a", "spiffe://cluster.local/b")
names = st.lists(st.sampled_from(NAMES), max_size=6)
contents = st.sampled_from(["one", "two", "three"])


class Stream(RuleBasedStateMachine):
    """A server's session, a client that keeps to the protocol, and a network that delivers late."""

    def __init__(self) -> None:
        super().__init__()
        self.world: dict[str, str] = {}
        self.session = Session()
        self.coming: list[DiscoveryResponse] = []  # sent, and not yet seen by the client
        self.held: dict[str, bytes] = {}
        self.refused: dict[str, bytes] = {}
        self.wanted: list[str] = []
        self.told: list[str] = []  # the subscription that the server was told last
        self.version = self.nonce = ""
        self.nonces: set[str] = set()
        self.versions: dict[frozenset[tuple[str, bytes]], str] = {}
        self.answers = self.causes = 0

    def view(self, name: str) -> Resource | None:
        if (text := self.world.get(name)) is None:
            return None
        body = f"{name} {text}".encode()
        digest = hashlib.sha256(body).digest()
        return Resource(name, body, Content(digest, Roots(digest, 1) if name == "ROOTCA" else None))

    def send(self, *, version: str, refusal: str = "") -> None:
        request = DiscoveryRequest(
            resource_names=self.wanted, version_info=version, response_nonce=self.nonce, type_url=SECRET_TYPE
        )
        if refusal:
            request.error_detail.message = refusal
        reaction = self.session.receive(request, self.view)
        if reaction.kind is not Kind.STALE:
            self.causes += set(self.wanted) != set(self.told)
            self.told = list(self.wanted)
        self.deliver(reaction.response)

    def deliver(self, response: DiscoveryResponse | None) -> None:
        if response is None:
            return
        self.answers += 1
        assert response.nonce not in self.nonces
        self.nonces.add(response.nonce)
        content = {each.value.split()[0].decode(): each.value for each in response.resources}
        granted = {name for name in self.session.names if name in self.world}
        assert content
        assert set(content) == granted, "all granted names are in one answer"
        key = frozenset(content.items())
        assert self.versions.setdefault(key, response.version_info) == response.version_info
        assert list(self.versions.values()).count(response.version_info) == 1, "another content has another version"
        self.coming.append(response)

    @initialize(wanted=names)
    def begin(self, wanted: list[str]) -> None:
        self.wanted = wanted
        self.causes += 1
        self.send(version="")

    @rule(name=st.sampled_from(NAMES), content=contents)
    def grant(self, name: str, content: str) -> None:
        self.causes += self.world.get(name) != content
        self.world[name] = content
        self.deliver(self.session.refresh(self.view))

    @rule(name=st.sampled_from(NAMES))
    def withdraw(self, name: str) -> None:
        self.world.pop(name, None)
        self.deliver(self.session.refresh(self.view))

    @rule()
    def look_again(self) -> None:
        self.deliver(self.session.refresh(self.view))

    @rule(wanted=names)
    def subscribe(self, wanted: list[str]) -> None:
        self.wanted = wanted
        self.send(version=self.version)

    @rule(accept=st.booleans())
    def see(self, accept: bool) -> None:
        if self.coming:
            self.take(self.coming.pop(0), accept=accept)

    def take(self, response: DiscoveryResponse, *, accept: bool) -> None:
        content = {each.value.split()[0].decode(): each.value for each in response.resources}
        self.nonce = response.nonce
        if accept:
            self.version = response.version_info
            self.held |= content
            self.send(version=self.version)
        else:
            self.refused |= content
            self.send(version=self.version, refusal="no")

    @invariant()
    def nothing_is_sent_without_a_cause(self) -> None:
        assert self.answers <= self.causes

    def teardown(self) -> None:
        for _ in range(len(self.coming) + 10):
            if not self.coming:
                break
            self.take(self.coming.pop(0), accept=True)
        assert not self.coming, "a client that accepts is not sent the same again and again"
        for name in set(self.wanted):
            if (resource := self.view(name)) is not None:
                assert resource.body in (self.held.get(name), self.refused.get(name))


TestStream = Stream.TestCase
TestStream.settings = settings(max_examples=150, stateful_step_count=30)
