"""The error tree: what went wrong, what a caller may be told of it, and whether trying again makes sense.

Every error of this project is an `IstioAuthError`. Its message is for the log of the process that raises it; `public`
is the only text that may leave that process. `code` says what the error means, independent of any transport:
`istio_auth.rpc.status` turns it into a gRPC status, an HTTP server into a status line.
"""

from __future__ import annotations

import enum
from datetime import timedelta
from typing import ClassVar, Self


class Code(enum.Enum):
    """What an error means to whoever has to react to it."""

    MALFORMED = "malformed"
    NOT_AUTHENTICATED = "not authenticated"
    NOT_AUTHORIZED = "not authorized"
    MISSING = "missing"
    UNKNOWN_METHOD = "unknown method"
    CONFLICT = "conflict"
    NOT_READY = "not ready"
    EXHAUSTED = "exhausted"
    INTERNAL = "internal error"


class Fault(enum.Enum):
    """Why a certificate chain was refused; the value is used as a label in metrics and as a word in log lines."""

    EMPTY = "no certificate"
    TOO_LONG = "chain too long"
    UNPARSABLE = "unparsable"
    NO_URI = "no SPIFFE ID"
    SEVERAL_URIS = "several URI names"
    BAD_ID = "malformed SPIFFE ID"
    NO_PATH = "SPIFFE ID without path"
    IS_CA = "CA certificate as leaf"
    KEY_USAGE = "key usage"
    EXTENDED_KEY_USAGE = "extended key usage"
    NOT_CRITICAL = "subject alternative name not critical"
    WEAK_KEY = "key type or size"
    EXPIRED = "expired"
    NOT_YET_VALID = "not yet valid"
    FOREIGN_TRUST_DOMAIN = "no bundle for the trust domain"
    UNTRUSTED = "does not chain to the bundle"


class IstioAuthError(Exception):
    """The root of the tree.

    Args:
        message: the whole reason, for our own log. It may hold details that a stranger must not learn.
        public: what may be told to the other side; by default only the text of the code.
        retry_after: how long the other side should wait before it tries again, if that helps at all.
    """

    code: ClassVar[Code] = Code.INTERNAL

    def __init__(self, message: str, *, public: str | None = None, retry_after: timedelta | None = None) -> None:
        super().__init__(message)
        self.public = self.code.value if public is None else public
        self.retry_after = retry_after


class MalformedError(IstioAuthError):
    """The input is wrong in itself; sending it again will not help."""

    code = Code.MALFORMED


class InvalidSpiffeID(MalformedError):
    """A string that is no SPIFFE ID, or no trust domain name (SPIFFE-ID 2)."""


class InvalidBundle(MalformedError):
    """Bytes that are no trust bundle (SPIFFE Trust Domain and Bundle 4)."""


class InvalidPEM(MalformedError):
    """Bytes that are not the PEM or DER object that was expected."""


class InvalidSVID(MalformedError):
    """A key, a chain and a SPIFFE ID that do not belong together."""


class KeyRejected(MalformedError):
    """A key whose type or size is not allowed."""


class ConfigurationError(MalformedError):
    """A setting, or a file that an operator wrote, that can not be used as it stands."""


class NotAuthenticated(IstioAuthError):
    """Who is calling is not proven; new credentials may help."""

    code = Code.NOT_AUTHENTICATED


class VerificationError(NotAuthenticated):
    """A peer's certificate chain was refused; `fault` says which rule it broke."""

    def __init__(self, fault: Fault, message: str) -> None:
        super().__init__(f"{fault.value}: {message}", public="certificate refused")
        self.fault = fault
        self._reason = message

    def __reduce__(self) -> tuple[type[Self], tuple[Fault, str]]:
        return type(self), (self.fault, self._reason)  # errors may cross to another process of ours


class NotAuthorized(IstioAuthError):
    """Who is calling is proven, and is refused."""

    code = Code.NOT_AUTHORIZED


class MissingError(IstioAuthError):
    """The thing asked for does not exist (and the look-up itself worked)."""

    code = Code.MISSING


class UnknownMethod(MissingError):
    """The server has no such method: it speaks an older or another contract."""

    code = Code.UNKNOWN_METHOD


class ConflictError(IstioAuthError):
    """Somebody else changed the thing meanwhile: read it again and repeat, without waiting."""

    code = Code.CONFLICT


class NotReady(IstioAuthError):
    """Not now: it is starting or stopping, or something that it needs is not there. Try again with backoff."""

    code = Code.NOT_READY


class Exhausted(IstioAuthError):
    """Too much at once: try again after `retry_after`."""

    code = Code.EXHAUSTED
