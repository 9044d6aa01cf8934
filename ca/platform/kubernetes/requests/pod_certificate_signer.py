"""The signer of PodCertificateRequests: the kubelet asks for a pod, and the pod's volume gets a certificate.

What may be signed is decided in `ca.platform.kubernetes.requests.pod_certificates`; here it is done. The API server
lets a kubelet ask only for the pods of its node. For others who may create such requests it checks nothing, so each
request is also compared with the watched pods.
"""

from __future__ import annotations

import random
from collections.abc import Callable

from ca.audit import Audit
from ca.issuer import Issuer
from ca.platform.kubernetes.api.client import KubernetesAPI
from ca.platform.kubernetes.api.objects import Object, text
from ca.platform.kubernetes.api.refusals import ObjectRefused
from ca.platform.kubernetes.api.resources import POD_CERTIFICATE_REQUESTS
from ca.platform.kubernetes.callers.pods import PodView
from ca.platform.kubernetes.callers.service_account import ServiceAccountCaller
from ca.platform.kubernetes.requests.pod_certificates import (
    decide,
    denied_status,
    done,
    issued_status,
    refused_by_server,
)
from ca.platform.kubernetes.requests.queue import RequestQueue
from ca.platform.kubernetes.requests.signer import Deny, Ignore, Sign, Signer, Wait
from ca.profile import Validity
from istio_auth.clock import Clock
from istio_auth.errors import NotAuthorized, NotReady


class PodCertificateSigner:
    """Answers PodCertificateRequests. Lives on one event loop.

    Args:
        api: the API server.
        signer: who we are.
        issuer: signs.
        within: the validity of the chain that signs now.
        pods: the present pods, as watched.
        audit: writes the lines.
        clock: tells the time.

    Attributes:
        queue: the requests; whoever supervises the platform runs it.
    """

    def __init__(
        self,
        api: KubernetesAPI,
        signer: Signer,
        *,
        issuer: Issuer,
        within: Callable[[], Validity],
        pods: PodView,
        audit: Audit,
        clock: Clock,
    ) -> None:
        self._api = api
        self._signer = signer
        self._issuer = issuer
        self._within = within
        self._pods = pods
        self._audit = audit
        self._clock = clock
        self.queue = RequestQueue(
            api,
            POD_CERTIFICATE_REQUESTS,
            signer.name,
            answer=self._answer,
            waits=lambda request: done(request, signer) is None,
            clock=clock,
        )

    async def _answer(self, request: Object) -> None:
        decision = self._decision(request)
        if isinstance(decision, Wait):
            raise NotReady(decision.reason)
        if isinstance(decision, Sign):
            self._check_pod(decision)
            await self._sign(request, decision)
        elif isinstance(decision, Deny):
            await self._api.replace(
                POD_CERTIFICATE_REQUESTS, denied_status(request, decision, self._clock.now()), subresource="status"
            )
            error = NotAuthorized(f"{decision.reason}: {decision.message}")
            pod = f"{text(request, 'metadata', 'namespace')}/{text(request, 'spec', 'podName')}"
            self._audit.refused(error, text(request, "metadata", "uid"), caller=f"pod {pod}")

    def _check_pod(self, decision: Sign) -> None:
        """Make sure that the pod is there as the request says.

        Raises:
            NotReady: it is not, as far as is known: a kubelet may hear of a pod before us.
        """
        caller = decision.order.attested.caller
        assert isinstance(caller, ServiceAccountCaller), "whom the request speaks for"
        if not self._pods.live:
            raise NotReady("the pods of now are not known")
        pod = self._pods.pod(caller.pod_uid)
        said = (caller.namespace, caller.pod_name, caller.service_account, caller.node_name)
        if pod is None or (pod.namespace, pod.name, pod.service_account, pod.node) != said:
            raise NotReady(f"the pod {caller.namespace}/{caller.pod_name} is not there as the request says")

    async def _sign(self, request: Object, decision: Sign) -> None:
        order = decision.order
        svid = await self._issuer.issue(order)
        body = issued_status(request, svid, self._clock.now(), draw=random.random())  # noqa: S311  # jitter
        try:
            await self._api.replace(POD_CERTIFICATE_REQUESTS, body, subresource="status")
        except ObjectRefused as error:
            raise NotReady(refused_by_server(request, str(error), self._clock.now()).reason) from error
        self._audit.issued(svid, order.attested, order.request_id)

    def _decision(self, request: Object) -> Sign | Deny | Wait | Ignore:
        now = self._clock.now()
        server_now = None if self._api.ahead is None else now + self._api.ahead
        return decide(request, self._signer, now, within=self._within(), server_now=server_now)
