"""Turns the settings for Kubernetes into what its parts take. Pure."""

from __future__ import annotations

from datetime import timedelta

from ca.config import Config
from ca.controller.label_selector import LabelSelector
from ca.controller.namespaces import NamespaceRules
from ca.controller.renewal import RenewalRule
from ca.platform.kubernetes.callers.impersonation import NodeAccounts
from ca.platform.kubernetes.leader.candidate import LeaseTiming
from ca.platform.kubernetes.requests.signer import Signer


def check(config: Config) -> None:
    """Check the settings, so that a bad one is reported before anything is done.

    Raises:
        ConfigurationError: one of them makes no sense.
    """
    lease_timing(config.kubernetes.lease)
    namespace_rules(config, "")
    renewal_rule(config)
    signer(config)
    NodeAccounts.parse(config.kubernetes.tokens.node_accounts)


def lease_timing(lease: timedelta) -> LeaseTiming:
    """The timing for a lease: a leader stops after two thirds of it, and tries to renew it about five times until then.

    Raises:
        ConfigurationError: it is no number of whole seconds, or less than one.
    """
    return LeaseTiming(lease, lease * 2 / 3, lease * 2 / 15)


def namespace_rules(config: Config, namespace: str) -> NamespaceRules:
    """Which namespaces are managed.

    Args:
        config: the configuration.
        namespace: the namespace of the CA.

    Raises:
        ConfigurationError: the selector is no label selector.
    """
    settings = config.kubernetes.controller
    selector = LabelSelector.parse(settings.namespace_selector) if settings.namespace_selector else None
    return NamespaceRules(namespace, settings.enable_by_default, selector, frozenset(settings.namespaces))


def renewal_rule(config: Config) -> RenewalRule:
    """When a certificate in a secret is renewed.

    Raises:
        ConfigurationError: the values put the renewal outside its lifetime.
    """
    settings = config.kubernetes.controller
    return RenewalRule(settings.grace_ratio, settings.min_grace)


def signer(config: Config) -> Signer:
    """The signer that answers certificate requests.

    Raises:
        ConfigurationError: Kubernetes does not take its name.
    """
    return Signer(config.kubernetes.signer, config.trust_domain, config.signing.profile())
