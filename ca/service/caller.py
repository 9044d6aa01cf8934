"""Attests the caller of a call, by the evidence that came with it."""

from __future__ import annotations

from ca.admission import Admission
from ca.attest import Attested, Evidence
from istio_auth.door import TLSCaller
from istio_auth.errors import NotAuthenticated
from istio_auth.rpc.method import Call

_PREFIX = "Bearer "  # in exactly this case, as istiod has it


async def attested_caller(admission: Admission, call: Call) -> Attested:
    """Who calls, by every proof that came with the call. A refusal is on record.

    Raises:
        NotAuthenticated, NotAuthorized: it is not proven who calls, or the caller is not welcome.
        NotReady: a proof could not be checked.
    """
    return await admission.attest(Evidence(tls_caller(admission, call), bearer_of(call)), call.request_id)


def tls_caller(admission: Admission, call: Call) -> TLSCaller:
    """The TLS peer of a call. A refusal is on record.

    Raises:
        NotAuthenticated: the call did not come over TLS.
    """
    if isinstance(call.caller, TLSCaller):
        return call.caller
    error = NotAuthenticated(f"{call.caller} does not come over TLS")
    admission.audit.refused(error, call.request_id, caller=str(call.caller))
    raise error


def bearer_of(call: Call) -> str | None:
    """The bearer token of a call: of several `authorization` values the first with the prefix counts."""
    for value in call.metadata.get("authorization", ()):
        if value.startswith(_PREFIX):
            return value[len(_PREFIX) :]
    return None
