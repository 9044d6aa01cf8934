"""The methods of the Workload API as both clients call them: their names, messages, metadata and timeout."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, TypeVar

from google.protobuf.message import Message

from istio_auth.bundle import BundleSet
from istio_auth.errors import ConfigurationError
from istio_auth.jwt_bundle import JWTBundleSet
from istio_auth.proto import workload_api_pb2 as messages
from istio_auth.spiffe_id import SpiffeID
from istio_auth.workload_api import decode
from istio_auth.workload_api.decode import Decoded
from istio_auth.x509_source import X509Context

Response = TypeVar("Response", bound=Message)
Value = TypeVar("Value")

_LOG = logging.getLogger(__name__)

METADATA = (("workload.spiffe.io", "true"),)  # on every call (WE-05)
TIMEOUT = timedelta(seconds=30)

JWT_SVIDS = "/SpiffeWorkloadAPI/FetchJWTSVID"
VALIDATE_JWT_SVID = "/SpiffeWorkloadAPI/ValidateJWTSVID"


@dataclass(frozen=True, slots=True)
class Topic(Generic[Response, Value]):
    """A method of the Workload API with a stream: it answers at once, and again after each change.

    Args:
        path: the path of the method.
        request: its request.
        response_type: the message of its answers.
        decode: makes a value of an answer, or raises `InvalidResponse`.
    """

    path: str
    request: Message
    response_type: type[Response]
    decode: Callable[[Response], Decoded[Value]]


X509_CONTEXT: Topic[messages.X509SVIDResponse, X509Context] = Topic(
    "/SpiffeWorkloadAPI/FetchX509SVID", messages.X509SVIDRequest(), messages.X509SVIDResponse, decode.x509_context
)
X509_BUNDLES: Topic[messages.X509BundlesResponse, BundleSet] = Topic(
    "/SpiffeWorkloadAPI/FetchX509Bundles",
    messages.X509BundlesRequest(),
    messages.X509BundlesResponse,
    decode.x509_bundles,
)
JWT_BUNDLES: Topic[messages.JWTBundlesResponse, JWTBundleSet] = Topic(
    "/SpiffeWorkloadAPI/FetchJWTBundles", messages.JWTBundlesRequest(), messages.JWTBundlesResponse, decode.jwt_bundles
)


def complete(decoded: Decoded[Value]) -> Value:
    """The value, for a fetch; what was left out of it is logged."""
    for reason in decoded.left_out:
        _LOG.warning("%s", reason)
    return decoded.value


def jwt_svid_request(audience: Sequence[str], spiffe_id: SpiffeID | None) -> messages.JWTSVIDRequest:
    """The request for JWT-SVIDs.

    Raises:
        ConfigurationError: there is no audience, an empty one, or one text in the place of a list (WA-08).
    """
    if isinstance(audience, str) or not audience or not all(audience):
        raise ConfigurationError("a JWT-SVID is for somebody: give a list of at least one audience, none of them empty")
    return messages.JWTSVIDRequest(audience=audience, spiffe_id="" if spiffe_id is None else str(spiffe_id))


def validation_request(token: str, audience: str) -> messages.ValidateJWTSVIDRequest:
    """The request to validate a token.

    Raises:
        ConfigurationError: the audience or the token is empty (WA-08).
    """
    if not audience or not token:
        raise ConfigurationError("to validate a JWT-SVID takes a token and an audience")
    return messages.ValidateJWTSVIDRequest(audience=audience, svid=token)
