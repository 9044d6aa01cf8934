"""A stream of secret discovery, without a stream."""

from __future__ import annotations

import hashlib
import itertools

import pytest
from envoy.service.discovery.v3.discovery_pb2 import DiscoveryRequest, DiscoveryResponse

from istio_auth.errors import Exhausted, IstioAuthError, MalformedError
from node_agent.sds.acknowledgement import Holding
from node_agent.sds.secrets import SECRET_TYPE, Content, Resource, Roots
from node_agent.sds.session import Kind, Session, version_of


class World:
    """What the names give; the tests change it."""

    def __init__(self, **content: str) -> None:
        self.content = content
        self.sequence = 1

    def __call__(self, name: str) -> Resource | None:
        if (text := self.content.get(name)) is None:
            return None
        digest = hashlib.sha256(text.encode()).digest()
        roots = Roots(digest, self.sequence) if name in ("ROOTCA", "ALL") else None
        return Resource(name, text.encode(), Content(digest, roots))


class Client:
    """A client that answers as the protocol wants it."""

    def __init__(self, world: World, **options: int) -> None:
        self.world = world
        counter = itertools.count(1)
        self.session = Session(nonce=lambda: f"nonce-{next(counter)}", **options)
        self.version = ""
        self.nonce = ""

    def ask(self, *names: str, **fields: str) -> DiscoveryResponse | None:
        request = DiscoveryRequest(
            resource_names=names,
            version_info=fields.pop("version_info", self.version),
            response_nonce=fields.pop("response_nonce", self.nonce),
            type_url=fields.pop("type_url", SECRET_TYPE),
        )
        if refusal := fields.pop("refusal", ""):
            request.error_detail.message = refusal
        self.reaction = self.session.receive(request, self.world)
        return self.note(self.reaction.response)

    def note(self, response: DiscoveryResponse | None) -> DiscoveryResponse | None:
        if response is not None:
            self.received, self.nonce = response, response.nonce
        return response

    def accept(self, *names: str) -> DiscoveryResponse | None:
        self.version = self.received.version_info
        return self.ask(*names)

    def changed(self) -> DiscoveryResponse | None:
        return self.note(self.session.refresh(self.world))


def bodies(response: DiscoveryResponse | None) -> list[bytes]:
    assert response is not None
    assert all(each.type_url == SECRET_TYPE for each in response.resources)
    return [each.value for each in response.resources]


def test_all_names_of_a_request_come_in_one_answer() -> None:
    client = Client(World(default="certificate", ROOTCA="roots"))
    response = client.ask("default", "ROOTCA")
    assert bodies(response) == [b"certificate", b"roots"]
    assert response is not None
    assert response.type_url == SECRET_TYPE
    assert response.version_info
    assert response.nonce == "nonce-1"


def test_a_name_asked_for_twice_comes_once() -> None:
    client = Client(World(default="certificate"))
    assert bodies(client.ask("default", "default")) == [b"certificate"]


def test_a_name_that_is_not_granted_yet_stays_pending_and_holds_up_no_other() -> None:
    world = World(default="certificate")
    client = Client(world)
    assert bodies(client.ask("default", "ROOTCA")) == [b"certificate"]
    assert client.session.pending(world) == ("ROOTCA",)
    client.accept("default", "ROOTCA")
    world.content["ROOTCA"] = "roots"
    assert bodies(client.changed()) == [b"certificate", b"roots"]
    assert client.session.pending(world) == ()


def test_nothing_granted_is_no_answer_until_something_is() -> None:
    world = World()
    client = Client(world)
    assert client.ask("default") is None
    assert client.changed() is None
    world.content["default"] = "certificate"
    assert bodies(client.changed()) == [b"certificate"]


def test_an_acknowledgement_is_not_answered() -> None:
    client = Client(World(default="certificate"))
    client.ask("default")
    assert client.accept("default") is None
    assert client.reaction.kind is Kind.ACK
    assert client.changed() is None


def test_the_version_changes_with_the_content_and_not_otherwise() -> None:
    world = World(default="one", other="x")
    client = Client(world)
    client.ask("default")
    first = client.received.version_info
    client.accept("default")
    world.content["other"] = "y"
    assert client.changed() is None
    world.content["default"] = "two"
    client.changed()
    second = client.received.version_info
    world.content["default"] = "one"
    client.changed()
    assert first != second
    assert client.received.version_info == first


def test_the_order_of_names_makes_no_version() -> None:
    world = World(a="1", b="2")
    a, b = world("a"), world("b")
    assert a is not None
    assert b is not None
    assert version_of([a, b]) == version_of([b, a])


def test_every_answer_has_a_nonce_of_its_own() -> None:
    sessions = [Session() for _ in range(50)]
    request = DiscoveryRequest(resource_names=["default"])
    answers = [session.receive(request, World(default="x")).response for session in sessions]
    assert len({answer.nonce for answer in answers if answer}) == 50


def test_a_refused_secret_is_told_and_not_sent_again_before_it_changes() -> None:
    world = World(default="bad")
    client = Client(world)
    client.ask("default")
    assert client.ask("default", refusal="the key does not fit") is None
    assert client.reaction.kind is Kind.NACK
    assert client.reaction.about == ("default",)
    assert "the key does not fit" in client.reaction.detail
    assert client.changed() is None
    world.content["default"] = "good"
    assert bodies(client.changed()) == [b"good"]


def test_an_answer_to_another_version_than_the_one_sent_is_a_refusal() -> None:
    client = Client(World(default="x"))
    client.ask("default")
    client.ask("default", version_info="older")
    assert client.reaction.kind is Kind.NACK


def test_a_stale_request_is_ignored_whole() -> None:
    world = World(default="one", ROOTCA="roots")
    client = Client(world)
    client.ask("default")
    world.content["default"] = "two"
    client.changed()
    assert client.ask("ROOTCA", response_nonce="nonce-1") is None
    assert client.reaction.kind is Kind.STALE
    assert client.session.names == ("default",)


def test_a_nonce_that_was_never_given_is_stale() -> None:
    client = Client(World(default="one"))
    assert client.ask("default", response_nonce="made-up") is None
    assert client.reaction.kind is Kind.STALE


def test_a_client_back_on_a_new_stream_gets_its_secrets_whatever_version_it_has() -> None:
    world = World(default="one")
    before = Client(world)
    before.ask("default")
    after = Client(world)
    assert bodies(after.ask("default", version_info=before.received.version_info)) == [b"one"]


def test_a_new_name_brings_an_answer_with_all_names() -> None:
    client = Client(World(default="certificate", ROOTCA="roots"))
    client.ask("default")
    assert bodies(client.accept("default", "ROOTCA")) == [b"certificate", b"roots"]


def test_a_name_less_brings_no_answer_and_is_no_longer_pushed() -> None:
    world = World(default="certificate", ROOTCA="roots")
    client = Client(world)
    client.ask("default", "ROOTCA")
    assert client.accept("default") is None
    world.content["ROOTCA"] = "other roots"
    assert client.changed() is None


def test_a_name_asked_for_again_is_sent_again() -> None:
    client = Client(World(default="certificate", ROOTCA="roots"))
    client.ask("default", "ROOTCA")
    client.accept("default")
    assert bodies(client.accept("default", "ROOTCA")) == [b"certificate", b"roots"]


def test_no_names_are_no_subscription() -> None:
    client = Client(World(default="certificate"))
    assert client.ask() is None
    assert client.changed() is None


def test_a_grant_withdrawn_sends_nothing_and_leaves_the_name_pending() -> None:
    world = World(default="certificate")
    client = Client(world)
    client.ask("default")
    del world.content["default"]
    assert client.changed() is None
    assert client.session.pending(world) == ("default",)


@pytest.mark.parametrize(
    ("names", "type_url", "error"),
    [
        (("default",), "type.googleapis.com/envoy.config.cluster.v3.Cluster", MalformedError),
        (tuple(f"name-{number}" for number in range(4)), SECRET_TYPE, Exhausted),
        (("n" * 2049,), SECRET_TYPE, Exhausted),
    ],
    ids=["another type", "too many names", "too long a name"],
)
def test_what_is_not_served_here_ends_the_stream(
    names: tuple[str, ...], type_url: str, error: type[IstioAuthError]
) -> None:
    client = Client(World(default="certificate"), max_names=3)
    with pytest.raises(error):
        client.ask(*names, type_url=type_url)
    assert bodies(client.ask("default", "b", "c", type_url=SECRET_TYPE)) == [b"certificate"]


def test_the_type_may_be_left_out_for_there_is_only_one() -> None:
    assert bodies(Client(World(default="certificate")).ask("default", type_url="")) == [b"certificate"]


def test_a_client_holds_the_bundle_once_it_accepted_the_present_one() -> None:
    world = World(default="certificate", ROOTCA="roots")
    client = Client(world)
    assert client.session.holding(world) is Holding.NONE
    client.ask("default", "ROOTCA")
    assert client.session.holding(world) is Holding.LAGGING
    client.accept("default", "ROOTCA")
    assert client.session.holding(world) is Holding.CURRENT
    world.content["ROOTCA"] = "other roots"
    assert client.session.holding(world) is Holding.LAGGING
    client.changed()
    client.ask("default", "ROOTCA", refusal="no")
    assert client.session.holding(world) is Holding.LAGGING


def test_a_new_certificate_leaves_the_accepted_bundle_current() -> None:
    world = World(default="certificate", ROOTCA="roots")
    client = Client(world)
    client.ask("default", "ROOTCA")
    client.accept("default", "ROOTCA")
    world.content["default"] = "renewed"
    client.changed()
    assert client.session.holding(world) is Holding.CURRENT


def test_a_client_without_a_bundle_is_no_consumer_of_one() -> None:
    world = World(default="certificate", ROOTCA="roots")
    client = Client(world)
    client.ask("default")
    client.accept("default")
    assert client.session.holding(world) is Holding.NONE


def test_a_resource_is_never_printed_with_its_key() -> None:
    assert "secret" not in repr(World(default="secret")("default"))


def test_the_version_that_a_client_accepted_stands_for_the_sequence_of_the_roots_in_it() -> None:
    world = World(default="certificate", ROOTCA="roots")
    client = Client(world)
    client.ask("default", "ROOTCA")
    accepted = client.session.accepted
    assert (accepted.version, accepted.sequence(client.session.names, world)) == ("", None)
    client.accept("default", "ROOTCA")
    assert (accepted.version, accepted.sequence(client.session.names, world)) == (client.version, 1)
    world.content["ROOTCA"], world.sequence = "other roots", 2
    client.changed()
    client.ask("default", "ROOTCA", refusal="no")
    assert (accepted.version, accepted.sequence(client.session.names, world)) == (client.version, 1)


def test_the_same_roots_under_a_new_sequence_need_no_new_word_of_the_client() -> None:
    world = World(ROOTCA="roots")
    client = Client(world)
    client.ask("ROOTCA")
    client.accept("ROOTCA")
    world.sequence = 7
    assert client.changed() is None
    assert client.session.holding(world) is Holding.CURRENT
    assert client.session.accepted.sequence(client.session.names, world) == 7


def test_the_oldest_of_several_roots_is_what_a_client_counts_for() -> None:
    world = World(ROOTCA="roots", ALL="all roots")
    client = Client(world)
    client.ask("ROOTCA", "ALL")
    client.accept("ROOTCA", "ALL")
    world.content |= {"ROOTCA": "new roots"}
    world.sequence = 2
    client.changed()
    client.accept("ROOTCA", "ALL")
    world.content |= {"ALL": "all new roots"}
    assert client.session.holding(world) is Holding.LAGGING
    assert client.session.accepted.sequence(client.session.names, world) == 2  # ALL was accepted with it unchanged
    world.sequence = 3
    assert client.session.accepted.sequence(client.session.names, world) == 2


def test_a_client_has_its_word_on_an_answer_once() -> None:
    client = Client(World(default="certificate"))
    client.ask("default")
    client.ask("default", refusal="no")
    assert client.reaction.kind is Kind.NACK
    for _ in range(3):
        assert client.ask("default", refusal="no") is None
        assert (client.reaction.kind, client.reaction.about) == (Kind.AGAIN, ())
    assert client.ask("default", "other", refusal="no") is None
    assert client.session.names == ("default", "other")
