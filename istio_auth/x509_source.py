"""X509Context and the X509Source port: SVIDs and bundles that belong together, as one snapshot.

A source is asked at each use and answers with an immutable snapshot. A change replaces the whole snapshot, so nobody
sees half of a rotation. The same object is returned as long as nothing changed, so `is` tells whether work that was
done for an earlier snapshot can be used again.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from istio_auth.bundle import BundleSet, TrustBundle
from istio_auth.errors import NotReady
from istio_auth.spiffe_id import TrustDomain
from istio_auth.svid import X509SVID


@dataclass(frozen=True, slots=True, eq=False)
class X509Context:
    """What a workload holds at one moment: its SVIDs, the default one first, and the bundles it trusts."""

    svids: tuple[X509SVID, ...]
    bundles: BundleSet

    @property
    def svid(self) -> X509SVID:
        """The default SVID.

        Raises:
            NotReady: there is none.
        """
        if not self.svids:
            raise NotReady("no SVID is held")
        return self.svids[0]

    def bundle(self, trust_domain: TrustDomain) -> TrustBundle:
        """The bundle of a trust domain.

        Raises:
            VerificationError: that trust domain is not trusted.
        """
        return self.bundles.bundle(trust_domain)


class X509Source(Protocol):
    """Holds a workload's X509Context and replaces it when something changes."""

    def x509_context(self) -> X509Context:
        """The present snapshot; cheap, callable from any thread.

        Raises:
            NotReady: nothing has arrived yet, or the source is closed.
            IstioAuthError: it may serve nothing any more, for this reason.
        """
        ...

    def subscribe(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed`, on whichever thread makes the change, after each replacement.

        Returns:
            a function that ends the subscription.
        """
        ...
