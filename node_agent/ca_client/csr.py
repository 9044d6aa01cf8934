"""What the agent sends to have a key certified: a CSR with one name and nothing else.

Our CA takes the name from what it knows of us, and not from the CSR. It is there for the logs of other CAs.
"""

from __future__ import annotations

from datetime import timedelta

from cryptography import x509

from istio_auth.keys import PrivateKey, signature_hash
from istio_auth.spiffe_id import SpiffeID
from node_agent.ca_client.port import SigningRequest


def request_for(
    spiffe_id: SpiffeID, key: PrivateKey, *, ttl: timedelta | None = None, own: bool = False
) -> SigningRequest:
    """A request for this identity and key (see `SigningRequest`)."""
    names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(str(spiffe_id))])
    csr = (
        x509.CertificateSigningRequestBuilder()
        .subject_name(x509.Name([]))
        .add_extension(names, critical=True)
        .sign(key, signature_hash(key))
    )
    return SigningRequest(spiffe_id, csr, ttl, own)
