"""The messages of the Workload API, made from SVIDs and bundles (Workload API 5; `WA-*` of the standard).

Each message is the whole state (WA-04). The first SVID is the default (WA-12). A hint that two identities have stays
with the first (WA-10). An SVID carries the bundle of its own trust domain, the other trust domains come beside it, and
none is ever mixed with another (WA-19). What was encoded is kept for as long as it is in use: a thousand streams of one
workload encode its key once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from cryptography import x509

from istio_auth.bundle import BundleSet, TrustBundle
from istio_auth.pem import write_der, write_der_private_key
from istio_auth.proto import workload_api_pb2 as messages
from istio_auth.registration import Registration
from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import X509SVID
from istio_auth.x509_source import X509Context


class Renderer:
    """Makes messages."""

    def __init__(self) -> None:
        self._svids: dict[SpiffeID, tuple[X509SVID, messages.X509SVID]] = {}
        self._bundles: dict[str, tuple[TrustBundle, bytes]] = {}

    def svids(self, context: X509Context, registrations: Iterable[Registration]) -> messages.X509SVIDResponse:
        """What a workload holds; empty while none of its SVIDs is there.

        Args:
            context: its SVIDs, the default first, and whom to trust.
            registrations: what it has them by, for their hints.
        """
        response = messages.X509SVIDResponse()
        hints = distinct_hints(registrations)
        domains = {svid.id.trust_domain for svid in context.svids}
        bundles = {bundle.trust_domain: self._der(bundle) for bundle in context.bundles}
        for svid in context.svids:
            if der := bundles.get(svid.id.trust_domain):
                entry = response.svids.add()
                entry.CopyFrom(self._svid(svid))
                entry.bundle, entry.hint = der, hints.get(svid.id, "")
        if response.svids:
            for trust_domain in bundles.keys() - domains:
                response.federated_bundles[str(trust_domain.id)] = bundles[trust_domain]
        return response

    def bundles(self, bundles: BundleSet) -> messages.X509BundlesResponse:
        """Every trusted domain, our own among them (WA-15)."""
        return messages.X509BundlesResponse(bundles={str(each.trust_domain.id): self._der(each) for each in bundles})

    def keep(self, live: Mapping[SpiffeID, object]) -> None:
        """Forget the SVIDs of all other identities: a key must not outlive its registration."""
        for kept in [kept for kept in self._svids if kept not in live]:
            del self._svids[kept]

    def _svid(self, svid: X509SVID) -> messages.X509SVID:
        kept = self._svids.get(svid.id)
        if kept is None or kept[0] is not svid:
            key = write_der_private_key(svid.private_key)
            kept = svid, messages.X509SVID(spiffe_id=str(svid.id), x509_svid=_der(svid.chain), x509_svid_key=key)
            self._svids[svid.id] = kept
        return kept[1]

    def _der(self, bundle: TrustBundle) -> bytes:
        kept = self._bundles.get(bundle.trust_domain.name)
        if kept is None or kept[0] is not bundle:
            kept = self._bundles[bundle.trust_domain.name] = bundle, _der(bundle.x509_authorities)
        return kept[1]


def distinct_hints(registrations: Iterable[Registration]) -> dict[SpiffeID, str]:
    """By what a workload may pick each identity; of two that have the same hint, only the first keeps it."""
    hints: dict[SpiffeID, str] = {}
    for each in registrations:
        if each.hint and each.hint not in hints.values():
            hints.setdefault(each.spiffe_id, each.hint)
    return hints


def _der(certificates: Sequence[x509.Certificate]) -> bytes:
    return b"".join(map(write_der, certificates))
