"""CertificateAuthority: what a CA is made of on every platform, around an authority that the platform opened.

<state folder>/issuance.log       every certificate
<state folder>/tokens/            join tokens
<state folder>/agents/            enrolled agents, and evictions
<registrations file>              which identities each agent may ask for

Standalone, that is all there is. Kubernetes adds another proof, the token of a service account, and rules for who may
have what by it (`ca.platform.kubernetes`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from ca.admission import Admission
from ca.agents.agent import Agents
from ca.agents.enrolment import JoinTokenProof
from ca.agents.folder import AgentFolder
from ca.agents.join_token import JoinTokenFolder
from ca.agents.recovery import DEFAULT_WINDOW, Recovery
from ca.attest import AllProofs, Proof
from ca.audit import Audit
from ca.authority.authority import Authority
from ca.issuance_log import FileIssuanceLog
from ca.issuer import Issuer, ReservedNames
from ca.metrics import Counts, Gauge
from ca.peer_certificate import PeerCertificate
from ca.profile import IssuanceProfile
from ca.registrations.entitlement import EntitledIdentities
from ca.registrations.file import RegistrationFile
from ca.registrations.rules import RegistrationRules
from ca.registrations.table import Registrations
from ca.registry import Registry
from ca.service.istio import IstioCertificateService
from ca.service.node import NodeService
from ca.service.sync import Sync
from ca.service.sync_book import SyncBook
from istio_auth.clock import Clock
from istio_auth.errors import IstioAuthError, NotAuthorized, NotReady
from istio_auth.files import private_folder
from istio_auth.rpc.method import Service
from istio_auth.spiffe_id import TrustDomain


@dataclass(frozen=True, slots=True)
class Settings:
    """How a CA is set up, whatever the platform.

    Args:
        trust_domain: whose authority it is.
        state_folder: where its files are.
        registrations: the registrations file; it need not be there.
        serving_names: the DNS names and addresses of the CA's own server, which nobody is granted.
        profile: how long certificates live.
        recovery_window: how long after the end of its last SVID an agent can come back.
        renewal_needs_registration: whether a workload may renew its certificate only while it is registered.
        record_required: whether a certificate that can not be put on record is withheld.
    """

    trust_domain: TrustDomain
    state_folder: Path
    registrations: Path
    serving_names: Sequence[str] = ()
    profile: IssuanceProfile = field(default_factory=IssuanceProfile)
    recovery_window: timedelta = DEFAULT_WINDOW
    renewal_needs_registration: bool = False
    record_required: bool = True


class CertificateAuthority:
    """The CA's ports with their adapters, and the services over them. Lives on one event loop; opening it blocks.

    Args:
        settings: how it is set up.
        authority: who signs.
        clock: tells the time.
        bearers: the proofs by bearer token that this platform has beside join tokens.
        registry: makes the registry of this platform from the one that every platform has.
        nodes: makes the agents and registrations of this platform from those that every platform has.

    Attributes:
        authority, agents, registrations, issuer, admission, sync_book, counts: the parts.

    Raises:
        ConfigurationError: a file or folder can not be used.
        NotReady: one could not be looked at.
    """

    def __init__(
        self,
        settings: Settings,
        authority: Authority,
        clock: Clock,
        *,
        bearers: Sequence[Proof] = (),
        registry: Callable[[Registry], Registry] = lambda entitled: entitled,
        nodes: Callable[[AgentFolder, RegistrationFile], tuple[Agents, Registrations]] = lambda *ours: ours,
    ) -> None:
        self._settings = settings
        self._clock = clock
        self._closed = False
        folder, domain = private_folder(settings.state_folder), settings.trust_domain
        self.counts = Counts()
        self.sync_book = SyncBook()
        self.authority = authority
        self.agents = AgentFolder(folder / "agents")
        reserved = ReservedNames.of(domain, settings.serving_names)
        rules = RegistrationRules(domain, settings.profile.max_ttl, reserved.check)
        self.registrations = RegistrationFile(settings.registrations, rules)
        self._welcome, self._registered = nodes(self.agents, self.registrations)
        self._log = FileIssuanceLog(folder / "issuance.log", required=settings.record_required)
        self.issuer = Issuer(self.authority, settings.profile, self._log, clock, reserved, threads=1)
        self._tokens = JoinTokenFolder(folder / "tokens")
        entitled = EntitledIdentities(
            domain,
            self._registered,
            self.agents.evictions,
            longest_ttl=settings.profile.max_ttl,
            renewal_needs_registration=settings.renewal_needs_registration,
        )
        self.admission = Admission(
            attestor=AllProofs(
                PeerCertificate(domain, self._welcome, clock),
                # Join tokens last: this proof refuses every bearer token that is none.
                [*bearers, JoinTokenProof(domain, self._tokens, self.agents, clock)],
            ),
            registry=registry(entitled),
            issuer=self.issuer,
            agents=self._welcome,
            audit=Audit(self.counts),
            clock=clock,
        )
        self.agents.subscribe(self._forget_evicted)

    def services(self) -> tuple[Service, ...]:
        """The services, to be served."""
        recovery = Recovery(
            self._settings.trust_domain, self.agents, self._clock, window=self._settings.recovery_window
        )
        sync = Sync(
            admission=self.admission,
            authority=self.authority,
            registrations=self._registered,
            agents=self._welcome,
            book=self.sync_book,
            clock=self._clock,
        )
        return (
            IstioCertificateService(self.admission, self.authority).service(),
            NodeService(self.admission, recovery, sync).service(),
        )

    async def reload_if_changed(self) -> None:
        """Load the registrations and evictions again if somebody changed them. Cheap if not; to be called often."""
        self.agents.evictions()
        self._forget_gone()
        await self.registrations.reload_if_changed()

    def sweep(self) -> None:
        """Remove join tokens that ended long ago. Blocks."""
        self._tokens.sweep(self._clock.now())

    def reopen_log(self) -> None:
        """Go on in a new issuance log if somebody renamed the old one. Blocks.

        Raises:
            ConfigurationError, NotReady: the new file can not be used; the old one stays in use.
        """
        self._log.reopen()

    def not_ready(self) -> str | None:
        """Why no certificate could be issued now; None if one could."""
        try:
            self.agents.evictions()
        except IstioAuthError as error:
            return str(error)
        return self.issuer.ready()

    def warnings(self) -> tuple[str, ...]:
        """What an operator should hear although the CA works."""
        found = list(self.authority.warnings(self._clock.now(), longest_ttl=self._settings.profile.max_ttl))
        if self.registrations.fault is not None:
            found.append(f"the last good registrations are in use: {self.registrations.fault}")
        return tuple(found)

    async def close(self) -> None:
        """Finish what was begun, and take no more. May be called again."""
        if self._closed:
            return
        self._closed = True
        await self.admission.close()
        await self.issuer.close()
        self._log.close()

    def gauges(self) -> tuple[Gauge, ...]:
        """The metrics that are looked up when somebody asks."""
        registrations = self.registrations
        return (
            Gauge.single(
                "citadel_server_root_cert_expiry_timestamp", "When the authority ends, in Unix time.", self._end
            ),
            Gauge.single("istio_auth_ca_authority_remaining_seconds", "How long the authority lives.", self._remaining),
            Gauge.single("istio_auth_ca_bundle_sequence", "Sequence of the bundle.", lambda: self._sequence),
            Gauge.single("istio_auth_ca_registrations", "Registrations in force.", lambda: len(registrations.table)),
            Gauge.single(
                "istio_auth_ca_registrations_revision", "Their revision.", lambda: registrations.history.revision
            ),
            Gauge.single(
                "istio_auth_ca_registrations_stale",
                "1 if the registrations file is bad and the last good one in use.",
                lambda: registrations.fault is not None,
            ),
            Gauge.single(
                "istio_auth_ca_registrations_reload_failures",
                "How often a changed registrations file was refused.",
                lambda: registrations.failures,
            ),
            Gauge.single(
                "istio_auth_ca_agents_evicted", "Agents shut out.", lambda: len(self.agents.evictions().since)
            ),
            Gauge.single("istio_auth_ca_agents_synced", "Agents with an open stream.", self._streaming),
            Gauge(
                "istio_auth_ca_agent_sync_lag",
                "Consumers of an agent, itself included, that have not taken the bundle.",
                self._lag,
                ("agent",),
            ),
        )

    @property
    def _sequence(self) -> int:
        return self.authority.bundle.sequence or 0

    def _end(self) -> float:
        return self.authority.not_after.timestamp()

    def _remaining(self) -> float:
        return self.authority.remaining(self._clock.now()).total_seconds()

    def _streaming(self) -> int:
        return sum(entry.streams > 0 for entry in list(self.sync_book.entries.values()))

    def _lag(self) -> Mapping[tuple[str, ...], float]:
        return {(agent,): entry.lag(self._sequence) for agent, entry in list(self.sync_book.entries.items())}

    def _forget_gone(self) -> None:
        """Forget what agents told us that are away and not welcome any more: their nodes may be gone."""
        for agent in [agent for agent, entry in self.sync_book.entries.items() if not entry.streams]:
            try:
                self._welcome.check_welcome(agent)
            except NotAuthorized:
                self.sync_book.forget(agent)
            except NotReady:
                return  # nobody can tell now; the next call will

    def _forget_evicted(self) -> None:
        for agent in self.agents.evictions().since:
            self.sync_book.forget(agent)
