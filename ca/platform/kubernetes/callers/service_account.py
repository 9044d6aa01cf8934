"""ServiceAccountCaller: who a service-account token speaks for, by the API server's review or by its verified claims.

Both ways give the same value for the same token. Whatever is missing or ambiguous is refused, with the reason for the
log: a user who is no service account, an answer without an audience, a pod without its UID or its name, a name that
Kubernetes would not give.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

from ca.attest import Attested
from ca.platform.kubernetes.api.refusals import without_tokens
from istio_auth.errors import NotAuthenticated
from istio_auth.registration import Selector
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.strict_json import JSON
from istio_auth.tokens import Claims, FrozenJSON

METHOD = "kubernetes-token"
SELECTOR_TYPE = "k8s"

_GROUP = "system:serviceaccounts"
_EXTRA = "authentication.kubernetes.io/"
_NAMESPACE = re.compile(r"(?=.{1,63}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?")  # DNS label, RFC 1123
_NAME = re.compile(r"(?=.{1,253}\Z)[a-z0-9]([a-z0-9-]*[a-z0-9])?(\.[a-z0-9]([a-z0-9-]*[a-z0-9])?)*")  # DNS subdomain
_OPAQUE = re.compile(r"[\x21-\x7e]{1,256}")  # UIDs and credential ids


@dataclass(frozen=True, slots=True)
class ServiceAccountCaller:
    """The service account behind a token, and what the token is bound to. What the token does not say is empty.

    Args:
        namespace: of the service account.
        service_account: its name.
        service_account_uid: its UID.
        pod_name: the pod that the token was given to.
        pod_uid: the UID of that pod.
        node_name: the node of that pod when the token was made, or the node that the token is bound to.
        node_uid: the UID of that node.
        credential_id: the token's own name as the audit log of the API server has it, `JTI=...`.
    """

    namespace: str
    service_account: str
    service_account_uid: str = ""
    pod_name: str = ""
    pod_uid: str = ""
    node_name: str = ""
    node_uid: str = ""
    credential_id: str = ""

    def __post_init__(self) -> None:
        if not _NAMESPACE.fullmatch(self.namespace):
            raise NotAuthenticated(f"{self.namespace[:100]!a} is no name of a namespace")
        if not _NAME.fullmatch(self.service_account):
            raise NotAuthenticated(f"{self.service_account[:100]!a} is no name of a service account")
        if bool(self.pod_name) != bool(self.pod_uid) or (self.node_uid and not self.node_name):
            raise NotAuthenticated(f"the token of {self} is bound to half a pod or node: a name or a UID is missing")
        for name in filter(None, (self.pod_name, self.node_name)):
            if not _NAME.fullmatch(name):
                raise NotAuthenticated(f"{name[:100]!a} is no name of a pod or node")
        for opaque in filter(None, (self.service_account_uid, self.pod_uid, self.node_uid, self.credential_id)):
            if not _OPAQUE.fullmatch(opaque):
                raise NotAuthenticated(f"{opaque[:100]!a} is no UID and no id of a token")

    def spiffe_id(self, trust_domain: TrustDomain) -> SpiffeID:
        """Its SPIFFE ID."""
        return SpiffeID.for_service_account(trust_domain, self.namespace, self.service_account)

    def selectors(self) -> frozenset[Selector]:
        """What was observed of it, as selectors in the form that registrations use."""
        observed = {
            "ns": self.namespace,
            "sa": self.service_account,
            "node": self.node_name,
            "pod": self.pod_name,
            "pod-uid": self.pod_uid,
        }
        return frozenset(Selector(SELECTOR_TYPE, f"{name}:{value}") for name, value in observed.items() if value)

    def attested(self, trust_domain: TrustDomain, *, address: str = "") -> Attested:
        """The attested caller, proven by its token.

        Args:
            trust_domain: ours.
            address: where it calls from.
        """
        details = {
            "address": address,
            "pod": f"{self.namespace}/{self.pod_name}" if self.pod_name else "",
            "pod_uid": self.pod_uid,
            "node": self.node_name,
            "token": self.credential_id,
        }
        return Attested(
            self.spiffe_id(trust_domain),
            METHOD,
            self.selectors(),
            {name: value for name, value in details.items() if value},
            caller=self,
        )

    def __str__(self) -> str:
        return f"{self.namespace}/{self.service_account}"


def caller_of_review(status: Mapping[str, JSON], audiences: Collection[str]) -> ServiceAccountCaller:
    """Whom the API server found behind a token (`status` of a TokenReview, authentication.k8s.io/v1).

    Args:
        status: what the API server answered.
        audiences: the audiences that were asked for; the answer must confirm one of them.

    Raises:
        NotAuthenticated: the token is nobody's, no service account's, or not for us.
    """
    if error := status.get("error"):
        raise NotAuthenticated(f"the API server refuses the token: {without_tokens(str(error))[:300]!a}")
    if status.get("authenticated") is not True:
        raise NotAuthenticated("the API server does not know the token")
    _check_audiences(status.get("audiences"), audiences)
    user = status.get("user")
    if not isinstance(user, dict):
        raise NotAuthenticated("the API server says nothing of the user of the token")
    return caller_of_user(user)


def caller_of_user(user: Mapping[str, JSON]) -> ServiceAccountCaller:
    """The service account behind a user, in the form that a TokenReview and a CertificateSigningRequest have.

    Args:
        user: its `username`, `uid`, `groups` and `extra`.

    Raises:
        NotAuthenticated: the user is no service account.
    """
    username, groups, extra = user.get("username"), user.get("groups"), user.get("extra") or {}
    if not isinstance(groups, list) or _GROUP not in groups:
        raise NotAuthenticated(f"the user {str(username)[:200]!a} of the token is not of the group {_GROUP}")
    if not isinstance(extra, dict):
        raise NotAuthenticated("what the API server says besides of the user of the token is no object")
    namespace, name = _account(username)
    return ServiceAccountCaller(
        namespace,
        name,
        _text(user, "uid"),
        pod_name=_one(extra, "pod-name"),
        pod_uid=_one(extra, "pod-uid"),
        node_name=_one(extra, "node-name"),
        node_uid=_one(extra, "node-uid"),
        credential_id=_one(extra, "credential-id"),
    )


def caller_of_claims(claims: Claims) -> ServiceAccountCaller:
    """Whom the verified claims of a token speak for. They do not tell whether pod and service account still exist.

    Raises:
        NotAuthenticated: the token is no service account's, or its claims contradict each other.
    """
    said = claims.members.get("kubernetes.io")
    if not isinstance(said, Mapping):
        raise NotAuthenticated("the token says nothing about Kubernetes")
    namespace, name = _account(claims.subject)
    account, pod, node = _named(said, "serviceaccount"), _named(said, "pod"), _named(said, "node")
    if (_text(said, "namespace"), _text(account, "name")) != (namespace, name):
        raise NotAuthenticated(f"the token is of {claims.subject[:200]!a} and speaks of another service account")
    return ServiceAccountCaller(
        namespace,
        name,
        _text(account, "uid"),
        pod_name=_text(pod, "name"),
        pod_uid=_text(pod, "uid"),
        node_name=_text(node, "name"),
        node_uid=_text(node, "uid"),
        credential_id=f"JTI={claims.token_id}" if claims.token_id else "",
    )


def valid_account(namespace: str, name: str) -> bool:
    """Whether Kubernetes could have a service account of this name."""
    return bool(_NAMESPACE.fullmatch(namespace) and _NAME.fullmatch(name))


def _check_audiences(confirmed: JSON, wanted: Collection[str]) -> None:
    if not isinstance(confirmed, list) or not confirmed:
        raise NotAuthenticated("the token was accepted without regard to its audience: it is for the API server only")
    if not any(isinstance(audience, str) and audience in wanted for audience in confirmed):
        meant = ", ".join(f"{str(audience)[:100]!a}" for audience in confirmed[:5])
        raise NotAuthenticated(f"the token is for {meant}, not for {', '.join(sorted(wanted))}")


def _account(username: JSON) -> tuple[str, str]:
    """Namespace and name of `system:serviceaccount:<namespace>:<name>`."""
    parts = username.split(":") if isinstance(username, str) else []
    if len(parts) != 4 or parts[:2] != ["system", "serviceaccount"]:
        raise NotAuthenticated(f"the user {str(username)[:200]!a} of the token is no service account")
    return parts[2], parts[3]


def _one(extra: Mapping[str, JSON], name: str) -> str:
    """The only value of one of the user's extras; empty if there is none."""
    match extra.get(f"{_EXTRA}{name}"):
        case None:
            return ""
        case [str(value)] if value:
            return value
    raise NotAuthenticated(f"what the API server says of the {name} of the token is not one text")


def _named(said: Mapping[str, FrozenJSON], name: str) -> Mapping[str, FrozenJSON]:
    found = said.get(name, {})
    if not isinstance(found, Mapping):
        raise NotAuthenticated(f"what the token says of its {name} is no object")
    return found


def _text(said: Mapping[str, JSON] | Mapping[str, FrozenJSON], name: str) -> str:
    value = said.get(name, "")
    if not isinstance(value, str):
        raise NotAuthenticated(f"the {name} that the token speaks of is no text")
    return value
