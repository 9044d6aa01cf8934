"""Istio's certificate service: `istio.v1.auth.IstioCertificateService/CreateCertificate`, exact to the wire.

The reply is the leaf, each intermediate as an element of its own, and all roots as one last element; each ends with
a newline, and there are always at least two elements. Callers get their own identity, whatever names their CSR has. A
caller may ask for another with `ImpersonatedIdentity` in the request's metadata: an agent for one that is registered
for it, a trusted node account on Kubernetes for one of its node. `CertSigner` and all other members of the metadata are
ignored, and so is a value that is no string.

Codes and texts are istiod's, except that a CA that can not sign now answers UNAVAILABLE, so that clients try again:

    not proven who calls, or not welcome          UNAUTHENTICATED    request authenticate failure
    may not have the identity named               UNAUTHENTICATED    request impersonation authentication failure
    the CSR is bad, or the TTL too long           INVALID_ARGUMENT   CSR signing error (...)
    signing went wrong                            INTERNAL           CSR signing error (...)
"""

from __future__ import annotations

from datetime import timedelta

from ca.admission import Admission, Wish
from ca.attest import Attested
from ca.authority.authority import Authority
from ca.csr import CSRRefused
from ca.metrics import CA_NOT_READY, CERT_GEN_ERROR, CSR_ERROR, TTL_ERROR
from ca.profile import TTLRefused
from ca.service.caller import attested_caller
from ca.service.reply import ReplyWriter
from istio_auth.errors import (
    Exhausted,
    InvalidSpiffeID,
    IstioAuthError,
    MalformedError,
    NotAuthenticated,
    NotAuthorized,
    NotReady,
)
from istio_auth.proto.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from istio_auth.rpc.method import Call, Method, Service

NAME = "istio.v1.auth.IstioCertificateService"
_MAX_REQUEST = 64 << 10
_MAX_SECONDS = 100 * 365 * 86400  # longer than any certificate lives, and short enough for arithmetic
_IMPERSONATED = "ImpersonatedIdentity"
_NOT_PROVEN = "request authenticate failure"
_NOT_IMPERSONATED = "request impersonation authentication failure"


class IstioCertificateService:
    """Answers Istio's proxies, and every other client that uses the same contract.

    Args:
        admission: issues the certificates.
        authority: its roots are the last element of the reply.
    """

    def __init__(self, admission: Admission, authority: Authority) -> None:
        self._admission = admission
        self._counts = admission.audit.counts
        self._reply = ReplyWriter(authority)

    def service(self) -> Service:
        """The service, to be served."""
        method = Method.unary(
            self.create_certificate, IstioCertificateRequest, IstioCertificateResponse, max_request_bytes=_MAX_REQUEST
        )
        return Service(NAME, {"CreateCertificate": method})

    async def create_certificate(self, request: IstioCertificateRequest, call: Call) -> IstioCertificateResponse:
        """One certificate, for the caller or for the identity it names.

        Raises:
            IstioAuthError: it is refused; code and public text are the contract's.
        """
        self._counts.csr += 1
        attested = await self._attested(call)
        impersonated = _impersonated(request)
        seconds = min(request.validity_duration, _MAX_SECONDS)
        wish = Wish(request.csr.encode(), True, impersonated, timedelta(seconds=seconds) if seconds > 0 else None)
        try:
            svid = await self._admission.issue(wish, attested, call.request_id)
        except IstioAuthError as error:
            raise self._told(error, _NOT_IMPERSONATED if impersonated else _NOT_PROVEN) from error
        self._counts.successes += 1
        return IstioCertificateResponse(cert_chain=self._reply.elements(svid))

    async def _attested(self, call: Call) -> Attested:
        try:
            return await attested_caller(self._admission, call)
        except (NotAuthenticated, NotAuthorized) as error:
            self._counts.authentication_failures += 1
            raise NotAuthenticated(str(error), public=_NOT_PROVEN) from error

    def _told(self, error: IstioAuthError, not_allowed: str) -> IstioAuthError:
        """The error as the contract has it."""
        match error:
            case CSRRefused():
                self._counts.sign_errors[CSR_ERROR] += 1
                return MalformedError(str(error), public=f"CSR signing error ({error.public})")
            case TTLRefused():
                self._counts.sign_errors[TTL_ERROR] += 1
                return MalformedError(str(error), public=f"CSR signing error ({error.public})")
            case InvalidSpiffeID() | NotAuthorized():
                return NotAuthenticated(str(error), public=not_allowed)
            case NotAuthenticated():
                self._counts.authentication_failures += 1
                return NotAuthenticated(str(error), public=_NOT_PROVEN)
            case NotReady() | Exhausted():
                self._counts.sign_errors[CA_NOT_READY] += 1
                return error
        self._counts.sign_errors[CERT_GEN_ERROR] += 1
        return IstioAuthError(str(error), public="CSR signing error (the certificate could not be made)")


def _impersonated(request: IstioCertificateRequest) -> str:
    """The identity that is named in the metadata; empty if there is none, or a value that is no string."""
    if not request.HasField("metadata") or _IMPERSONATED not in request.metadata.fields:
        return ""
    return request.metadata.fields[_IMPERSONATED].string_value
