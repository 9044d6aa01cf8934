"""Envoy's secrets, made from SVIDs and bundles: which name gives what, and its bytes (Envoy API v3, `tls.v3.Secret`).

| name                 | secret                                                                              |
|----------------------|-------------------------------------------------------------------------------------|
| `default`            | the certificate of the first identity that the caller has                           |
| a workload's ID      | the certificate of that identity, if the caller has it                              |
| `ROOTCA`             | the roots of our own trust domain as plain `trusted_ca`, as Istio's sidecars want it |
| a trust domain's ID  | the roots of that trust domain, bound to it by Envoy's SPIFFE validator             |
| `ALL`                | every trusted domain, each bound to its own roots, by Envoy's SPIFFE validator      |

`ROOTCA` never holds a second trust domain's roots: pooled, each of them could vouch for names of the other. Every
other name gives nothing. What was rendered is kept, so that a thousand streams share one copy.
"""

from __future__ import annotations

import enum
import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from envoy.extensions.transport_sockets.tls.v3.secret_pb2 import Secret
from envoy.extensions.transport_sockets.tls.v3.tls_spiffe_validator_config_pb2 import SPIFFECertValidatorConfig

from istio_auth.bundle import TrustBundle
from istio_auth.errors import InvalidSpiffeID, VerificationError
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.svid import X509SVID
from istio_auth.x509_source import X509Context

SECRET_TYPE = "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret"  # noqa: S105  # the name of a type
DEFAULT = "default"
ROOTCA = "ROOTCA"
ALL_BUNDLES = "ALL"
_SPIFFE_VALIDATOR = "envoy.tls.cert_validator.spiffe"


class Sort(enum.Enum):
    """What a name asks for; the label of a metric, for the names themselves are without end."""

    DEFAULT = DEFAULT
    ROOTCA = ROOTCA
    ALL = ALL_BUNDLES
    WORKLOAD = "workload"
    TRUST_DOMAIN = "trust domain"


@dataclass(frozen=True, slots=True)
class Roots:
    """The roots of our own trust domain, as they are in a secret.

    Args:
        fingerprint: stands for them where two are compared.
        sequence: of the bundle that they were taken from, if it says.
    """

    fingerprint: bytes
    sequence: int | None


@dataclass(frozen=True, slots=True)
class Content:
    """What is in a secret, without the secret: kept for each client, and shared by all.

    Args:
        digest: stands for the body where two are compared.
        roots: of our own trust domain, if it tells whom to trust there.
    """

    digest: bytes
    roots: Roots | None = None


@dataclass(frozen=True, slots=True)
class Resource:
    """One secret, ready to be sent.

    Args:
        name: what it is asked for by.
        body: the serialised `Secret`; may hold a private key, so it is never printed.
        content: what is in it.
    """

    name: str
    body: bytes = field(repr=False)
    content: Content

    @classmethod
    def of(cls, secret: Secret, roots: Roots | None = None) -> Resource:
        """The resource of a message."""
        body: bytes = secret.SerializeToString(deterministic=True)
        return cls(secret.name, body, Content(hashlib.sha256(body).digest()[:16], roots))

    @property
    def digest(self) -> bytes:
        """Stands for the body where two are compared."""
        return self.content.digest


class Renderer:
    """Makes resources and keeps them for as long as the SVID or bundle they were made of is in use."""

    def __init__(self) -> None:
        self._certificates: dict[tuple[str, SpiffeID], tuple[X509SVID, Resource]] = {}
        self._contexts: dict[str, tuple[tuple[TrustBundle, ...], Resource]] = {}

    def certificate(self, name: str, svid: X509SVID) -> Resource:
        """An SVID under this name."""
        kept = self._certificates.get((name, svid.id))
        if kept is None or kept[0] is not svid:
            kept = svid, _certificate(name, svid)
            self._certificates[name, svid.id] = kept
        return kept[1]

    def validation_context(self, name: str, *bundles: TrustBundle, own: TrustDomain) -> Resource:
        """Bundles under this name, perhaps with that of our own trust domain among them."""
        kept = self._contexts.get(name)
        if kept is None or not _same(kept[0], bundles):
            make = _trusted_ca if name == ROOTCA else _spiffe_validator
            kept = bundles, make(name, bundles, _roots(bundles, own))
            self._contexts[name] = kept
        return kept[1]

    def keep(self, live: Iterable[SpiffeID]) -> None:
        """Forget the certificates of all other identities: a key must not outlive its registration."""
        wanted = set(live)
        for kept in [kept for kept in self._certificates if kept[1] not in wanted]:
            del self._certificates[kept]


def resolve(name: str, context: X509Context, render: Renderer, own: TrustDomain) -> Resource | None:
    """What a name gives to a workload.

    Args:
        name: the name asked for.
        context: what the workload holds, its default identity first; without an SVID nothing is given.
        render: where resources are made and shared.
        own: our own trust domain.

    Returns:
        the resource, or None while there is nothing under this name.
    """
    if not context.svids:
        return None
    if name == DEFAULT:
        return render.certificate(name, context.svids[0])
    try:
        if name == ROOTCA:
            return render.validation_context(name, context.bundle(own), own=own)
        if name == ALL_BUNDLES:
            bundles = sorted(context.bundles, key=lambda bundle: bundle.trust_domain)
            return render.validation_context(name, *bundles, own=own)
        return _by_id(SpiffeID.parse(name), context, render, own)
    except (InvalidSpiffeID, VerificationError):
        return None


def sort_of(name: str) -> Sort:
    """What a name asks for."""
    try:
        return Sort(name)
    except ValueError:
        is_workload = "/" in name.removeprefix("spiffe://")
        return Sort.WORKLOAD if is_workload else Sort.TRUST_DOMAIN


def _by_id(wanted: SpiffeID, context: X509Context, render: Renderer, own: TrustDomain) -> Resource | None:
    if not wanted.path:
        return render.validation_context(str(wanted), context.bundle(wanted.trust_domain), own=own)
    for svid in context.svids:
        if svid.id == wanted:
            return render.certificate(str(wanted), svid)
    return None


def _same(kept: tuple[TrustBundle, ...], bundles: tuple[TrustBundle, ...]) -> bool:
    return len(kept) == len(bundles) and all(one is other for one, other in zip(kept, bundles, strict=True))


def _certificate(name: str, svid: X509SVID) -> Resource:
    secret = Secret(name=name)
    secret.tls_certificate.certificate_chain.inline_bytes = svid.chain_pem()
    secret.tls_certificate.private_key.inline_bytes = svid.key_pem()
    return Resource.of(secret)


def _roots(bundles: Iterable[TrustBundle], own: TrustDomain) -> Roots | None:
    for bundle in bundles:
        if bundle.trust_domain == own:
            return Roots(hashlib.sha256(bundle.to_pem()).digest()[:16], bundle.sequence)
    return None


def _trusted_ca(name: str, bundles: Iterable[TrustBundle], roots: Roots | None) -> Resource:
    secret = Secret(name=name)
    secret.validation_context.trusted_ca.inline_bytes = b"".join(bundle.to_pem() for bundle in bundles)
    return Resource.of(secret, roots)


def _spiffe_validator(name: str, bundles: Iterable[TrustBundle], roots: Roots | None) -> Resource:
    validator = SPIFFECertValidatorConfig()
    for bundle in bundles:
        domain = validator.trust_domains.add(name=bundle.trust_domain.name)
        domain.trust_bundle.inline_bytes = bundle.to_pem()
    secret = Secret(name=name)
    custom = secret.validation_context.custom_validator_config
    custom.name = _SPIFFE_VALIDATOR
    custom.typed_config.Pack(validator, deterministic=True)
    return Resource.of(secret, roots)
