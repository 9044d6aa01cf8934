"""Judges a chain: whether it would be accepted, and if not, why not and what to do. Pure, over `istio_auth.verify`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from ca.cli.certificate_view import name_words
from istio_auth.authorize import Authorizer
from istio_auth.bundle import BundleSet
from istio_auth.errors import Fault, NotAuthorized, VerificationError
from istio_auth.spiffe_id import SpiffeID
from istio_auth.verify import verify_chain

NOT_WELCOME = "NOT_WELCOME"
_REMEDIES = {
    Fault.EXPIRED: "find out why it was not renewed: is its node agent running, and can it reach the CA?",
    Fault.NOT_YET_VALID: "compare the clocks of this machine and of the CA",
    Fault.FOREIGN_TRUST_DOMAIN: "give the bundle of that trust domain with --trust-bundle",
    Fault.UNTRUSTED: "compare its issuer with the bundle; `ca-cli trust-bundle` prints the CA's own",
    Fault.EMPTY: "let the peer present a certificate chain",
}


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a peer would be accepted.

    Args:
        spiffe_id: the identity that is proven, or None.
        fault: the name of what is wrong, or None if the peer is accepted.
        reason: what is wrong, in words.
        remedy: what to do about it.
    """

    spiffe_id: SpiffeID | None
    fault: str | None = None
    reason: str = ""
    remedy: str = ""

    @property
    def accepted(self) -> bool:
        """Whether nothing is wrong."""
        return self.fault is None


def judge(chain: Sequence[x509.Certificate], bundles: BundleSet, authorize: Authorizer, *, now: datetime) -> Verdict:
    """The verdict on a chain at an instant."""
    try:
        spiffe_id = verify_chain(chain, bundles, now)
    except VerificationError as error:
        remedy = _REMEDIES.get(error.fault, "let a CA issue it that follows the X509-SVID standard")
        return Verdict(None, error.fault.name, f"{error}{_anchors(error.fault, chain, bundles)}", remedy)
    try:
        authorize(spiffe_id)
    except NotAuthorized as error:
        return Verdict(spiffe_id, NOT_WELCOME, str(error), "expect another identity, or dial the right peer")
    return Verdict(spiffe_id)


def _anchors(fault: Fault, chain: Sequence[x509.Certificate], bundles: BundleSet) -> str:
    """For an untrusted chain, the issuer that it names last and those that are trusted; otherwise nothing."""
    if fault is not Fault.UNTRUSTED:
        return ""
    trusted = [name_words(root.subject) for bundle in bundles for root in bundle.x509_authorities]
    return f"; the last issuer named is {name_words(chain[-1].issuer)!r}, trusted are {', '.join(map(repr, trusted))}"
