"""The settings of `istio-ca`: what each means, and its default."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from datetime import timedelta
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Final

from ca.agents.recovery import DEFAULT_WINDOW
from ca.authority.authority import TEN_YEARS
from ca.authority.plugged import SETTLING
from ca.profile import IssuanceProfile
from istio_auth.clock import in_words
from istio_auth.daemon.command import LogSettings
from istio_auth.daemon.folders import Folders
from istio_auth.daemon.settings import Setting
from istio_auth.errors import ConfigurationError
from istio_auth.host_port import HostPort
from istio_auth.registration import check_dns_name
from istio_auth.spiffe_id import TrustDomain

PREFIX: Final = "ISTIO_AUTH_CA__"
FILE_NAME: Final = "ca.toml"
_TRUST_DOMAIN: Final = TrustDomain("cluster.local")
_LISTEN: Final = HostPort("", 15012)  # where istiod has it
_METRICS_LISTEN: Final = HostPort("", 15014)  # the same
_SERVING_NAMES: Final = ("localhost", "istiod.istio-system.svc", "istio-ca.istio-system.svc", "127.0.0.1", "::1")
_PROFILE: Final = IssuanceProfile()
_LOG: Final = LogSettings()
_SIGNER: Final = "istio-auth.io/workload"
_LONGEST_REVIEW: Final = timedelta(seconds=30)


class Platform(enum.Enum):
    """Where the CA runs."""

    STANDALONE = "standalone"
    KUBERNETES = "kubernetes"


class TokenVerification(enum.Enum):
    """How the tokens of service accounts are verified."""

    REVIEW = "review"  # the API server is asked about each
    OFFLINE = "offline"  # by its published keys and the watched objects; it is asked only if these do not suffice


def state_folder() -> Path:
    """The state folder of the CA that the user of this process runs."""
    return Folders.here().state / "ca"


@dataclass(frozen=True, slots=True)
class SigningSettings:
    """Lifetimes of certificates.

    Raises:
        ConfigurationError: the values contradict each other.
    """

    default_ttl: Annotated[
        timedelta, Setting("how long a certificate lives if its caller does not say", "--default-ttl")
    ] = _PROFILE.default_ttl
    max_ttl: Annotated[timedelta, Setting("how long one may live at most", "--max-ttl")] = _PROFILE.max_ttl
    clamp_excess_ttl: Annotated[bool, Setting("give the longest life to who asks for more, instead of refusing")] = (
        _PROFILE.clamp_excess_ttl
    )
    backdate: Annotated[timedelta, Setting("how far it begins in the past, for peers whose clock is late")] = (
        _PROFILE.backdate
    )

    def __post_init__(self) -> None:
        self.profile()

    def profile(self) -> IssuanceProfile:
        """The lifetimes as the issuer takes them."""
        return IssuanceProfile(
            default_ttl=self.default_ttl,
            max_ttl=self.max_ttl,
            backdate=self.backdate,
            clamp_excess_ttl=self.clamp_excess_ttl,
        )


@dataclass(frozen=True, slots=True)
class AuthoritySettings:
    """Who signs."""

    folder: Annotated[
        Path | None,
        Setting(
            "folder of a plugged-in CA (ca-cert.pem, ... or tls.crt, ...); without one a root is made", "--ca-folder"
        ),
    ] = None
    root_lifetime: Annotated[timedelta, Setting("how long a root that is made here lives", "--root-lifetime")] = (
        TEN_YEARS
    )


@dataclass(frozen=True, slots=True)
class AgentSettings:
    """Node agents and what they ask for."""

    recovery_window: Annotated[
        timedelta, Setting("how long after the end of its SVID an agent can come back with its node key")
    ] = DEFAULT_WINDOW
    renewal_needs_registration: Annotated[
        bool, Setting("let a workload renew its own certificate only while it is registered")
    ] = False


@dataclass(frozen=True, slots=True)
class LimitSettings:
    """How much is taken on at once; the rest is refused.

    Raises:
        ConfigurationError: a limit is less than one.
    """

    connections: Annotated[int, Setting("connections open at once")] = 10_000
    connections_per_address: Annotated[int, Setting("of these, from one address")] = 2_000
    requests: Annotated[int, Setting("requests being answered at once")] = 256
    connection_age: Annotated[timedelta, Setting("after about this long a caller has to connect anew")] = timedelta(
        minutes=30
    )

    def __post_init__(self) -> None:
        if min(self.connections, self.connections_per_address, self.requests) < 1:
            raise ConfigurationError("a limit is at least 1")


@dataclass(frozen=True, slots=True)
class TokenSettings:
    """Service accounts that call with their tokens.

    Raises:
        ConfigurationError: the values contradict each other.
    """

    audiences: Annotated[tuple[str, ...], Setting("audiences of which a token must have one")] = ("istio-ca",)
    verification: Annotated[
        TokenVerification, Setting("review by the API server, or offline", "--token-verification")
    ] = TokenVerification.REVIEW
    review_lasts: Annotated[timedelta, Setting("how long an answer of the API server is good for the same token")] = (
        timedelta(seconds=5)
    )
    stale_after: Annotated[
        timedelta, Setting("how old what is watched may be for offline verification and impersonation")
    ] = timedelta(minutes=5)
    node_accounts: Annotated[
        tuple[str, ...], Setting("namespace/name of service accounts that may ask for identities of pods on their node")
    ] = ()

    def __post_init__(self) -> None:
        if not self.audiences or not all(self.audiences):
            raise ConfigurationError("a token must have an audience: name at least one")
        if not timedelta() <= self.review_lasts <= _LONGEST_REVIEW:
            raise ConfigurationError(
                f"an answer of the API server is good for at most {in_words(_LONGEST_REVIEW)}: a deleted pod's token "
                "must die soon"
            )


@dataclass(frozen=True, slots=True)
class ControllerSettings:
    """Certificates of service accounts, kept in secrets.

    Raises:
        ConfigurationError: a value makes no sense.
    """

    enabled: Annotated[bool, Setting("keep a secret with a certificate for each service account")] = True
    namespaces: Annotated[tuple[str, ...], Setting("namespaces that are always managed")] = ()
    namespace_selector: Annotated[str, Setting("labels that a namespace must have to be managed; empty for any")] = ""
    enable_by_default: Annotated[bool, Setting("manage namespaces whose labels say nothing of it")] = True
    grace_ratio: Annotated[float, Setting("the share of its life at whose rest a certificate is renewed")] = 0.5
    min_grace: Annotated[timedelta, Setting("but no later than so long before its end")] = timedelta(minutes=10)
    workers: Annotated[int, Setting("secrets being worked on at once")] = 8
    resync: Annotated[timedelta, Setting("how often everything is looked at, changed or not")] = timedelta(minutes=10)

    def __post_init__(self) -> None:
        if not 0 < self.grace_ratio < 1:
            raise ConfigurationError("the grace ratio is a share between 0 and 1")
        if self.workers < 1:
            raise ConfigurationError("there must be a worker")


@dataclass(frozen=True, slots=True)
class KubernetesSettings:
    """What holds on Kubernetes alone."""

    kubeconfig: Annotated[
        Path | None, Setting("the kubeconfig; without one, the credentials of the pod", "--kubeconfig")
    ] = None
    namespace: Annotated[str, Setting("the namespace of the CA itself; empty for the pod's own")] = ""
    signer: Annotated[str, Setting("the signer name for certificate requests and trust bundles")] = _SIGNER
    sign_requests: Annotated[bool, Setting("sign CertificateSigningRequests and PodCertificateRequests")] = True
    settle: Annotated[timedelta, Setting("how long a new root must be published before it signs")] = SETTLING
    lease: Annotated[timedelta, Setting("how long a leader that falls silent stays the leader")] = timedelta(seconds=15)
    tokens: TokenSettings = TokenSettings()
    controller: ControllerSettings = ControllerSettings()


@dataclass(frozen=True, slots=True)
class Config:
    """All of it.

    Raises:
        ConfigurationError: a serving name is not valid in a certificate, or a root would end before what it issues.
    """

    trust_domain: Annotated[TrustDomain, Setting("whose CA this is")] = _TRUST_DOMAIN
    platform: Annotated[Platform, Setting("standalone or kubernetes")] = Platform.STANDALONE
    listen: Annotated[HostPort, Setting("where to serve gRPC over TLS")] = _LISTEN
    metrics_listen: Annotated[HostPort, Setting("where to serve /healthz, /readyz and /metrics")] = _METRICS_LISTEN
    serving_names: Annotated[tuple[str, ...], Setting("DNS names and addresses that callers know this server by")] = (
        _SERVING_NAMES
    )
    state_folder: Annotated[Path, Setting("where authority, issuance log, join tokens and agents are kept")] = field(
        default_factory=state_folder
    )
    registrations: Annotated[Path, Setting("the file that says what each agent may ask for")] = field(
        default_factory=lambda: Folders.here().config / "registrations.toml"
    )
    issuance_log_required: Annotated[bool, Setting("release no certificate that could not be put on record")] = True
    authority: AuthoritySettings = AuthoritySettings()
    signing: SigningSettings = SigningSettings()
    agents: AgentSettings = AgentSettings()
    limits: LimitSettings = LimitSettings()
    kubernetes: KubernetesSettings = KubernetesSettings()
    log: LogSettings = _LOG

    def __post_init__(self) -> None:
        if self.authority.root_lifetime < self.signing.default_ttl:
            raise ConfigurationError(
                f"a root that lives {in_words(self.authority.root_lifetime)} would end before what it issues, which "
                f"lives {in_words(self.signing.default_ttl)}"
            )
        for name in self.serving_names:
            if not _is_address(name):
                check_dns_name(name)


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
