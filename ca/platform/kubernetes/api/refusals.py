"""Turns the API server's refusals into errors of ours.

The type of the error says what went wrong, and "not there" is never confused with "could not look":

    404         MissingError         409         ConflictError (AlreadyExists is one as well)
    410         WatchExpired         429         Exhausted, with the time to wait
    401, 403    AccessRefused        400, 422    ObjectRefused
    403 because the namespace is being deleted: MissingError, for it is as good as gone
    everything else, silence and broken connections      NotReady
"""

from __future__ import annotations

import re
from datetime import timedelta
from http import HTTPStatus

from istio_auth.errors import ConflictError, Exhausted, IstioAuthError, MalformedError, MissingError, NotReady

_STATUSES = frozenset(HTTPStatus)
_LONGEST_WAIT = 600  # seconds; a longer Retry-After is cut to this
_TOKEN = re.compile(r"eyJ[\w-]+\.[\w.-]*", re.ASCII)  # how every token begins, should an answer quote one
_NAMESPACE_ENDS = "because it is being terminated"  # the words of the admission plugin NamespaceLifecycle


class AccessRefused(NotReady):
    """The API server does not let us: a role or a credential is missing, which somebody may mend any time."""


class ObjectRefused(MalformedError):
    """The API server finds the object itself wrong: sending it again does not help."""


class WatchExpired(IstioAuthError):
    """The version to go on from is no longer known: list anew."""


def refusal(verb: str, path: str, status: int, message: str, retry_after: str = "") -> IstioAuthError:
    """The error for an answer.

    Args:
        verb: what was asked for, in the words of roles.
        path: of what.
        status: the HTTP status.
        message: what the API server says.
        retry_after: the header of that name.
    """
    said = without_tokens(message) or (HTTPStatus(status).phrase if status in _STATUSES else f"status {status}")
    words = f"{verb} {path.partition('?')[0]}: {said[:500]}"
    if status == HTTPStatus.FORBIDDEN and _NAMESPACE_ENDS in said:
        return MissingError(words)
    match status:
        case HTTPStatus.NOT_FOUND:
            return MissingError(words)
        case HTTPStatus.CONFLICT:
            return ConflictError(words)
        case HTTPStatus.GONE:
            return WatchExpired(words)
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            return AccessRefused(words)
        case HTTPStatus.BAD_REQUEST | HTTPStatus.UNPROCESSABLE_ENTITY:
            return ObjectRefused(words)
        case HTTPStatus.TOO_MANY_REQUESTS:
            return Exhausted(words, retry_after=_wait(retry_after))
    return NotReady(words)


def without_tokens(said: str) -> str:
    """What the API server says, without the tokens that it may quote."""
    return _TOKEN.sub("...", said)


def unreachable(error: Exception) -> NotReady:
    """The error for a request that got no answer."""
    return NotReady(f"the API server can not be reached: {type(error).__name__}: {error}".rstrip(": "))


def _wait(retry_after: str) -> timedelta:
    if not (retry_after.isascii() and retry_after.isdigit()):
        return timedelta(seconds=1)
    return timedelta(seconds=min(int(retry_after[:9]), _LONGEST_WAIT))
