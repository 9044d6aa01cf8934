"""The rules of one TLS context: what it presents now, and whether it admits a peer now.

Both are decided again for each connection; nothing that was proven is kept for the next one.
"""

from __future__ import annotations

import functools
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

from istio_auth.authorize import Authorizer, admit
from istio_auth.clock import Clock
from istio_auth.errors import ConfigurationError, Fault, InvalidPEM, NotReady, VerificationError
from istio_auth.peer import VerifiedPeer
from istio_auth.pem import read_der_certificate
from istio_auth.verify import MAX_CHAIN, verify_chain
from istio_auth.x509_source import X509Context, X509Source

# Peers come again, and many share an intermediate: parsed certificates are cached, but never what they proved.
_read_certificate = functools.lru_cache(maxsize=128)(read_der_certificate)


@dataclass(frozen=True)
class Rules:
    """The rules of one context.

    Args:
        source: holds our SVID and the bundles.
        authorize: decides on each peer whose SPIFFE ID is proven.
        clock: tells when a chain must be valid.
        demanded: whether a peer must present a certificate.
        istio_alpn: whether protocols are offered under Istio's names as well.

    Raises:
        ConfigurationError: what was given is no source, or no authorizer.
    """

    source: X509Source
    authorize: Authorizer
    clock: Clock
    demanded: ssl.VerifyMode
    istio_alpn: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.source, type) or not callable(getattr(self.source, "x509_context", None)):
            raise ConfigurationError(
                f"a TLS context needs a source, such as FileSource(...) or WorkloadAPISource(), and not {self.source!r}"
            )
        if not callable(self.authorize):
            raise ConfigurationError(
                f"a TLS context needs an authorizer, such as is_id(...) or any_id(), and not {self.authorize!r}"
            )

    def snapshot(self) -> X509Context:
        """The snapshot for a connection that begins now.

        Raises:
            NotReady: the source serves nothing, or our SVID has ended.
        """
        held = self.source.x509_context()
        if held.svids and self.clock.now() > (ended := held.svid.not_after):
            raise NotReady(
                f"our own SVID {held.svid.id} ended {ended:%F %T} UTC, and its source has brought no other since;"
                " look at the status of the source for what keeps it from renewing"
            )
        return held

    def judge(self, presented: Sequence[bytes]) -> VerifiedPeer:
        """Verify the peer that presented this chain.

        Raises:
            VerificationError: the chain proves no SPIFFE ID.
            NotAuthorized: it proves a SPIFFE ID that is not welcome.
            NotReady: the source serves nothing any more.
        """
        if not presented and self.demanded is ssl.CERT_OPTIONAL:
            return VerifiedPeer(None, ())
        if len(presented) > MAX_CHAIN:
            raise VerificationError(Fault.TOO_LONG, f"{len(presented)} certificates, at most {MAX_CHAIN} are looked at")
        try:
            chain = tuple(map(_read_certificate, presented))
        except InvalidPEM as error:
            raise VerificationError(Fault.UNPARSABLE, str(error)) from error
        spiffe_id = verify_chain(chain, self.source.x509_context().bundles, self.clock.now())
        admit(spiffe_id, self.authorize)
        return VerifiedPeer(spiffe_id, chain)
