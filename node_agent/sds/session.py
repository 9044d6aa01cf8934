"""One client of secret discovery, state of the world, without I/O: requests in, answers out (xDS transport protocol).

The rules, which a stream of any length obeys:

* Each request replaces the list of subscribed names. An empty list subscribes to nothing.
* An answer holds every subscribed name that is granted. The others stay pending: they are answered once they are
  granted, and the stream lives on. Nothing granted makes no answer at all (Envoy refuses an empty one).
* An answer is sent when a subscribed name has content that this client was not yet sent, and only then. So neither an
  acknowledgement nor a refusal is answered, and a client that refuses a secret gets it again only once it changed.
* The version is a hash of the answer's content. The nonce is random, new for every answer.
* A request with the nonce of an answer that is not the latest is stale, and ignored whole.
* A client has its word on an answer once. Later requests with the same nonce only say what it subscribes to.
"""

from __future__ import annotations

import enum
import hashlib
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from envoy.service.discovery.v3.discovery_pb2 import (
    DeltaDiscoveryRequest,
    DeltaDiscoveryResponse,
    DiscoveryRequest,
    DiscoveryResponse,
)

from istio_auth.errors import Exhausted, MalformedError
from node_agent.sds.acknowledgement import Accepted, Holding, View
from node_agent.sds.secrets import SECRET_TYPE, Content, Resource

MAX_NAMES = 100
MAX_NAME = 2048  # bytes: the longest SPIFFE ID
_MAX_DETAIL = 500


class Kind(enum.Enum):
    """What a request was; the label of a metric."""

    FIRST = "first"
    ACK = "ack"
    NACK = "nack"
    AGAIN = "again"
    STALE = "stale"


Answer = TypeVar("Answer", DiscoveryResponse, DeltaDiscoveryResponse)


@dataclass(frozen=True, slots=True)
class Reaction(Generic[Answer]):
    """What came of a request.

    Args:
        kind: what the request was.
        response: what to send, if anything.
        about: the names in the answer that the client accepted, or refused.
        detail: the client's own reason for a refusal.
    """

    kind: Kind
    response: Answer | None = None
    about: tuple[str, ...] = ()
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Sent:
    """An answer that a client owes its word on."""

    nonce: str
    version: str
    contents: Mapping[str, Content]


class Subscription:
    """What a client has subscribed to and accepted, by whichever of the two protocols.

    Attributes:
        names: what it is subscribed to.
        node_id: what the client calls itself.
        accepted: what it has accepted.
    """

    def __init__(self) -> None:
        self.accepted = Accepted()
        self.names: tuple[str, ...] = ()
        self.node_id = ""

    def pending(self, view: View) -> tuple[str, ...]:
        """The subscribed names for which there is nothing yet."""
        return tuple(name for name in self.names if view(name) is None)

    def holding(self, view: View) -> Holding:
        """Whether the client has accepted the present roots of our own trust domain, if it wants them."""
        return self.accepted.holding(self.names, view)


class Session(Subscription):
    """The state of one stream.

    Args:
        nonce: makes a new nonce for each answer.
        max_names: how many names one client may subscribe to.
    """

    def __init__(self, *, nonce: Callable[[], str] | None = None, max_names: int = MAX_NAMES) -> None:
        super().__init__()
        self._nonce = nonce or random_nonce
        self._max_names = max_names
        self._sent: dict[str, bytes] = {}  # subscribed name -> digest of what this client was last sent
        self._last: Sent | None = None
        self._owes = False  # its word on the last answer

    def receive(self, request: DiscoveryRequest, view: View) -> Reaction[DiscoveryResponse]:
        """Take in a request.

        Raises:
            MalformedError: the client asks for what is not here; its stream is to be ended.
            Exhausted: it asks for too much; likewise.
        """
        names = checked_names(request.resource_names, type_url=request.type_url, max_names=self._max_names)
        self.node_id = self.node_id or request.node.id[:200]
        kind = self._kind(request)
        if kind is Kind.STALE:
            return Reaction(kind)
        about: tuple[str, ...] = ()
        if kind in (Kind.ACK, Kind.NACK) and self._last:
            self._owes, about = False, tuple(self._last.contents)
            if kind is Kind.ACK:
                self.accepted.take(self._last.version, self._last.contents)
        self._subscribe(names)
        return Reaction(kind, self.refresh(view), about, detail_of(request))

    def refresh(self, view: View) -> DiscoveryResponse | None:
        """The answer that a change of the world calls for, or None."""
        granted = [resource for name in self.names if (resource := view(name)) is not None]
        if all(self._sent.get(resource.name) == resource.digest for resource in granted):
            return None
        self._last = Sent(self._nonce(), version_of(granted), {each.name: each.content for each in granted})
        self._owes = True
        self._sent.update({each.name: each.digest for each in granted})
        response = DiscoveryResponse(version_info=self._last.version, type_url=SECRET_TYPE, nonce=self._last.nonce)
        for resource in granted:
            response.resources.add(type_url=SECRET_TYPE, value=resource.body)
        return response

    def _kind(self, request: DiscoveryRequest) -> Kind:
        if not request.response_nonce:
            return Kind.FIRST
        if self._last is None or request.response_nonce != self._last.nonce:
            return Kind.STALE
        if not self._owes:
            return Kind.AGAIN
        refused = request.HasField("error_detail") or request.version_info != self._last.version
        return Kind.NACK if refused else Kind.ACK

    def _subscribe(self, names: tuple[str, ...]) -> None:
        self.names = names
        for gone in self._sent.keys() - set(names):
            del self._sent[gone]  # asked for again later, it must be sent again
        self.accepted.keep(names)


def version_of(resources: Sequence[Resource]) -> str:
    """A short name for exactly this content, in whatever order."""
    content = hashlib.sha256()
    for resource in sorted(resources, key=lambda each: each.name):
        content.update(len(resource.name).to_bytes(4, "big") + resource.name.encode() + resource.digest)
    return content.hexdigest()[:16]


def checked_names(names: Sequence[str], *, type_url: str, max_names: int) -> tuple[str, ...]:
    """The names that a client subscribes to, each once.

    Raises:
        MalformedError: they are not of secrets.
        Exhausted: they are too many or too long.
    """
    if type_url not in ("", SECRET_TYPE):
        raise MalformedError(
            f"asked for {type_url[:200]!a}: only secrets are here", public="only secrets are served here"
        )
    if len(names) > max_names:
        raise too_much(f"{len(names)} names on one stream, at most {max_names} are allowed")
    if any(len(name) > MAX_NAME for name in names):
        raise too_much(f"a name of more than {MAX_NAME} characters")
    return tuple(dict.fromkeys(names))


def too_much(words: str) -> Exhausted:
    """A client is over one of its limits, and may know which."""
    return Exhausted(words, public=words)


def detail_of(request: DiscoveryRequest | DeltaDiscoveryRequest) -> str:
    """Why a client refuses an answer, in its own words; empty if it does not."""
    if not request.HasField("error_detail"):
        return ""
    return f"{request.error_detail.message[:_MAX_DETAIL]} (code {request.error_detail.code})"


def random_nonce() -> str:
    """A new nonce, for one answer."""
    return secrets.token_hex(8)
