"""A source in memory: its owner replaces the snapshot, and everybody else follows."""

from __future__ import annotations

from istio_auth.bundle import BundleSet, TrustBundle
from istio_auth.clock import Clock
from istio_auth.sources.source import Source
from istio_auth.svid import X509SVID
from istio_auth.x509_source import X509Context


class MemorySource(Source):
    """A source whose owner sets the content. An SVID is served after its end too, until the owner replaces it.

    Args:
        context: what it holds at first; if None, it is not ready.
        clock: tells the age of what is held, and how much life is left; the machine's by default.
    """

    def __init__(self, context: X509Context | None = None, *, clock: Clock | None = None) -> None:
        super().__init__("memory", "its owner puts one in with replace()", clock=clock, serve_ended=True)
        if context is not None:
            self._hold(context)

    @classmethod
    def of(cls, svid: X509SVID, *bundles: TrustBundle) -> MemorySource:
        """A source that holds one SVID and these bundles."""
        return cls(X509Context((svid,), BundleSet(bundles)))

    def replace(self, context: X509Context) -> None:
        """Put a new snapshot in the place of the old one, then tell the subscribers."""
        self._hold(context)
