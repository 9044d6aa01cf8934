"""Our own service for node agents: `istio_auth.node.v1.NodeService`, beside Istio's contract.

Sign takes a batch and answers each entry for itself. Challenge and Recover bring a lapsed agent back. Sync, the stream
that stays open for the life of an agent, is in `ca.service.sync`. A refusal tells the agent only its kind; the full
reason is in our audit under the id of the request.
"""

from __future__ import annotations

from datetime import timedelta

from ca.admission import Admission, Wish
from ca.agents.recovery import Recovery, RecoveryProof
from ca.attest import Attested, Evidence, agreed
from ca.issuer import IssuedSVID
from ca.service.caller import attested_caller, bearer_of, tls_caller
from ca.service.sync import Sync
from istio_auth.errors import IstioAuthError, MalformedError, NotAuthenticated
from istio_auth.proto import node_pb2
from istio_auth.rpc.method import Call, Method, Service
from istio_auth.spiffe_id import SpiffeID

NAME = "istio_auth.node.v1.NodeService"
MAX_ENTRIES = 500
_MAX_SIGN_REQUEST = 4 << 20
_MAX_SMALL_REQUEST = 32 << 10
_MAX_SECONDS = 100 * 365 * 86400  # longer than any certificate lives, and short enough for arithmetic


class NodeService:
    """Answers node agents.

    Args:
        admission: issues the certificates.
        recovery: attests agents that come back by their node keys.
        sync: serves the streams.
    """

    def __init__(self, admission: Admission, recovery: Recovery, sync: Sync) -> None:
        self._admission = admission
        self._recovery = recovery
        self._sync = sync

    def service(self) -> Service:
        """The service, to be served."""
        return Service(
            NAME,
            {
                "Sign": Method.unary(
                    self.sign, node_pb2.SignRequest, node_pb2.SignResponse, max_request_bytes=_MAX_SIGN_REQUEST
                ),
                "Sync": Method.stream(
                    self._sync.stream,
                    node_pb2.SyncRequest,
                    node_pb2.SyncResponse,
                    max_request_bytes=_MAX_SMALL_REQUEST,
                ),
                "Challenge": Method.unary(
                    self.challenge,
                    node_pb2.ChallengeRequest,
                    node_pb2.ChallengeResponse,
                    max_request_bytes=_MAX_SMALL_REQUEST,
                ),
                "Recover": Method.unary(
                    self.recover,
                    node_pb2.RecoverRequest,
                    node_pb2.RecoverResponse,
                    max_request_bytes=_MAX_SMALL_REQUEST,
                ),
            },
        )

    async def sign(self, request: node_pb2.SignRequest, call: Call) -> node_pb2.SignResponse:
        """Certificates for the entries, each answered for itself.

        Raises:
            NotAuthenticated, NotAuthorized: it is not proven who calls, or the caller is not welcome.
            MalformedError: too many entries.
            NotReady: a proof could not be checked.
        """
        attested = await attested_caller(self._admission, call)
        if len(request.entries) > MAX_ENTRIES:
            error = MalformedError(
                f"{attested.spiffe_id} sent {len(request.entries)} entries", public=f"at most {MAX_ENTRIES} entries"
            )
            self._admission.audit.refused(error, call.request_id, caller=str(call.caller), attested=attested)
            raise error
        wishes = [
            Wish(entry.csr, False, entry.spiffe_id, _ttl(entry.ttl_seconds), entry.workload_token)
            for entry in request.entries
        ]
        results = await self._admission.issue_many(wishes, attested, call.request_id)
        return node_pb2.SignResponse(results=map(_result, results))

    async def challenge(self, request: node_pb2.ChallengeRequest, call: Call) -> node_pb2.ChallengeResponse:
        """A nonce for an agent.

        Raises:
            NotAuthenticated: the call did not come over TLS.
            MalformedError: that is not the SPIFFE ID of an agent in our trust domain.
        """
        tls_caller(self._admission, call)
        return node_pb2.ChallengeResponse(nonce=self._recovery.challenge(SpiffeID.parse(request.spiffe_id)))

    async def recover(self, request: node_pb2.RecoverRequest, call: Call) -> node_pb2.RecoverResponse:
        """A new SVID for an agent that proves its node key.

        Raises:
            MalformedError: a part of the proof, or the CSR, is not what it should be.
            NotAuthenticated, NotAuthorized: the proof is not good, or the agent is not welcome.
            NotReady, Exhausted: not now.
        """
        attested = await self._recovered(request, call)
        svid = await self._admission.issue(Wish(request.csr, False), attested, call.request_id)
        return node_pb2.RecoverResponse(issued=node_pb2.Issued(chain=svid.chain))

    async def _recovered(self, request: node_pb2.RecoverRequest, call: Call) -> Attested:
        caller = tls_caller(self._admission, call)
        by_certificate = None
        if caller.spiffe_id is not None:
            by_certificate = await self._admission.attest(Evidence(caller), call.request_id)
        try:
            if bearer_of(call) is not None:
                raise NotAuthenticated("a bearer token proves nothing here, and every proof must be good")
            spiffe_id = SpiffeID.parse(request.spiffe_id)
            proof = RecoveryProof(spiffe_id, request.nonce, request.node_key, request.signature, request.csr)
            by_key = self._recovery.attest(proof, caller)
            return by_key if by_certificate is None else agreed(by_certificate, by_key)
        except IstioAuthError as error:
            self._admission.audit.refused(
                error, call.request_id, caller=str(caller), attested=by_certificate, wanted=request.spiffe_id
            )
            raise


def _ttl(seconds: int) -> timedelta | None:
    return timedelta(seconds=min(seconds, _MAX_SECONDS)) if seconds > 0 else None


def _result(result: IssuedSVID | IstioAuthError) -> node_pb2.SignResult:
    if isinstance(result, IssuedSVID):
        return node_pb2.SignResult(issued=node_pb2.Issued(chain=result.chain))
    hint = 0 if result.retry_after is None else int(result.retry_after / timedelta(milliseconds=1))
    refusal = node_pb2.Refusal(code=result.code.name, message=result.public, retry_after_ms=hint)
    return node_pb2.SignResult(refusal=refusal)
