"""RequestAuthentication: the issuers whose tokens the workloads of a namespace accept.

Istio's policy (`security.istio.io/v1`, and `v1beta1`, which is the same), with its fields and its rules of validation.
Unknown fields are refused. As in Istio, the namespace and the labels of a policy decide for which workloads it is; one
in the root namespace is for all namespaces. A policy with a `targetRef` is for a gateway or waypoint, and so never for
a workload's own sidecar.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import NamedTuple

from istio_auth.clock import parse_duration
from istio_auth.errors import ConfigurationError
from istio_auth.policy.document import Fields
from istio_auth.policy.jwt_rule import ClaimToHeader, JWTHeader, JWTRule

KIND = "RequestAuthentication"
ROOT_NAMESPACE = "istio-system"  # Istio's; its policies are for all namespaces
_VERSIONS = ("security.istio.io/v1", "security.istio.io/v1beta1")
_TARGETS = {  # what a targetRef may name, by kind: its group
    "Gateway": "gateway.networking.k8s.io",
    "GatewayClass": "gateway.networking.k8s.io",
    "Service": "",
    "ServiceEntry": "networking.istio.io",
}
_MAX_TARGETS = 16


class TargetRef(NamedTuple):
    """What a policy for a gateway or waypoint is attached to."""

    kind: str
    name: str
    group: str = ""


@dataclass(frozen=True, slots=True)
class RequestAuthentication:
    """One policy.

    Args:
        jwt_rules: the issuers.
        name: its name, for people.
        namespace: its namespace; empty if the document does not say, and then it is for every namespace.
        match_labels: the labels of its workloads; if empty, it is for all workloads of the namespace.
        target_refs: the gateways, services or waypoints that it is for instead of workloads.
    """

    jwt_rules: tuple[JWTRule, ...] = ()
    name: str = ""
    namespace: str = ""
    match_labels: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    target_refs: tuple[TargetRef, ...] = ()


class Workload(NamedTuple):
    """A workload, as far as that decides which policies are for it."""

    namespace: str
    labels: Mapping[str, str]


def rules_for(workload: Workload, policies: Iterable[RequestAuthentication]) -> tuple[JWTRule, ...]:
    """The rules of all policies that are for a workload."""
    return tuple(rule for policy in policies if not not_for(workload, policy) for rule in policy.jwt_rules)


def not_for(workload: Workload, policy: RequestAuthentication) -> str:
    """Why a policy is not for a workload; empty if it is."""
    if policy.target_refs:
        return "it is for gateways or waypoints (targetRef)"
    if policy.namespace not in ("", ROOT_NAMESPACE, workload.namespace):
        return f"it is for the namespace {policy.namespace}"
    if differing := sorted(policy.match_labels.items() - workload.labels.items()):
        return f"it is for workloads with the label {'='.join(differing[0])}"
    return ""


def parse_request_authentication(document: object) -> RequestAuthentication:
    """The policy in a parsed Kubernetes document.

    Raises:
        ConfigurationError: it is no such policy, or breaks a rule; the message has the path of the field.
    """
    top = Fields(document)
    version, kind = top.text("apiVersion"), top.text("kind")
    if kind != KIND:
        raise ConfigurationError(f"kind: expected {KIND}, found {kind[:60]!r}: nothing else is enforced here")
    if version not in _VERSIONS:
        raise ConfigurationError(f"apiVersion: expected {' or '.join(_VERSIONS)}, found {version[:60]!r}")
    top.ignore("status")
    metadata = top.nested("metadata") or Fields({}, "metadata")
    spec = top.nested("spec") or Fields({}, "spec")
    top.end()
    name, namespace = metadata.text("name"), metadata.text("namespace")  # the rest is for Kubernetes' own use
    labels, targets = _scope(spec)
    rules = tuple(_rule(fields) for fields in spec.rows("jwtRules"))
    return spec.make(lambda: RequestAuthentication(rules, name, namespace, labels, targets))


def _scope(spec: Fields) -> tuple[Mapping[str, str], tuple[TargetRef, ...]]:
    selector, single, several = spec.nested("selector"), spec.nested("targetRef"), spec.rows("targetRefs")
    if sum(map(bool, (selector, single, several))) > 1:
        raise ConfigurationError(f"{spec.path}: selector, targetRef and targetRefs exclude each other: keep one")
    if len(several) > _MAX_TARGETS:
        raise ConfigurationError(f"{spec.path}.targetRefs: at most {_MAX_TARGETS}, found {len(several)}")
    labels: Mapping[str, str] = {}
    if selector:
        labels = (selector.nested("matchLabels") or Fields({})).every_text()
        selector.end()
    if any(not name or "*" in name + value for name, value in labels.items()):
        raise ConfigurationError(f"{spec.path}.selector.matchLabels: labels are compared as they stand, without '*'")
    return labels, tuple(map(_target, (single,) if single else several))


def _target(fields: Fields) -> TargetRef:
    target = TargetRef(fields.text("kind"), fields.text("name"), fields.text("group"))
    if fields.text("namespace"):
        raise ConfigurationError(f"{fields.at('namespace')}: a policy is for its own namespace: take this out")
    if _TARGETS.get(target.kind) != target.group:
        raise ConfigurationError(f"{fields.path}: kind and group are of none of {', '.join(_TARGETS)}")
    if not target.name:
        raise ConfigurationError(f"{fields.at('name')}: must be set")
    fields.end()
    return target


def _rule(fields: Fields) -> JWTRule:
    uri, alias = fields.text("jwksUri"), fields.text("jwks_uri")
    if uri and alias:
        raise ConfigurationError(f"{fields.path}: jwksUri and jwks_uri are the same: keep jwksUri")
    told: dict[str, str] = {name: fields.text(name) for name in ("issuer", "jwks", "outputPayloadToHeader", "timeout")}
    lists = {name: fields.texts(name) for name in ("audiences", "fromParams", "fromCookies", "spaceDelimitedClaims")}
    headers = tuple(_header(one) for one in fields.rows("fromHeaders"))
    outputs = tuple(_output(one) for one in fields.rows("outputClaimToHeaders"))
    forward = fields.truth("forwardOriginalToken")
    return fields.make(
        lambda: JWTRule(
            issuer=told["issuer"],
            audiences=lists["audiences"],
            jwks=told["jwks"],
            jwks_uri=uri or alias,
            from_headers=headers,
            from_params=lists["fromParams"],
            from_cookies=lists["fromCookies"],
            forward_original_token=forward,
            output_payload_to_header=told["outputPayloadToHeader"],
            output_claim_to_headers=outputs,
            space_delimited_claims=lists["spaceDelimitedClaims"],
            timeout=parse_duration(told["timeout"]) if told["timeout"] else None,
        )
    )


def _header(fields: Fields) -> JWTHeader:
    header = JWTHeader(fields.text("name"), fields.text("prefix"))
    if not header.name:
        raise ConfigurationError(f"{fields.at('name')}: must be set")
    fields.end()
    return header


def _output(fields: Fields) -> ClaimToHeader:
    output = ClaimToHeader(fields.text("header"), fields.text("claim"))
    for name, value in output._asdict().items():
        if not value:
            raise ConfigurationError(f"{fields.at(name)}: must be set")
    fields.end()
    return output
