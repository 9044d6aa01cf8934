"""The tokens that a sidecar takes: the policies of a file that are for its workload, and how keys are fetched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path

from istio_auth.envoy.spec import Mode, SidecarSpec
from istio_auth.envoy.token_rules import DEFAULT_REFRESH, TokenRules
from istio_auth.errors import ConfigurationError, IstioAuthError, MalformedError
from istio_auth.files import read_bounded
from istio_auth.pem import MAX_CERTIFICATES_BYTES, read_certificates
from istio_auth.policy.request_authentication import RequestAuthentication, Workload, not_for, rules_for
from istio_auth.spiffe_id import SpiffeID
from node_agent.sidecar.policy_file import read_request_authentications

_SYSTEM_CA_FILES = (
    "/etc/ssl/certs/ca-certificates.crt",  # Debian, Ubuntu, Alpine
    "/etc/pki/tls/certs/ca-bundle.crt",  # Fedora, RHEL
    "/etc/ssl/ca-bundle.pem",  # SUSE
)


def read_token_rules(
    path: Path,
    workload: SpiffeID,
    *,
    labels: Sequence[str],
    ca_file: Path | None,
    refresh: timedelta = DEFAULT_REFRESH,
    tell: Callable[[str], None],
) -> TokenRules:
    """The rules of the policies in a file that are for a workload.

    Rules whose issuers say themselves where their keys are get that from them, now: Envoy can fetch keys, and not ask
    where they are. An issuer that does not tell stays one of whom no token is taken.

    Args:
        path: the file, in YAML.
        workload: whose sidecar it is; its namespace is that of its SPIFFE ID.
        labels: its labels, each as `key=value`. Policies with a selector need them.
        ca_file: the authorities of servers that have key sets; None for those of the system.
        refresh: how often key sets are fetched anew.
        tell: hears of policies that are for others, and of issuers that do not tell.

    Raises:
        ConfigurationError: the file can not be used, or none of it is for the workload.
    """
    policies = read_request_authentications(path)
    here = Workload(workload.namespace or "", _labels(labels))
    for policy in policies:
        if policy.match_labels and not labels:
            raise ConfigurationError(
                f"{path}: policy {_named(policy)} is for certain workloads only: say which labels this one has"
            )
        if reason := not_for(here, policy):
            tell(f"policy {_named(policy)} is left out: {reason}")
    rules = rules_for(here, policies)
    if not rules:
        raise ConfigurationError(f"{path}: no rule in it is for {workload}, so that no token would be looked at")
    local = all(rule.jwks or rule.jwks_uri.startswith("http:") for rule in rules)
    authorities = None if local and ca_file is None else _ca_file(ca_file)
    if any(not rule.jwks and not rule.jwks_uri for rule in rules):
        from node_agent.sidecar.key_discovery import with_key_uris  # here, for most have no need of an HTTP client

        rules = with_key_uris(rules, authorities, tell)
    return TokenRules(rules, str(authorities or ""), refresh)


def cautions(spec: SidecarSpec) -> Iterator[str]:
    """What an operator who asked for tokens may not expect."""
    if spec.tokens is None:
        return
    for inbound in spec.inbound:
        if not inbound.protocol.is_http:
            yield f"{inbound.label} is TCP: no token is looked for there"
        elif inbound.mode is not Mode.STRICT:
            yield f"{inbound.label} takes plaintext, where a token vouches for no peer: whoever read one can use it"
    for uri in sorted({uri for uri in spec.tokens.key_uris if not uri.startswith("https:")}):
        yield f"keys from {uri} come without TLS: whoever stands in between can make tokens"


def _labels(texts: Sequence[str]) -> Mapping[str, str]:
    labels: dict[str, str] = {}
    for text in texts:
        name, separator, value = text.partition("=")
        if not name or not separator or name in labels:
            raise ConfigurationError(f"{text[:100]!r} is no label, or its name comes twice: write for instance app=web")
        labels[name] = value
    return labels


def _named(policy: RequestAuthentication) -> str:
    return "/".join(filter(None, (policy.namespace, policy.name))) or "without a name"


def _ca_file(told: Path | None) -> Path:
    if told is None:
        found = next((path for name in _SYSTEM_CA_FILES if (path := Path(name)).exists()), None)
        if found is None:
            raise ConfigurationError("this system has no file of authorities in the usual places: name one by jwks-ca")
        return found
    try:
        read_certificates(read_bounded(told, MAX_CERTIFICATES_BYTES))
    except MalformedError as error:
        raise ConfigurationError(f"{told}: {error}") from error
    except IstioAuthError as error:
        raise ConfigurationError(str(error)) from error
    return told.absolute()
