"""A Workload API on a real socket that says what a test puts into it, and misbehaves on request."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeAlias, TypeVar

import grpc
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.protobuf.message import Message

from istio_auth.bundle import TrustBundle
from istio_auth.proto import workload_api_pb2 as messages
from istio_auth.svid import X509SVID
from tests.fakes.token_issuer import TokenIssuer

Request = TypeVar("Request", bound=Message)
Context: TypeAlias = grpc.ServicerContext
STREAMS = ("FetchX509SVID", "FetchX509Bundles", "FetchJWTBundles")
_SECURITY_HEADER = ("workload.spiffe.io", "true")


def der(bundle: TrustBundle) -> bytes:
    """A bundle as the API says it."""
    return b"".join(authority.public_bytes(Encoding.DER) for authority in bundle.x509_authorities)


def entry(svid: X509SVID, trusted: TrustBundle, /, **changes: object) -> messages.X509SVID:
    """An SVID as the API says it; a change replaces a field."""
    key = svid.private_key.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
    fields: dict[str, object] = {
        "spiffe_id": str(svid.id),
        "x509_svid": b"".join(certificate.public_bytes(Encoding.DER) for certificate in svid.chain),
        "x509_svid_key": key,
        "bundle": der(trusted),
        "hint": svid.hint,
    }
    return messages.X509SVID(**(fields | changes))  # type: ignore[arg-type]  # the fields of the message, by name


def x509(*entries: messages.X509SVID, federated: Iterable[TrustBundle] = ()) -> messages.X509SVIDResponse:
    """What FetchX509SVID answers."""
    foreign = {str(bundle.trust_domain.id): der(bundle) for bundle in federated}
    return messages.X509SVIDResponse(svids=entries, federated_bundles=foreign)


def x509_bundles(*bundles: TrustBundle) -> messages.X509BundlesResponse:
    """What FetchX509Bundles answers."""
    return messages.X509BundlesResponse(bundles={str(bundle.trust_domain.id): der(bundle) for bundle in bundles})


def jwt_bundles(issuers: Mapping[str, TokenIssuer], **changes: str | None) -> messages.JWTBundlesResponse:
    """What FetchJWTBundles answers, as SPIRE does: without saying what the keys are for."""
    unsaid = {"use": None, **changes}
    sets = {f"spiffe://{name}": issuer.jwks(**unsaid).encode() for name, issuer in issuers.items()}
    return messages.JWTBundlesResponse(bundles=sets)


@dataclass
class Stream:
    """One method with a stream of responses, as a test wants it.

    Attributes:
        metadata: of each call so far.
        open: how many calls are being answered now.
    """

    metadata: list[Sequence[tuple[str, str | bytes]]] = field(default_factory=list)
    open: int = 0
    _said: bytes | None = None
    _refusal: tuple[grpc.StatusCode, str] | None = None
    _version: int = 0
    _ended: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @property
    def calls(self) -> int:
        return len(self.metadata)

    def say(self, response: Message | bytes) -> None:
        """Answer so from now on, and tell everybody who listens; bytes may be no message at all."""
        with self._changed:
            self._said = response if isinstance(response, bytes) else response.SerializeToString()
            self._refusal = None
            self._version += 1
            self._changed.notify_all()

    def refuse(self, code: grpc.StatusCode, details: str = "no identity issued") -> None:
        """End everybody's call like this, and all that come later, until something is said again."""
        with self._changed:
            self._refusal = code, details
            self._changed.notify_all()

    def hush(self) -> None:
        """Say nothing more to anybody who comes."""
        with self._changed:
            self._said = self._refusal = None

    def end(self) -> None:
        """End everybody's call well."""
        with self._changed:
            self._ended += 1
            self._changed.notify_all()

    def answer(self, context: Context) -> Iterator[bytes]:
        with self._changed:
            self.metadata.append(tuple(context.invocation_metadata()))
            self.open += 1
            ended, seen = self._ended, -1
        context.add_callback(self._wake)
        try:
            while context.is_active():
                with self._changed:
                    if (refusal := self._refusal) is None and self._ended != ended:
                        return
                    said, fresh, seen = self._said, self._version != seen, self._version
                    if refusal is None and (said is None or not fresh):
                        self._changed.wait(5)
                        continue
                if refusal is not None:
                    context.abort(*refusal)
                assert said is not None
                yield said
        finally:
            with self._changed:
                self.open -= 1

    def _wake(self) -> None:
        with self._changed:
            self._changed.notify_all()


class FakeWorkloadAPI:
    """Listens at a path from entering to leaving; it may be entered again.

    Attributes:
        x509, x509_bundles, jwt_bundles: what the streams say.
        port: where else it listens, on the loopback.
        jwt_svids, validate: what the other methods answer; None for what is not supported.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.x509, self.x509_bundles, self.jwt_bundles = Stream(), Stream(), Stream()
        self.jwt_svids: Callable[[messages.JWTSVIDRequest, Context], messages.JWTSVIDResponse] | None = None
        self.validate: Callable[[messages.ValidateJWTSVIDRequest, Context], messages.ValidateJWTSVIDResponse] | None
        self.validate = None
        self.port = 0
        self._server: grpc.Server | None = None

    @property
    def address(self) -> str:
        return f"unix://{self.path}"

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_exc: object) -> None:
        self.stop()

    def start(self) -> None:
        pool = ThreadPoolExecutor(20)
        self._server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        self._server.add_generic_rpc_handlers((self._handlers(),))
        assert self._server.add_insecure_port(self.address)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()
        self._pool = pool

    def stop(self) -> None:
        """Go away as one does who is killed."""
        if self._server is not None:
            self._server.stop(None).wait()
            self._pool.shutdown()
            self._server = None
        self.path.unlink(missing_ok=True)

    def _handlers(self) -> grpc.GenericRpcHandler[bytes, bytes]:
        streams = (self.x509, self.x509_bundles, self.jwt_bundles)
        handlers = {name: _streaming(stream) for name, stream in zip(STREAMS, streams, strict=True)}
        handlers["FetchJWTSVID"] = _unary(lambda: self.jwt_svids, messages.JWTSVIDRequest)
        handlers["ValidateJWTSVID"] = _unary(lambda: self.validate, messages.ValidateJWTSVIDRequest)
        return grpc.method_handlers_generic_handler("SpiffeWorkloadAPI", handlers)


def _streaming(stream: Stream) -> grpc.RpcMethodHandler[bytes, bytes]:
    def answer(_request: bytes, context: Context) -> Iterator[bytes]:
        _check_header(context)
        return stream.answer(context)

    return grpc.unary_stream_rpc_method_handler(answer)


def _unary(
    function: Callable[[], Callable[[Request, Context], Message] | None], request_type: type[Request]
) -> grpc.RpcMethodHandler[bytes, bytes]:
    def answer(data: bytes, context: Context) -> bytes:
        _check_header(context)
        if (found := function()) is None:
            context.abort(grpc.StatusCode.UNIMPLEMENTED, "not supported")
        return found(request_type.FromString(data), context).SerializeToString()

    return grpc.unary_unary_rpc_method_handler(answer)


def _check_header(context: Context) -> None:
    if _SECURITY_HEADER not in context.invocation_metadata():
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "security header missing from request")
