"""The blocking client of the Workload API, for threads; it survives a fork of the process (see `rpc.blocking`)."""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from datetime import timedelta
from typing import Self, TypeVar

from google.protobuf.message import Message

from istio_auth.bundle import BundleSet
from istio_auth.errors import IstioAuthError, NotReady
from istio_auth.jwt_bundle import JWTBundleSet
from istio_auth.jwt_svid import JWTSVID
from istio_auth.proto import workload_api_pb2 as messages
from istio_auth.rpc.blocking import BlockingChannel, Interrupted
from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import X509SVID
from istio_auth.workload_api import decode, methods
from istio_auth.workload_api.address import chosen_address, grpc_target
from istio_auth.workload_api.backoff import Backoff
from istio_auth.workload_api.decode import InvalidResponse, ValidatedJWTSVID
from istio_auth.workload_api.methods import METADATA, Topic
from istio_auth.x509_source import X509Context

_Response = TypeVar("_Response", bound=Message)
_Value = TypeVar("_Value")


class BlockingWorkloadAPIClient:
    """Calls the Workload API, from any thread. A context manager.

    A fetch asks once, and raises if that fails. A watch yields what there is now, and again after each change, without
    end: a stream that ends is opened again, after a wait that depends on the reason.

    Args:
        address: where it listens, as `unix:///run/spiffe/agent.sock`; by default what `SPIFFE_ENDPOINT_SOCKET` says.
        timeout: how long an answer, or the first answer of a watch, may take.

    Raises:
        ConfigurationError: the address is malformed, or there is none.
    """

    def __init__(self, address: str | None = None, *, timeout: timedelta = methods.TIMEOUT) -> None:
        self.address = chosen_address(address, os.environ)
        self._channel = BlockingChannel(grpc_target(self.address))
        self._timeout = timeout

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_exc: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, for good: calls that wait for an answer raise `NotReady`, and watches end."""
        self._channel.close()

    def closed_within(self, wait: timedelta) -> bool:
        """Wait this long, or until the client is closed; return whether it is closed."""
        return self._channel.closed_within(wait)

    def fetch_x509_context(self) -> X509Context:
        """The SVIDs of this workload, the default first, and its bundles, including the federated ones.

        Raises:
            NotAuthorized: this workload has no identity.
            NotReady: there was no answer; another attempt may succeed.
            InvalidResponse: the answer breaks the standard.
            IstioAuthError: anything else.
        """
        return self._first(methods.X509_CONTEXT)

    def fetch_x509_svids(self) -> tuple[X509SVID, ...]:
        """The SVIDs of this workload, the default first (see `fetch_x509_context`)."""
        return self.fetch_x509_context().svids

    def fetch_x509_bundles(self) -> BundleSet:
        """The bundles that this workload may use, its own trust domain's among them (see `fetch_x509_context`)."""
        return self._first(methods.X509_BUNDLES)

    def fetch_jwt_svids(self, audience: Sequence[str], *, spiffe_id: SpiffeID | None = None) -> tuple[JWTSVID, ...]:
        """New JWT-SVIDs, the default first.

        Args:
            audience: whom they are for; at least one, best exactly one.
            spiffe_id: the identity; by default there is one JWT-SVID for each identity of this workload (WA-17).

        Raises:
            ConfigurationError: no audience was named.
            NotAuthorized: the workload has no identity, or not this one.
            IstioAuthError: see `fetch_x509_context`.
        """
        request = methods.jwt_svid_request(audience, spiffe_id)
        response = self._unary(methods.JWT_SVIDS, request, messages.JWTSVIDResponse)
        return decode.jwt_svids(response, audience=audience, spiffe_id=spiffe_id)

    def fetch_jwt_bundles(self) -> JWTBundleSet:
        """The bundles to validate JWT-SVIDs with (see `fetch_x509_context`)."""
        return self._first(methods.JWT_BUNDLES)

    def validate_jwt_svid(self, token: str, audience: str) -> ValidatedJWTSVID:
        """Let the Workload API validate a token.

        Raises:
            MalformedError: the API refuses the token, for this reason.
            ConfigurationError: no audience or no token was given.
            IstioAuthError: see `fetch_x509_context`.
        """
        request = methods.validation_request(token, audience)
        return decode.validated(self._unary(methods.VALIDATE_JWT_SVID, request, messages.ValidateJWTSVIDResponse))

    def watch_x509_context(self, on_error: Callable[[IstioAuthError], None]) -> Iterator[X509Context]:
        """What `fetch_x509_context` gives, now and after each change, until the client is closed.

        Args:
            on_error: called with each failure, before the next attempt. After `NotAuthorized`, values that came before
                must not be used any more (WA-14); after all other errors they may be. `InvalidResponse` means that an
                answer was ignored, or that a trust domain was left out of one.

        Raises:
            IstioAuthError: calling again can not help (see `istio_auth.workload_api.backoff`).
        """
        return self._watch(methods.X509_CONTEXT, on_error)

    def watch_x509_bundles(self, on_error: Callable[[IstioAuthError], None]) -> Iterator[BundleSet]:
        """What `fetch_x509_bundles` gives, now and after each change (see `watch_x509_context`)."""
        return self._watch(methods.X509_BUNDLES, on_error)

    def watch_jwt_bundles(self, on_error: Callable[[IstioAuthError], None]) -> Iterator[JWTBundleSet]:
        """What `fetch_jwt_bundles` gives, now and after each change (see `watch_x509_context`)."""
        return self._watch(methods.JWT_BUNDLES, on_error)

    def _unary(self, path: str, request: Message, response_type: type[_Response]) -> _Response:
        return self._channel.unary(path, request, response_type, timeout=self._timeout, metadata=METADATA)

    def _first(self, topic: Topic[_Response, _Value]) -> _Value:
        stream = self._stream(topic)
        try:
            for response in stream:
                return methods.complete(topic.decode(response))
        finally:
            stream.close()
        raise NotReady(f"{topic.path} ended without an answer")

    def _watch(self, topic: Topic[_Response, _Value], on_error: Callable[[IstioAuthError], None]) -> Iterator[_Value]:
        backoff = Backoff(random.random)
        wait = timedelta()
        while not self.closed_within(wait):
            began = time.monotonic()
            try:
                yield from self._values(topic, on_error)
            except Interrupted:
                wait = timedelta()  # the client was closed, or there was a fork, which is over by now
            except IstioAuthError as error:
                if (after := backoff.failed(error, _since(began))) is None:
                    raise
                on_error(error)
                wait = after
            else:
                wait = backoff.ended(_since(began))

    def _values(self, topic: Topic[_Response, _Value], on_error: Callable[[IstioAuthError], None]) -> Iterator[_Value]:
        for response in self._stream(topic):
            try:
                decoded = topic.decode(response)
            except InvalidResponse as error:
                on_error(error)
            else:
                yield decoded.value
                for reason in decoded.left_out:
                    on_error(reason)  # after the value, because it is about that

    def _stream(self, topic: Topic[_Response, _Value]) -> Generator[_Response]:
        return self._channel.stream(
            topic.path, topic.request, topic.response_type, first_within=self._timeout, metadata=METADATA
        )


def _since(began: float) -> timedelta:
    return timedelta(seconds=time.monotonic() - began)
