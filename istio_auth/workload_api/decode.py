"""Decodes the answers of the Workload API: X509Context, BundleSet, JWT-SVIDs, JWTBundleSet (Workload API 5 and 6).

Each answer is the whole state (WA-04): what is not in it is not valid any more (WA-05), and nothing here remembers it.
An answer is taken whole or not at all (WA-09): it is refused if a mandatory field is missing, if peers would refuse an
SVID, or if a key is not that of its certificate. There is one exception. In an answer with SVIDs, a federated bundle
that can not be read is left out alone, or else another trust domain could prevent our renewal. In an answer of bundles,
any bundle that can not be read is left out, as long as one can. Of SVIDs with the same hint the first counts (WA-10).
CRLs are ignored.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sized
from dataclasses import dataclass, field
from functools import wraps
from types import MappingProxyType
from typing import Generic, ParamSpec, TypeVar

from cryptography import x509
from google.protobuf import json_format

from istio_auth.bundle import BundleSet, TrustBundle
from istio_auth.errors import InvalidSpiffeID, IstioAuthError, MalformedError
from istio_auth.jwt_bundle import JWTBundle, JWTBundleSet
from istio_auth.jwt_svid import JWTSVID
from istio_auth.pem import read_der_certificates, read_der_private_key
from istio_auth.proto import workload_api_pb2 as messages
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.strict_json import JSON
from istio_auth.svid import X509SVID
from istio_auth.verify import check_leaf
from istio_auth.x509_source import X509Context

MAX_HINT = 1024  # bytes (WA-11)

_P = ParamSpec("_P")
_R = TypeVar("_R")
_Hinted = TypeVar("_Hinted", X509SVID, JWTSVID)
_Bundle = TypeVar("_Bundle", TrustBundle, JWTBundle)


class InvalidResponse(MalformedError):
    """An answer of the Workload API, or one bundle in it, breaks the standard; nothing of that was taken."""


@dataclass(frozen=True, slots=True)
class Decoded(Generic[_R]):
    """A decoded answer.

    Args:
        value: its value.
        left_out: for each trust domain of the answer that is not in the value, the reason.
    """

    value: _R
    left_out: tuple[InvalidResponse, ...] = ()


@dataclass(frozen=True, slots=True)
class ValidatedJWTSVID:
    """A token that the Workload API has validated.

    Args:
        id: the SPIFFE ID of its subject.
        claims: its claims; the server may leave out those that SPIFFE does not define.
    """

    id: SpiffeID
    claims: Mapping[str, JSON] = field(repr=False)


def _whole(decode: Callable[_P, _R]) -> Callable[_P, _R]:
    """Turn every error of decoding an answer into `InvalidResponse`."""

    @wraps(decode)
    def decoded(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            return decode(*args, **kwargs)
        except InvalidResponse:
            raise
        except IstioAuthError as error:
            raise InvalidResponse(f"the Workload API's answer is refused: {error}") from error

    return decoded


@_whole
def x509_context(response: messages.X509SVIDResponse) -> Decoded[X509Context]:
    """The SVIDs and bundles in an answer of FetchX509SVID.

    Raises:
        InvalidResponse: the answer breaks the standard.
    """
    _mandatory(svids=response.svids)
    svids = [_x509_svid(entry) for entry in response.svids]
    own = [
        TrustBundle(svid.id.trust_domain, _authorities(entry.bundle))
        for svid, entry in zip(svids, response.svids, strict=True)
    ]
    federated, left_out = _each_bundle(response.federated_bundles, _x509_bundle)
    return Decoded(X509Context(_first_of_each_hint(svids), _kept_apart([*own, *federated])), left_out)


@_whole
def x509_bundles(response: messages.X509BundlesResponse) -> Decoded[BundleSet]:
    """The bundles in an answer of FetchX509Bundles (see `x509_context`)."""
    _mandatory(bundles=response.bundles)
    found, left_out = _some_bundle(response.bundles, _x509_bundle)
    return Decoded(BundleSet(tuple(found)), left_out)


@_whole
def jwt_svids(
    response: messages.JWTSVIDResponse, *, audience: Collection[str], spiffe_id: SpiffeID | None
) -> tuple[JWTSVID, ...]:
    """The JWT-SVIDs in an answer of FetchJWTSVID.

    Args:
        response: the answer.
        audience: the audiences that they were asked for.
        spiffe_id: the identity that they were asked for; None for all of them.

    Raises:
        InvalidResponse: the answer breaks the standard, or is for another audience or identity.
    """
    _mandatory(svids=response.svids)
    svids = [_jwt_svid(entry) for entry in response.svids]
    for svid in svids:
        if spiffe_id not in (None, svid.id):
            raise InvalidResponse(f"a JWT-SVID was asked for {spiffe_id}, and one came for {svid.id}")
        if missing := set(audience) - set(svid.audiences):
            raise InvalidResponse(f"the JWT-SVID that came for {svid.id} is not for {', '.join(sorted(missing))}")
    return _first_of_each_hint(svids)


@_whole
def jwt_bundles(response: messages.JWTBundlesResponse) -> Decoded[JWTBundleSet]:
    """The bundles in an answer of FetchJWTBundles (see `x509_context`)."""
    _mandatory(bundles=response.bundles)
    found, left_out = _some_bundle(response.bundles, JWTBundle.from_workload_api)
    return Decoded(JWTBundleSet(tuple(found)), left_out)


@_whole
def validated(response: messages.ValidateJWTSVIDResponse) -> ValidatedJWTSVID:
    """The identity and the claims in an answer of ValidateJWTSVID (see `x509_context`)."""
    _mandatory(spiffe_id=response.spiffe_id, claims=response.claims.fields)
    spiffe_id = SpiffeID.parse(response.spiffe_id)
    claims: dict[str, JSON] = json_format.MessageToDict(response.claims)
    if claims.get("sub") != response.spiffe_id:
        raise InvalidResponse(f"the token was said to be of {spiffe_id}, and its claims speak of another")
    return ValidatedJWTSVID(spiffe_id, MappingProxyType(claims))


def _mandatory(**fields: Sized) -> None:
    for name, value in fields.items():
        if not len(value):
            raise InvalidResponse(f"the Workload API's answer is refused: its field {name} must not be empty (WA-09)")


def _x509_svid(entry: messages.X509SVID) -> X509SVID:
    _mandatory(
        spiffe_id=entry.spiffe_id, x509_svid=entry.x509_svid, x509_svid_key=entry.x509_svid_key, bundle=entry.bundle
    )
    chain = read_der_certificates(entry.x509_svid)
    check_leaf(chain[0])
    return X509SVID(
        SpiffeID.parse(entry.spiffe_id), chain, read_der_private_key(entry.x509_svid_key), _hint(entry.hint)
    )


def _jwt_svid(entry: messages.JWTSVID) -> JWTSVID:
    _mandatory(spiffe_id=entry.spiffe_id, svid=entry.svid)
    svid = JWTSVID.of_agent(entry.svid, hint=_hint(entry.hint))
    if str(svid.id) != entry.spiffe_id:
        raise InvalidResponse(f"a JWT-SVID is of {svid.id}, and was said to be of {entry.spiffe_id[:200]!a}")
    return svid


def _hint(text: str) -> str:
    if len(text.encode()) > MAX_HINT:
        raise InvalidResponse(f"a hint has at most {MAX_HINT} bytes, and one came with {len(text.encode())} (WA-11)")
    return text


def _first_of_each_hint(svids: Iterable[_Hinted]) -> tuple[_Hinted, ...]:
    seen: set[str] = set()
    kept: list[_Hinted] = []
    for svid in svids:
        if svid.hint not in seen:
            kept.append(svid)
        if svid.hint:
            seen.add(svid.hint)
    return tuple(kept)


def _each_bundle(
    entries: Mapping[str, bytes], read: Callable[[TrustDomain, bytes], _Bundle]
) -> tuple[list[_Bundle], tuple[InvalidResponse, ...]]:
    """The bundles that can be read, and the errors of the others."""
    found: list[_Bundle] = []
    left_out: list[InvalidResponse] = []
    for name, content in entries.items():
        try:
            found.append(read(_trust_domain(name), content))
        except IstioAuthError as error:
            left_out.append(InvalidResponse(f"the bundle that came as {name[:200]!a} is left out: {error}"))
    return found, tuple(left_out)


def _some_bundle(
    entries: Mapping[str, bytes], read: Callable[[TrustDomain, bytes], _Bundle]
) -> tuple[list[_Bundle], tuple[InvalidResponse, ...]]:
    """As `_each_bundle`, but an answer is refused if none of its bundles can be read."""
    found, left_out = _each_bundle(entries, read)
    if not found:
        raise left_out[0]
    return found, left_out


def _x509_bundle(trust_domain: TrustDomain, der: bytes) -> TrustBundle:
    """A bundle may be empty: then its trust domain issues no X509-SVIDs (XB-07)."""
    return TrustBundle(trust_domain, _authorities(der) if der else ())


def _authorities(der: bytes) -> tuple[x509.Certificate, ...]:
    return tuple(dict.fromkeys(read_der_certificates(der)))


def _trust_domain(name: str) -> TrustDomain:
    spiffe_id = SpiffeID.parse(name)
    if spiffe_id.path:
        raise InvalidSpiffeID(f"{spiffe_id} is the name of a bundle, and no trust domain's: it has a path")
    return spiffe_id.trust_domain


def _kept_apart(bundles: Iterable[TrustBundle]) -> BundleSet:
    """The bundles as a set; an answer with two different bundles for one trust domain is refused."""
    found: dict[TrustDomain, TrustBundle] = {}
    for bundle in bundles:
        before = found.setdefault(bundle.trust_domain, bundle)
        if set(before.x509_authorities) != set(bundle.x509_authorities):
            raise InvalidResponse(f"two different bundles came for {bundle.trust_domain}")
    return BundleSet(tuple(found.values()))
