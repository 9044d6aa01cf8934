"""A stream of secret discovery by the delta protocol, without a stream."""

from __future__ import annotations

import itertools

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from istio_auth.errors import Exhausted, MalformedError
from node_agent.sds.acknowledgement import Holding
from node_agent.sds.delta import DeltaSession
from node_agent.sds.secrets import SECRET_TYPE
from node_agent.sds.session import Kind
from tests.unit.node_agent.sds.test_session import World


class Client:
    """A client that answers as the protocol wants it, and keeps what it is sent."""

    def __init__(self, world: World, **options: int) -> None:
        self.world = world
        counter = itertools.count(1)
        self.session = DeltaSession(nonce=lambda: f"nonce-{next(counter)}", **options)
        self.held: dict[str, tuple[str, bytes]] = {}
        self.nonce = ""

    def send(self, request: DeltaDiscoveryRequest) -> dict[str, bytes]:
        request.type_url = request.type_url or SECRET_TYPE
        self.reaction = self.session.receive(request, self.world)
        return self.note(self.reaction.response)

    def ask(self, *names: str, leave: tuple[str, ...] = ()) -> dict[str, bytes]:
        return self.send(DeltaDiscoveryRequest(resource_names_subscribe=names, resource_names_unsubscribe=leave))

    def accept(self) -> dict[str, bytes]:
        return self.send(DeltaDiscoveryRequest(response_nonce=self.nonce))

    def refuse(self, why: str) -> dict[str, bytes]:
        request = DeltaDiscoveryRequest(response_nonce=self.nonce)
        request.error_detail.message = why
        return self.send(request)

    def changed(self) -> dict[str, bytes]:
        return self.note(self.session.refresh(self.world))

    def note(self, response: DeltaDiscoveryResponse | None) -> dict[str, bytes]:
        """What came, by name; what was removed is empty."""
        if response is None:
            return {}
        assert response.type_url == SECRET_TYPE
        assert all(each.resource.type_url == SECRET_TYPE for each in response.resources)
        self.nonce = response.nonce
        came = {each.name: each.resource.value for each in response.resources}
        self.held |= {each.name: (each.version, each.resource.value) for each in response.resources}
        for name in response.removed_resources:
            del self.held[name]
        return came | dict.fromkeys(response.removed_resources, b"")


def test_only_what_was_asked_for_comes_and_later_only_what_changed() -> None:
    client = Client(World(default="certificate", ROOTCA="roots", other="not asked for"))
    assert client.ask("default", "ROOTCA") == {"default": b"certificate", "ROOTCA": b"roots"}
    assert client.accept() == {}
    client.world.content["default"] = "renewed"
    assert client.changed() == {"default": b"renewed"}
    assert client.changed() == {}


def test_nobody_is_sent_everything_for_asking_nothing() -> None:
    client = Client(World(default="certificate"))
    assert client.ask() == {}
    assert client.ask("*") == {}


def test_a_name_that_is_not_granted_yet_is_pending_and_comes_when_it_is() -> None:
    client = Client(World(default="certificate"))
    assert client.ask("default", "later") == {"default": b"certificate"}
    assert client.session.pending(client.world) == ("later",)
    client.world.content["later"] = "here"
    assert client.changed() == {"later": b"here"}


def test_what_was_sent_and_is_not_granted_any_more_is_said_to_be_removed_once() -> None:
    client = Client(World(default="certificate"))
    client.ask("default")
    del client.world.content["default"]
    assert client.changed() == {"default": b""}
    assert client.changed() == {}
    client.world.content["default"] = "certificate"
    assert client.changed() == {"default": b"certificate"}


def test_a_name_that_is_left_comes_no_more_and_one_that_is_asked_for_again_comes_again() -> None:
    client = Client(World(default="certificate", ROOTCA="roots"))
    client.ask("default", "ROOTCA")
    assert client.ask(leave=("ROOTCA",)) == {}
    client.world.content["ROOTCA"] = "new roots"
    assert client.changed() == {}
    assert client.ask("ROOTCA") == {"ROOTCA": b"new roots"}
    assert client.ask("ROOTCA") == {"ROOTCA": b"new roots"}


def test_what_a_client_brings_along_is_not_sent_again_unless_it_changed() -> None:
    old = Client(World(default="certificate", ROOTCA="roots"))
    old.ask("default", "ROOTCA")
    versions = {name: version for name, (version, _) in old.held.items()}
    new = Client(World(default="renewed", ROOTCA="roots"))
    request = DeltaDiscoveryRequest(
        resource_names_subscribe=["default", "ROOTCA"], initial_resource_versions={**versions, "unheard of": "1"}
    )
    assert new.send(request) == {"default": b"renewed"}
    assert new.session.holding(new.world) is Holding.CURRENT


def test_what_a_client_brings_along_and_may_not_have_any_more_is_removed() -> None:
    client = Client(World())
    client.held["default"] = ("1", b"old")
    request = DeltaDiscoveryRequest(resource_names_subscribe=["default"], initial_resource_versions={"default": "1"})
    assert client.send(request) == {"default": b""}


def test_accepted_bundles_are_current_and_refused_ones_lag_until_they_change() -> None:
    client = Client(World(ROOTCA="roots"))
    client.ask("ROOTCA")
    assert client.session.holding(client.world) is Holding.LAGGING
    assert client.accept() == {}
    assert client.reaction.kind is Kind.ACK
    assert client.session.holding(client.world) is Holding.CURRENT
    client.world.content["ROOTCA"] = "worse roots"
    client.changed()
    assert client.refuse("no good") == {}
    assert (client.reaction.kind, client.reaction.about) == (Kind.NACK, ("ROOTCA",))
    assert client.reaction.detail.startswith("no good")
    assert client.session.holding(client.world) is Holding.LAGGING
    client.world.content["ROOTCA"] = "better roots"
    assert client.changed() == {"ROOTCA": b"better roots"}


def test_each_of_several_answers_under_way_is_accepted_for_itself() -> None:
    client = Client(World(default="one", ROOTCA="roots"))
    client.ask("default", "ROOTCA")
    first = client.nonce
    client.world.content["default"] = "two"
    client.changed()
    client.accept()
    assert client.session.holding(client.world) is Holding.LAGGING
    client.nonce = first
    client.accept()
    assert client.session.holding(client.world) is Holding.CURRENT
    client.accept()
    assert client.reaction.kind is Kind.STALE


def test_a_client_that_never_accepts_costs_a_bounded_memory() -> None:
    client = Client(World(default="0"))
    client.ask("default")
    for number in range(1000):
        client.world.content["default"] = str(number)
        client.changed()
    assert len(client.session._unanswered) <= 100


def test_what_is_no_secret_or_too_much_ends_the_stream() -> None:
    client = Client(World(), max_names=2)
    with pytest.raises(MalformedError):
        client.send(DeltaDiscoveryRequest(type_url="type.googleapis.com/envoy.config.cluster.v3.Cluster"))
    client.ask("a", "b")
    with pytest.raises(Exhausted):
        client.ask("c")
    assert client.ask("c", leave=("a",)) == {}
