"""A client, a server and their CA: what the examples stand in."""

from __future__ import annotations

from istio_auth.bundle import BundleSet
from istio_auth.sources.memory import MemorySource
from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import X509SVID
from istio_auth.x509_source import X509Context
from tests.fakes.authority import FakeAuthority

SERVER = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/server")
CLIENT = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/client")
OTHER = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/other")


class World:
    """Both ends hold SVIDs of one root, until it is replaced by another."""

    def __init__(self) -> None:
        self.authority = FakeAuthority()
        self.server = MemorySource.of(self.svid(SERVER), self.authority.bundle())
        self.client = MemorySource.of(self.svid(CLIENT), self.authority.bundle())

    def svid(self, spiffe_id: SpiffeID) -> X509SVID:
        """By the root of now."""
        return self.authority.svid(spiffe_id.path)

    def client_is(self, spiffe_id: SpiffeID) -> None:
        """Give the client a new SVID by the root of now."""
        self.client_holds(self.svid(spiffe_id))

    def server_is(self, spiffe_id: SpiffeID) -> None:
        """Give the server a new SVID by the root of now."""
        self.server_holds(self.svid(spiffe_id))

    def client_holds(self, svid: X509SVID) -> None:
        """Give the client an SVID of any root; it trusts the root of now."""
        self.client.replace(self._context(svid))

    def server_holds(self, svid: X509SVID) -> None:
        """Give the server an SVID of any root; it trusts the root of now."""
        self.server.replace(self._context(svid))

    def _context(self, svid: X509SVID) -> X509Context:
        return X509Context((svid,), BundleSet((self.authority.bundle(),)))

    def rotate_root(self) -> None:
        """New root, new SVIDs; nobody trusts the old root any more."""
        self.authority = FakeAuthority()
        self.server_is(SERVER)
        self.client_is(CLIENT)
