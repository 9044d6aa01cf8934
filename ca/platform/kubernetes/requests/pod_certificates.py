"""Decides about PodCertificateRequests (sign, deny, wait or ignore), and makes the status to write. Pure.

The kubelet makes such a request for a pod with a `podCertificate` volume, and the API server admits it only from the
node where that pod runs, with the pod's own service account. There is no approval: the signer is the policy.

What is written must pass the API server (`ValidatePodCertificateRequestStatusUpdate` of Kubernetes 1.37):

    conditions       one of Issued, Denied and Failed, with the status True, a time and a reason; final once written
    certificateChain at most 100 KiB of certificates in PEM; the leaf has the key of the request
    notBefore        as in the leaf, and less than 5 minutes from the API server's own clock, on either side
    notAfter         as in the leaf; from notBefore at least an hour and at most spec.maxExpirationSeconds
    beginRefreshAt   from 10 minutes after notBefore to 10 minutes before notAfter
    Denied, Failed   nothing but the conditions

For the kubelet, Denied and Failed are final for that volume, so a request with a fault that may pass is left waiting.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from ca.csr import CSRRefused, vet_csr_der
from ca.issuer import IssuedSVID, Order
from ca.platform.kubernetes.api.objects import Object, member
from ca.platform.kubernetes.callers.service_account import ServiceAccountCaller
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
    parse_timestamp,
    shown,
    timestamp,
    with_status,
    word,
)
from ca.profile import IssuanceProfile, Validity
from ca.registry import Grant
from istio_auth.clock import in_words, whole_seconds
from istio_auth.errors import KeyRejected, NotAuthenticated, NotReady
from istio_auth.keys import PublicKey
from istio_auth.pem import read_der_csr
from istio_auth.rotation import renewal_due
from istio_auth.strict_json import JSON

METHOD = "pod-certificate-request"
UNSUPPORTED_KEY_TYPE = "UnsupportedKeyType"
INVALID_ANNOTATIONS = "InvalidUnverifiedUserAnnotations"
INVALID_STUB = "InvalidStubPKCS10Request"

_SHORTEST, _LONGEST = timedelta(hours=1), timedelta(days=91)
_ANSWERS = frozenset({"Issued", "Denied", "Failed"})
_REFRESH_MARGIN = timedelta(minutes=10)
# The API server takes a notBefore less than 5 minutes from its own clock; the rest is for the time until it gets it.
_BACKDATE, _MOST_BACKDATE = timedelta(minutes=2), timedelta(minutes=4)
_MOST_SKEW = timedelta(minutes=5)
_MAX_KEYS_SHOWN = 5
_KEY_TYPES = "set keyType to ECDSAP256 in the podCertificate volume; ECDSAP384, RSA3072 and RSA4096 work too"


def decide(
    request: Object, signer: Signer, now: datetime, *, within: Validity, server_now: datetime | None = None
) -> Sign | Deny | Wait | Ignore:
    """What to do about a request, whatever is in it.

    Args:
        request: the PodCertificateRequest (certificates.k8s.io/v1), as the API server tells it.
        signer: who we are.
        now: the present instant by our clock.
        within: the validity of the chain that signs now.
        server_now: the present instant by the API server's clock, as the `Date` of its answers tells it; None if that
            is not known.
    """
    if (reason := done(request, signer)) is not None:
        return Ignore(reason)
    try:
        return Sign(_order(request, signer, now, within=within, server_now=server_now))
    except Refused as error:
        return Deny(error.reason, str(error))
    except (MalformedRequest, NotAuthenticated) as error:
        return Wait(f"the API server keeps no such requests: {error}")
    except NotReady as error:
        return Wait(str(error))


def done(request: Object, signer: Signer) -> str | None:
    """Why there is nothing to do about a request; None if there is."""
    if member(request, "spec", "signerName") != signer.name:
        return "for another signer"
    if condition_types(request) & _ANSWERS or member(request, "status", "certificateChain"):
        return "answered"
    return "being deleted" if member(request, "metadata", "deletionTimestamp") else None


def refused_by_server(request: Object, message: str, now: datetime) -> Wait:
    """Why a request waits after the API server has refused its status: most likely the clocks disagree.

    Args:
        request: the request.
        message: what the API server said.
        now: the present instant by our clock.
    """
    created = parse_timestamp(member(request, "metadata", "creationTimestamp"))
    if created is None:
        return Wait(f"the API server refused the certificate: {message}")
    age = f"{in_words(now - created)} {'old' if now >= created else 'in the future'}"
    return Wait(
        f"the API server refused the certificate: {message} (by the clock of this CA the request is {age}; if it is "
        "not, that clock is wrong)"
    )


def issued_status(request: Object, svid: IssuedSVID, now: datetime, *, draw: float) -> Object:
    """The request with its certificate: what to send as an update of its status.

    Args:
        request: the request that `decide` had signed.
        svid: its certificate.
        now: the present instant by our clock.
        draw: a number in [0, 1), drawn once for this certificate, so that pods do not all renew at the same time.
    """
    due = renewal_due(svid.not_before, svid.not_after, draw=draw)
    earliest, latest = svid.not_before + _REFRESH_MARGIN, svid.not_after - _REFRESH_MARGIN
    status: Object = {
        "conditions": [_condition("Issued", "Issued", f"issued {svid.spiffe_id}, serial {svid.serial:x}", now)],
        "certificateChain": chain_pem(svid),
        "notBefore": timestamp(svid.not_before),
        "notAfter": timestamp(svid.not_after),
        "beginRefreshAt": timestamp(min(max(whole_seconds(due), earliest), latest)),
    }
    return with_status(request, status)


def denied_status(request: Object, denied: Deny, now: datetime) -> Object:
    """The request, denied for good: what to send as an update of its status."""
    return with_status(request, {"conditions": [_condition("Denied", denied.reason, denied.message, now)]})


def _condition(type_: str, reason: str, message: str, now: datetime) -> Object:
    return {
        "type": type_,
        "status": "True",
        "reason": reason,
        "message": message,
        "lastTransitionTime": timestamp(now),
    }


def _order(request: Object, signer: Signer, now: datetime, *, within: Validity, server_now: datetime | None) -> Order:
    """The order for the certificate.

    Raises:
        Refused: there can never be one.
        MalformedRequest, NotAuthenticated, NotReady: there is none now.
    """
    who, asked = attested(_caller(request), signer, request, METHOD), _asked(request)
    key = _vetted_key(base64_bytes(request, "spec", "stubPKCS10Request"))
    _check_annotations(member(request, "spec", "unverifiedUserAnnotations"))
    present, backdate = _present(request, signer.profile, now, server_now)
    validity = _validity(signer.profile, asked, present, within=within, backdate=backdate)
    return Order(Grant(who.spiffe_id), key, None, who, who.details["request_uid"], validity)


def _caller(request: Object) -> ServiceAccountCaller:
    """Who asks: the service account of the pod, as the API server vouches for it.

    Raises:
        MalformedRequest, NotAuthenticated: a member is missing, or the owner of the request is another pod.
    """
    pod, pod_uid = word(request, "spec", "podName"), word(request, "spec", "podUID")
    owners = member(request, "metadata", "ownerReferences")
    for owner in owners if isinstance(owners, list) else []:
        if isinstance(owner, dict) and owner.get("kind") == "Pod" and owner.get("uid") != pod_uid:
            raise MalformedRequest("it is of one pod and belongs to another")
    return ServiceAccountCaller(
        word(request, "metadata", "namespace"),
        word(request, "spec", "serviceAccountName"),
        word(request, "spec", "serviceAccountUID"),
        pod_name=pod,
        pod_uid=pod_uid,
        node_name=word(request, "spec", "nodeName"),
        node_uid=word(request, "spec", "nodeUID"),
    )


def _asked(request: Object) -> timedelta:
    """The longest life its author wants; the API server fills in a default.

    Raises:
        MalformedRequest: there is none, or one that the API server does not take.
    """
    seconds = member(request, "spec", "maxExpirationSeconds")
    if not isinstance(seconds, int) or not 3600 <= seconds <= _LONGEST.total_seconds():
        raise MalformedRequest("spec.maxExpirationSeconds is missing, or not from an hour to 91 days")
    return timedelta(seconds=seconds)


def _vetted_key(stub: bytes) -> PublicKey:
    """The key in the stub CSR, which must hold nothing else.

    The API server has checked its signature, and leaves its content to the signer. A fault is refused for good: the
    request can not change, and no kubelet makes such a one.

    Raises:
        Refused: the key is of a type that we do not sign, or the CSR holds something else too.
        MalformedRequest: there is no stub CSR.
    """
    if not stub:  # the older form of request, converted; a kubelet makes each of its requests anew after a while
        raise MalformedRequest("no stubPKCS10Request: is the kubelet of its node older than Kubernetes 1.36?")
    try:
        key = vet_csr_der(stub).public_key
    except CSRRefused as error:
        if isinstance(error.__cause__, KeyRejected):
            fault = str(error).partition(":")[0]
            raise Refused(UNSUPPORTED_KEY_TYPE, f"{fault}: {_KEY_TYPES}") from error
        raise Refused(INVALID_STUB, str(error)) from error
    csr = read_der_csr(stub)
    try:
        empty = not csr.subject.rdns and not len(csr.extensions)
    except (ValueError, Warning):  # a subject out of the ordinary
        empty = False
    if not empty:
        raise Refused(INVALID_STUB, "the stub request must name nothing: who it is for stands in the other fields")
    return key


def _check_annotations(annotations: JSON) -> None:
    """Make sure that there are no annotations, for this signer knows none.

    Raises:
        Refused: there are some.
        MalformedRequest: the member is no object.
    """
    if not isinstance(annotations, dict | None):
        raise MalformedRequest("spec.unverifiedUserAnnotations is no object")
    if annotations:
        keys = sorted(annotations)
        some = ", ".join(map(shown, keys[:_MAX_KEYS_SHOWN])) + (", ..." if len(keys) > _MAX_KEYS_SHOWN else "")
        raise Refused(INVALID_ANNOTATIONS, f"this signer knows no user annotations: take {some} out of the volume")


def _present(
    request: Object, profile: IssuanceProfile, now: datetime, server_now: datetime | None
) -> tuple[datetime, timedelta]:
    """The present instant by the API server's clock, as far as it is known, and how far to begin before it.

    The API server judges a certificate by its own clock, and nodes have a similar one. It is at least at the time that
    it stamped on the request. If a request looks old, then it is old or our clock is ahead: in both cases a certificate
    that begins when it was asked for is good.

    Raises:
        NotReady: our clock is too wrong to make a usable certificate.
    """
    created = parse_timestamp(member(request, "metadata", "creationTimestamp"))
    present = now if server_now is None else server_now
    if created is not None:
        present = max(present, created)
    if abs(present - now) > _MOST_SKEW:
        side = "behind" if present > now else "ahead of"
        raise NotReady(f"the clock of this CA is {in_words(present - now)} {side} the API server's: nothing is signed")
    backdate = min(profile.backdate, _BACKDATE)
    if server_now is None and created is not None:
        backdate = max(backdate, min(present - created, _MOST_BACKDATE))
    return present, backdate


def _validity(
    profile: IssuanceProfile, asked: timedelta, present: datetime, *, within: Validity, backdate: timedelta
) -> Validity:
    """The validity of the certificate.

    Raises:
        NotReady: nothing that the API server takes can be made now.
    """
    validity = profile.validity_spanning(asked, present, within=within, backdate=backdate)
    if validity.not_after - validity.not_before >= _SHORTEST:
        return validity
    if validity.not_after == within.not_after:
        raise NotReady(f"the chain of this CA ends {within.not_after:%F %T} UTC: too soon for a certificate of an hour")
    raise NotReady(f"certificates live {in_words(profile.max_ttl)} here at most, and those of pods at least an hour")
