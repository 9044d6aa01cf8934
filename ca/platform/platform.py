"""The Platform port: what the composition root needs from the platform that the CA runs on."""

from __future__ import annotations

from typing import Protocol

from prometheus_client.registry import CollectorRegistry

from ca.certificate_authority import CertificateAuthority, Settings
from ca.config import Config
from ca.metrics import Gauge
from istio_auth.daemon.alarm import Alarm
from istio_auth.daemon.lifecycle import Daemon


class Platform(Protocol):
    """An open platform; whoever opened it closes it."""

    @property
    def ca(self) -> CertificateAuthority:
        """The CA on it."""
        ...

    @property
    def shares_authority(self) -> bool:
        """Whether other processes change the state of the authority too."""
        ...

    def gauges(self) -> tuple[Gauge, ...]:
        """The platform's own metrics that are looked up when somebody asks."""
        ...

    def register(self, registry: CollectorRegistry) -> None:
        """Register the platform's other metrics."""
        ...

    def look_after(self, daemon: Daemon, alarm: Alarm) -> None:
        """Start the platform's own tasks that run as long as the daemon."""
        ...


def ca_settings(config: Config) -> Settings:
    """The part of the configuration that sets up the CA, whatever the platform."""
    return Settings(
        trust_domain=config.trust_domain,
        state_folder=config.state_folder,
        registrations=config.registrations,
        serving_names=config.serving_names,
        profile=config.signing.profile(),
        recovery_window=config.agents.recovery_window,
        renewal_needs_registration=config.agents.renewal_needs_registration,
        record_required=config.issuance_log_required,
    )
