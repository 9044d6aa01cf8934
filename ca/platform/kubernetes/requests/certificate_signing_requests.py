"""Decides about CertificateSigningRequests: what a service account asks for itself is approved and signed. Pure.

    requester    a service account, by `spec.username`, which the API server stamps from the caller's credentials
    request      one CSR whose only name is one URI: the requester's own SPIFFE ID; no CA; a subject is ignored
    usages       some of client auth, server auth, digital signature, key encipherment
    expiration   spec.expirationSeconds, or the profile's usual lifetime; never more than the profile's longest

A spec never changes, so a fault in it is final, and the request gets an answer: Denied, or Failed if somebody else has
approved it already, for no approval can give away another's identity. Certificates are usable for both ends of TLS,
whichever of these usages were asked for.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from datetime import timedelta

from cryptography import x509

from ca.csr import CSRRefused, vet_csr
from ca.issuer import IssuedSVID, Order
from ca.platform.kubernetes.api.objects import Object, member, object_of
from ca.platform.kubernetes.callers.service_account import caller_of_user
from ca.platform.kubernetes.requests.signer import (
    Deny,
    Ignore,
    MalformedRequest,
    Refused,
    Sign,
    Signer,
    Wait,
    attested,
    base64_bytes,
    chain_pem,
    condition_types,
    conditions,
    shown,
    with_status,
)
from ca.profile import IssuanceProfile
from ca.registry import Grant
from istio_auth.errors import Code, IstioAuthError, KeyRejected, NotAuthenticated
from istio_auth.keys import PublicKey
from istio_auth.pem import read_csr
from istio_auth.spiffe_id import SpiffeID
from istio_auth.strict_json import JSON

METHOD = "certificate-signing-request"
USAGES = ("client auth", "server auth", "digital signature", "key encipherment")

_OF_THE_REQUEST = frozenset({Code.MALFORMED, Code.NOT_AUTHORIZED})


@dataclass(frozen=True, slots=True)
class Approve:
    """The request is to be approved; once it is, it is looked at again and signed."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Fail:
    """The request was approved and can never be signed (see `Deny`)."""

    reason: str
    message: str


def decide(request: Object, signer: Signer) -> Approve | Sign | Deny | Fail | Wait | Ignore:
    """What to do about a request, whatever is in it.

    Args:
        request: the CertificateSigningRequest (certificates.k8s.io/v1), as the API server tells it.
        signer: who we are.
    """
    if (reason := done(request, signer)) is not None:
        return Ignore(reason)
    approved = "Approved" in condition_types(request)
    try:
        order = _order(request, signer)
    except Refused as error:
        return Fail(error.reason, f"approved, and yet: {error}") if approved else Deny(error.reason, str(error))
    except MalformedRequest as error:  # no answer could be written
        return Wait(f"the API server keeps no such requests: {error}")
    return Sign(order) if approved else Approve("OwnIdentity", f"made by {order.grant.spiffe_id}, whom it names")


def done(request: Object, signer: Signer) -> str | None:
    """Why there is nothing to do about a request; None if there is."""
    if member(request, "spec", "signerName") != signer.name:
        return "for another signer"
    if condition_types(request) & {"Denied", "Failed"} or member(request, "status", "certificate"):
        return "answered"
    return "being deleted" if member(request, "metadata", "deletionTimestamp") else None


def not_issued(error: IstioAuthError) -> Fail | Wait:
    """What to do about a request for which the issuer has issued nothing."""
    if error.code in _OF_THE_REQUEST:
        return Fail("Refused", error.public)
    return Wait(str(error))


def approval_update(request: Object, decision: Approve | Deny) -> Object:
    """The request, approved or denied: what to send as an update of its approval."""
    type_ = "Approved" if isinstance(decision, Approve) else "Denied"
    return _with_condition(request, type_, decision.reason, decision.message)


def failed_status(request: Object, failed: Fail) -> Object:
    """The request, failed: what to send as an update of its status."""
    return _with_condition(request, "Failed", failed.reason, failed.message)


def issued_status(request: Object, svid: IssuedSVID) -> Object:
    """The request with its certificate: what to send as an update of its status."""
    status = object_of(member(request, "status"))
    return with_status(request, status | {"certificate": base64.b64encode(chain_pem(svid).encode()).decode()})


def _with_condition(request: Object, type_: str, reason: str, message: str) -> Object:
    """The request with one condition more. Its times are left to the API server, which cleans up by its own clock."""
    added: Object = {"type": type_, "status": "True", "reason": reason, "message": message}
    status = object_of(member(request, "status"))
    return with_status(request, status | {"conditions": [*conditions(request), added]})


def _order(request: Object, signer: Signer) -> Order:
    """The order for the certificate.

    Raises:
        Refused: there can never be one.
        MalformedRequest: the request could not be answered.
    """
    spec = object_of(member(request, "spec"))
    try:
        caller = caller_of_user(spec)
    except NotAuthenticated as error:
        raise Refused(
            "NotAServiceAccount",
            f"this signer signs for service accounts alone ({error}): make the request as the service account itself",
        ) from error
    who = attested(caller, signer, request, METHOD)
    key = _vetted_key(request, who.spiffe_id)
    _check_usages(spec.get("usages"))
    ttl = _ttl(spec.get("expirationSeconds"), signer.profile)
    return Order(Grant(who.spiffe_id), key, ttl, who, who.details["request_uid"])


def _vetted_key(request: Object, identity: SpiffeID) -> PublicKey:
    """The key in the CSR.

    Raises:
        Refused: the CSR is not acceptable, or does not ask for exactly this identity.
    """
    try:
        pem = base64_bytes(request, "spec", "request")
        csr = vet_csr(pem)
    except (MalformedRequest, CSRRefused) as error:
        reason = "UnsupportedKeyType" if isinstance(error.__cause__, KeyRejected) else "InvalidRequest"
        raise Refused(reason, str(error)) from error
    if csr.uri is None or _count_names(pem) != 1:
        raise Refused(
            "UnacceptableNames", f"the only name in the CSR must be the URI {identity}: no other, of any kind"
        )
    if csr.uri != str(identity):
        raise Refused("ForeignIdentity", f"the CSR asks for {shown(csr.uri)}, and who made the request is {identity}")
    return csr.public_key


def _count_names(pem: bytes) -> int:
    """How many alternative names there are in a CSR that was vetted and has one."""
    return len(list(read_csr(pem).extensions.get_extension_for_class(x509.SubjectAlternativeName).value))


def _check_usages(usages: JSON) -> None:
    """Make sure that no usage is asked for that our certificates do not have.

    Raises:
        Refused: one is.
    """
    for usage in usages if isinstance(usages, list) else [usages]:
        if usage not in USAGES:
            wanted = shown(str(usage))
            raise Refused("UnacceptableUsages", f"{wanted} is no usage here: ask for some of {', '.join(USAGES)}")


def _ttl(seconds: JSON, profile: IssuanceProfile) -> timedelta | None:
    """The lifetime asked for, or the profile's longest: a signer may give less (CertificateSigningRequestSpec).

    Raises:
        Refused: it is a value that the API server does not take.
    """
    if seconds is None:
        return None
    if not isinstance(seconds, int) or not 600 <= seconds < 1 << 31:
        raise Refused("InvalidExpiration", "expirationSeconds must be missing, or at least 600")
    return min(timedelta(seconds=seconds), profile.max_ttl)
