"""The agents of the cluster's nodes: who is one, and which identities are registered for it. Nothing is stored.

Such an agent proves by its token that it runs on node N in a pod of a trusted node account, and gets the identity of
the agent N (`impersonation`). It is welcome as long as such a pod is on N: without the pod its certificate is worth
nothing. Registered for it are the service accounts of the pods on N, for the workloads in these pods, and whatever the
registrations file says for an agent of that name. Every replica of the CA knows all of this by watching pods.

Agents that joined by a join token have other names, and the rules of every platform hold for them.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from datetime import datetime

from ca.agents.folder import AgentFolder
from ca.platform.kubernetes.callers.impersonation import NodeAccounts
from ca.platform.kubernetes.callers.pods import Account, NodeView
from ca.platform.kubernetes.callers.service_account import SELECTOR_TYPE, valid_account
from ca.registrations.file import RegistrationFile
from ca.registrations.table import Registered, RegistrationHistory, RegistrationTable
from ca.registry import Grant
from istio_auth.errors import NotAuthorized, NotReady
from istio_auth.registration import Registration, Selector
from istio_auth.spiffe_id import SpiffeID, TrustDomain

_REVISIONS_KEPT = 2  # an open stream is told of each change; one that comes back later is sent everything


class NodeAgents:
    """The `Agents` of a cluster. Lives on one event loop; only the methods for agents that joined may block.

    Args:
        joined: the agents that joined by a join token.
        accounts: the service accounts that the agents of nodes run as.
        pods: the present pods, as watched.
    """

    def __init__(self, joined: AgentFolder, accounts: NodeAccounts, pods: NodeView) -> None:
        self._joined = joined
        self._accounts = accounts
        self._pods = pods

    def has_joined(self, name: str) -> bool:
        """Whether an agent of this name joined by a join token, or was evicted (see `AgentFolder.is_known`)."""
        return self._joined.is_known(name)

    def check_welcome(self, name: str) -> None:
        """Check that an agent may call at all (see `Agents`)."""
        if self.has_joined(name):
            self._joined.check_welcome(name)
            return
        if not self._pods.live:
            raise NotReady(f"the API server is not heard at present: it is not known whether {name} has an agent")
        if not any(self._pods.on_node(name, *account) for account in self._accounts.accounts):
            raise NotAuthorized(f"no agent {name} joined, and no pod of a trusted node account is on a node {name}")

    def unnoted(self, name: str, identities: Iterable[SpiffeID]) -> frozenset[SpiffeID]:
        """Which of these SPIFFE IDs must be kept (see `Agents`): none for the agent of a node."""
        if self.has_joined(name):
            return self._joined.unnoted(name, identities)
        self.check_welcome(name)
        return frozenset()

    def note_identities(self, name: str, identities: Iterable[SpiffeID]) -> None:
        """Keep them (see `Agents`)."""
        self._joined.note_identities(name, identities)

    def note_svid(self, name: str, end: datetime) -> None:
        """Keep the end of an SVID (see `Agents`)."""
        self._joined.note_svid(name, end)

    def subscribe(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` after each change of the evictions (see `Agents`)."""
        return self._joined.subscribe(changed)


class PodRegistrations:
    """The `Registrations` of a cluster: from the file, and from the pods on each node. Lives on one event loop.

    The cost of a change on one node depends on what is on that node, not on the size of the cluster.

    Args:
        file: the registrations file.
        agents: tells which agents joined: for them the file alone counts.
        pods: the present pods, as watched.
        trust_domain: ours.
    """

    def __init__(
        self, file: RegistrationFile, agents: NodeAgents, pods: NodeView, *, trust_domain: TrustDomain
    ) -> None:
        self._file = file
        self._agents = agents
        self._pods = pods
        self._trust_domain = trust_domain
        self._histories: dict[str, RegistrationHistory] = {}
        self._streams: dict[str, int] = {}

    def history_of(self, agent: str) -> RegistrationHistory:
        """The tables for an agent (see `Registrations`). The history of a node is kept while a stream follows it."""
        if self._agents.has_joined(agent):
            return self._file.history
        if not self._pods.live and agent not in self._histories:
            raise NotReady(f"the API server is not heard at present: it is not known which pods are on {agent}")
        table = self._table(agent)
        if (history := self._histories.get(agent)) is not None:
            history.replace(table)
            return history
        history = RegistrationHistory(secrets.token_hex(8), table, kept=_REVISIONS_KEPT)
        if agent in self._streams:
            self._histories[agent] = history
        return history

    def follow(self, agent: str, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` after each change of what is for an agent (see `Registrations`)."""
        with ExitStack() as following:
            following.callback(self._left, agent)
            self._streams[agent] = self._streams.get(agent, 0) + 1
            following.callback(self._file.subscribe(changed))
            following.callback(self._pods.follow(agent, changed))
            return following.pop_all().close

    def grant_of(self, spiffe_id: SpiffeID, *, agent: str | None = None) -> Grant | None:
        """What is registered of a SPIFFE ID (see `Registrations`): by the file, or else by a pod on the node."""
        grant = self._file.grant_of(spiffe_id, agent=agent)
        if grant is not None or agent is None or self._agents.has_joined(agent):
            return grant
        if spiffe_id.namespace is None or spiffe_id.service_account is None:
            return None
        if not self._pods.live:
            raise NotReady(f"the API server is not heard at present: it is not known which pods are on {agent}")
        on_node = self._pods.on_node(agent, spiffe_id.namespace, spiffe_id.service_account)
        return Grant(spiffe_id) if on_node else None

    def _table(self, agent: str) -> RegistrationTable:
        of_file = self._file.table
        entries = [
            Registered(number, frozenset({agent}), registration)
            for number, registration in enumerate(of_file.of_agent(agent).values(), 1)
        ]
        known = of_file.of_agent(agent).keys()
        of_pods = (entry for entry in self._of_pods(agent, of_file) if entry.key not in known)
        return RegistrationTable((*entries, *of_pods))

    def _of_pods(self, agent: str, of_file: RegistrationTable) -> Iterator[Registered]:
        for account in sorted(self._pods.accounts_on(agent)):
            if valid_account(*account):
                registration = _registration(self._trust_domain, account)
                if (grant := of_file.grant_of(registration.spiffe_id, agent=agent)) is not None:
                    registration = _with(registration, grant)
                yield Registered(0, frozenset({agent}), registration)

    def _left(self, agent: str) -> None:
        self._streams[agent] -= 1
        if not self._streams[agent]:
            del self._streams[agent]
            self._histories.pop(agent, None)


def _registration(trust_domain: TrustDomain, account: Account) -> Registration:
    """The registration for the pods of a service account; the same on every node."""
    namespace, name = account
    selectors = {Selector(SELECTOR_TYPE, f"ns:{namespace}"), Selector(SELECTOR_TYPE, f"sa:{name}")}
    return Registration(SpiffeID.for_service_account(trust_domain, namespace, name), frozenset(selectors))


def _with(registration: Registration, grant: Grant) -> Registration:
    """The same with the file's lifetime and DNS names: an agent asks by SPIFFE ID alone, and so they must agree."""
    return Registration(registration.spiffe_id, registration.selectors, grant.ttl, grant.dns_names)
