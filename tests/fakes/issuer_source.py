"""An IssuerSource in memory: shows what a test puts there, late or not at all on request."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from cryptography import x509

from istio_auth.pem import write_certificates, write_private_key
from tests.fakes.authority import FakeAuthority


class MemoryIssuerSource:
    """Has the files of an issuer, or none.

    Attributes:
        content: the files, by name.
        reading: called before each look; may raise.
    """

    def __init__(self, issuer: FakeAuthority | None = None) -> None:
        self.content: Mapping[str, bytes] = {} if issuer is None else cacerts(issuer)
        self.reading: Callable[[], None] = lambda: None

    @property
    def where(self) -> str:
        return "memory"

    def files(self) -> Mapping[str, bytes]:
        self.reading()
        return self.content

    def show(self, issuer: FakeAuthority | None) -> None:
        """Put another issuer there, or none."""
        self.content = {} if issuer is None else cacerts(issuer)


def cacerts(issuer: FakeAuthority, *, roots: Sequence[x509.Certificate] | None = None) -> dict[str, bytes]:
    """The files of an issuer as a `cacerts` secret holds them."""
    return {
        "ca-cert.pem": write_certificates((issuer.certificate,)),
        "ca-key.pem": write_private_key(issuer.key),
        "cert-chain.pem": write_certificates(issuer.intermediates),
        "root-cert.pem": write_certificates((issuer.root,) if roots is None else roots),
    }
