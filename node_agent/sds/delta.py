"""One client of secret discovery by the delta protocol, without I/O: only what changed is sent (xDS, incremental).

* A client names what it wants and no longer wants; a name that it asks for again is sent again.
* On a new stream it says which versions it holds from an old one; those are not sent again.
* A name that is not granted yet stays pending. One that was sent and is no longer granted is said to be removed.
* Each request that carries a nonce accepts or refuses that answer; a refused secret comes again only once it changed.
* There are no wildcards: nobody is sent what it did not name.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from envoy.service.discovery.v3.discovery_pb2 import DeltaDiscoveryRequest, DeltaDiscoveryResponse

from node_agent.sds.acknowledgement import View
from node_agent.sds.secrets import SECRET_TYPE, Resource
from node_agent.sds.session import (
    MAX_NAMES,
    Kind,
    Reaction,
    Sent,
    Subscription,
    checked_names,
    detail_of,
    random_nonce,
    version_of,
)

_MAX_UNANSWERED = 100  # answers that a client owes a word on; it says nothing of older ones


class DeltaSession(Subscription):
    """The state of one stream (see `Session`, whose methods it has).

    Args:
        nonce: makes a new nonce for each answer.
        max_names: how many names one client may subscribe to.
    """

    def __init__(self, *, nonce: Callable[[], str] = random_nonce, max_names: int = MAX_NAMES) -> None:
        super().__init__()
        self._nonce, self._max_names = nonce, max_names
        self._sent: dict[str, bytes] = {}  # name -> digest of what this client was last sent
        self._held: dict[str, str] = {}  # name -> version that it brought from another stream
        self._unanswered: dict[str, Sent] = {}  # by nonce

    def receive(self, request: DeltaDiscoveryRequest, view: View) -> Reaction[DeltaDiscoveryResponse]:
        """Take in a request.

        Raises:
            MalformedError: the client asks for what is not here; its stream is to be ended.
            Exhausted: it asks for too much; likewise.
        """
        gone = set(request.resource_names_unsubscribe)
        kept = [name for name in self.names if name not in gone]
        names = checked_names(
            [*kept, *request.resource_names_subscribe], type_url=request.type_url, max_names=self._max_names
        )
        self.node_id = self.node_id or request.node.id[:200]
        answered = self._unanswered.pop(request.response_nonce, None)
        kind = _kind(request, answered)
        if kind is Kind.ACK and answered:
            self.accepted.take(answered.version, answered.contents)
        self._subscribe(names, again=request.resource_names_subscribe)
        if kind is Kind.FIRST:
            self._held |= {
                name: version for name, version in request.initial_resource_versions.items() if name in names
            }
        about = tuple(answered.contents) if answered else ()
        return Reaction(kind, self.refresh(view), about, detail_of(request))

    def refresh(self, view: View) -> DeltaDiscoveryResponse | None:
        """The answer that a change of the world calls for, or None."""
        seen = {name: view(name) for name in self.names}
        changed = [resource for name, resource in seen.items() if resource is not None and self._is_news(resource)]
        removed = [name for name, resource in seen.items() if resource is None and self._had(name)]
        for resource in changed:
            self._sent[resource.name] = resource.digest
        for name in removed:
            self._forget(name)
        if not changed and not removed:
            return None
        nonce = self._nonce()
        version = version_of([resource for resource in seen.values() if resource is not None])
        self._unanswered[nonce] = Sent(nonce, version, {resource.name: resource.content for resource in changed})
        while len(self._unanswered) > _MAX_UNANSWERED:
            del self._unanswered[next(iter(self._unanswered))]
        response = DeltaDiscoveryResponse(
            system_version_info=version, type_url=SECRET_TYPE, nonce=nonce, removed_resources=removed
        )
        for resource in changed:
            entry = response.resources.add(name=resource.name, version=version_of([resource]))
            entry.resource.type_url, entry.resource.value = SECRET_TYPE, resource.body
        return response

    def _is_news(self, resource: Resource) -> bool:
        """Whether the client has not got this yet; what it brought along counts as accepted."""
        if self._held.pop(resource.name, None) == (version := version_of([resource])):
            self._sent[resource.name] = resource.digest
            self.accepted.take(self.accepted.version or version, {resource.name: resource.content})
        return self._sent.get(resource.name) != resource.digest

    def _had(self, name: str) -> bool:
        return name in self._sent or name in self._held

    def _forget(self, name: str) -> None:
        for kept in (self._sent, self._held):
            kept.pop(name, None)
        self.accepted.forget(name)

    def _subscribe(self, names: tuple[str, ...], *, again: Iterable[str]) -> None:
        for name in {*(set(self.names) - set(names)), *(set(again) & set(self.names))}:
            self._forget(name)
        self.names = names


def _kind(request: DeltaDiscoveryRequest, answered: Sent | None) -> Kind:
    if not request.response_nonce:
        return Kind.FIRST
    if answered is None:
        return Kind.STALE
    return Kind.NACK if request.HasField("error_detail") else Kind.ACK
