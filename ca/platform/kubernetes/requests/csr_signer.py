"""The signer of CertificateSigningRequests: approves those for the requester itself, denies others, signs the approved.

What may be signed is decided in `ca.platform.kubernetes.requests.certificate_signing_requests`; here it is done.
"""

from __future__ import annotations

from ca.audit import Audit
from ca.issuer import Issuer
from ca.platform.kubernetes.api.client import KubernetesAPI
from ca.platform.kubernetes.api.objects import Object, text
from ca.platform.kubernetes.api.resources import CERTIFICATE_SIGNING_REQUESTS
from ca.platform.kubernetes.requests.certificate_signing_requests import (
    Approve,
    Fail,
    approval_update,
    decide,
    done,
    failed_status,
    issued_status,
    not_issued,
)
from ca.platform.kubernetes.requests.queue import RequestQueue
from ca.platform.kubernetes.requests.signer import Deny, Sign, Signer, Wait
from istio_auth.clock import Clock
from istio_auth.errors import IstioAuthError, NotAuthorized, NotReady


class CSRSigner:
    """Answers CertificateSigningRequests. Lives on one event loop.

    Args:
        api: the API server.
        signer: who we are.
        issuer: signs.
        audit: writes the lines.
        clock: tells the time.

    Attributes:
        queue: the requests; whoever supervises the platform runs it.
    """

    def __init__(self, api: KubernetesAPI, signer: Signer, *, issuer: Issuer, audit: Audit, clock: Clock) -> None:
        self._api = api
        self._signer = signer
        self._issuer = issuer
        self._audit = audit
        self.queue = RequestQueue(
            api,
            CERTIFICATE_SIGNING_REQUESTS,
            signer.name,
            answer=self._answer,
            waits=lambda request: done(request, signer) is None,
            clock=clock,
        )

    async def _answer(self, request: Object) -> None:
        match decide(request, self._signer):
            case Wait(reason=reason):
                raise NotReady(reason)
            case Approve() as approve:
                await self._update(approval_update(request, approve), "approval")  # then the watch brings it back
            case Deny() as deny:
                await self._update(approval_update(request, deny), "approval")
                self._refused(request, deny)
            case Fail() as fail:
                await self._fail(request, fail)
            case Sign() as sign:
                await self._sign(request, sign)

    async def _sign(self, request: Object, decision: Sign) -> None:
        order = decision.order
        try:
            svid = await self._issuer.issue(order)
        except IstioAuthError as error:
            outcome = not_issued(error)
            if isinstance(outcome, Wait):
                raise NotReady(outcome.reason) from error
            await self._fail(request, outcome)
            return
        await self._update(issued_status(request, svid), "status")
        self._audit.issued(svid, order.attested, order.request_id)

    async def _fail(self, request: Object, failed: Fail) -> None:
        await self._update(failed_status(request, failed), "status")
        self._refused(request, failed)

    async def _update(self, body: Object, subresource: str) -> None:
        await self._api.replace(CERTIFICATE_SIGNING_REQUESTS, body, subresource=subresource)

    def _refused(self, request: Object, decision: Deny | Fail) -> None:
        error = NotAuthorized(f"{decision.reason}: {decision.message}")
        self._audit.refused(error, text(request, "metadata", "uid"), caller=text(request, "spec", "username"))
