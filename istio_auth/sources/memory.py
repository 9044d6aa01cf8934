"""A source in memory: whoever owns it replaces its snapshot, everybody else follows."""

from __future__ import annotations

from collections.abc import Callable

from istio_auth.bundle import BundleSet, TrustBundle
from istio_auth.errors import NotReady
from istio_auth.spiffe_id import TrustDomain
from istio_auth.subscribers import Subscribers
from istio_auth.svid import X509SVID
from istio_auth.x509_source import X509Context


class MemorySource:
    """An `X509Source` whose content its owner replaces.

    Args:
        context: what it holds at first; without one it is not ready.
    """

    def __init__(self, context: X509Context | None = None) -> None:
        self._context = context
        self._subscribers = Subscribers()

    @classmethod
    def of(cls, svid: X509SVID, *bundles: TrustBundle) -> MemorySource:
        """A source that holds one SVID and these bundles."""
        return cls(X509Context((svid,), BundleSet(bundles)))

    def x509_context(self) -> X509Context:
        """The present snapshot.

        Raises:
            NotReady: nothing was put in yet.
        """
        if (context := self._context) is None:
            raise NotReady("no SVID has arrived yet")
        return context

    def svid(self) -> X509SVID:
        """The default SVID (see `x509_context`)."""
        return self.x509_context().svid

    def bundle(self, trust_domain: TrustDomain) -> TrustBundle:
        """The bundle of a trust domain (see `x509_context`)."""
        return self.x509_context().bundle(trust_domain)

    def replace(self, context: X509Context) -> None:
        """Put a new snapshot in the place of the old one, then tell the subscribers."""
        self._context = context
        self._subscribers.tell()

    def subscribe(self, changed: Callable[[], None]) -> Callable[[], None]:
        """Call `changed` after each replacement, until the returned function is called."""
        return self._subscribers.add(changed)
