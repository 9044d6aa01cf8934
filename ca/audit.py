"""One line for every certificate issued or refused, and the counts that belong to it.

The line tells everything: who asked, how that was proven, for whom, and in full why not. What the caller hears is
decided elsewhere, and is less.
"""

from __future__ import annotations

import structlog

from ca.attest import Attested
from ca.issuer import IssuedSVID
from ca.metrics import Counts
from istio_auth.errors import IstioAuthError

_log = structlog.get_logger("audit")
_MAX_REASON = 1000
_UNPROVEN = "none"


class Audit:
    """Writes the lines.

    Args:
        counts: what is counted with them.
    """

    def __init__(self, counts: Counts) -> None:
        self.counts = counts

    def issued(self, svid: IssuedSVID, attested: Attested, request_id: str) -> None:
        """A certificate leaves."""
        self.counts.issued[attested.method] += 1
        _log.info(
            "certificate issued",
            serial=f"{svid.serial:x}",
            identity=str(svid.spiffe_id),
            caller=str(attested.spiffe_id),
            method=attested.method,
            proof=dict(attested.details),
            not_after=svid.not_after.isoformat(),
            request_id=request_id,
        )

    def refused(
        self,
        error: IstioAuthError,
        request_id: str,
        *,
        caller: str,
        attested: Attested | None = None,
        wanted: str | None = None,
    ) -> None:
        """No certificate leaves.

        Args:
            error: why.
            request_id: of the call.
            caller: the caller as the door saw it.
            attested: who it is, if that was proven.
            wanted: the identity that was asked for, if it is known; as the caller wrote it.
        """
        method = _UNPROVEN if attested is None else attested.method
        self.counts.refused[(method, error.code)] += 1
        _log.warning(
            "certificate refused",
            identity=None if wanted is None else ascii(wanted[:200]).strip("'\""),
            caller=caller if attested is None else str(attested.spiffe_id),
            method=method,
            proof=None if attested is None else dict(attested.details),
            code=error.code.name.lower(),
            reason=str(error)[:_MAX_REASON],
            request_id=request_id,
        )
