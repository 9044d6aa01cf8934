"""What the two signers of Kubernetes' certificate APIs share: their settings, their decisions, how they read JSON.

A request is untrusted JSON. Each is judged by itself, and nothing in it may break the signer: a request that the API
server should have refused, but did not, is left waiting and reported.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass, replace
from datetime import datetime

from ca.attest import Attested
from ca.issuer import IssuedSVID, Order
from ca.platform.kubernetes.api.objects import Object, member, text
from ca.platform.kubernetes.callers.service_account import ServiceAccountCaller
from ca.profile import IssuanceProfile
from istio_auth.clock import whole_seconds
from istio_auth.errors import ConfigurationError, MalformedError
from istio_auth.pem import pem_of_der
from istio_auth.spiffe_id import TrustDomain
from istio_auth.strict_json import JSON

DEFAULT_SIGNER_NAME = "istio-auth.io/workload"

_LABEL = r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?"
_SIGNER_NAME = re.compile(rf"{_LABEL}(?:\.{_LABEL})+/{_LABEL}(?:\.{_LABEL})*")
_MAX_DOMAIN = 253
_MAX_SIGNER_NAME = 571
_WORD = re.compile(r"[\x21-\x7e]{1,253}")  # names and UIDs of objects are of this kind
_MAX_SHOWN = 100


@dataclass(frozen=True, slots=True)
class Signer:
    """Whose certificates a signer makes.

    Args:
        name: its name in requests, `domain/path`.
        trust_domain: the trust domain of the identities.
        profile: how long certificates live.

    Raises:
        ConfigurationError: Kubernetes does not take such a name, or keeps it for its own signers.
    """

    name: str
    trust_domain: TrustDomain
    profile: IssuanceProfile

    def __post_init__(self) -> None:
        domain = self.name.partition("/")[0]
        if not _SIGNER_NAME.fullmatch(self.name) or len(self.name) > _MAX_SIGNER_NAME or len(domain) > _MAX_DOMAIN:
            raise ConfigurationError(
                f"{shown(self.name)} is no name of a signer: write a domain and a path, as in {DEFAULT_SIGNER_NAME}"
            )
        if domain == "kubernetes.io" or domain.endswith(".kubernetes.io"):
            raise ConfigurationError(f"{self.name} is not ours: signers of kubernetes.io belong to Kubernetes")


@dataclass(frozen=True, slots=True)
class Sign:
    """A certificate is to be issued, and written into the request."""

    order: Order


@dataclass(frozen=True, slots=True)
class Deny:
    """The request can never be granted: `reason` is one word for programs, `message` tells its author what to do."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Wait:
    """The request stays pending and is looked at again: something may change. `reason` is for the log."""

    reason: str


@dataclass(frozen=True, slots=True)
class Ignore:
    """The request is none of our business, or has its answer."""

    reason: str


class MalformedRequest(MalformedError):
    """A request that the API server should not have taken: a member is missing or of a wrong type."""


class Refused(MalformedError):
    """The request can never be granted (see `Deny`)."""

    def __init__(self, reason: str, message: str) -> None:
        super().__init__(message, public=message)
        self.reason = reason


def word(request: Object, *path: str) -> str:
    """A member that must be a name or a UID.

    Raises:
        MalformedRequest: it is missing or something else.
    """
    value = member(request, *path)
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        raise MalformedRequest(f"{'.'.join(path)} is missing, or is no name")
    return value


def base64_bytes(request: Object, *path: str) -> bytes:
    """A member that must hold bytes in base64; empty if it is missing.

    Raises:
        MalformedRequest: it is something else.
    """
    value = member(request, *path)
    try:
        return base64.b64decode("" if value is None else value, validate=True)  # type: ignore[arg-type]  # or TypeError
    except (TypeError, ValueError, binascii.Error) as error:
        raise MalformedRequest(f"{'.'.join(path)} is not in base64") from error


def conditions(request: Object) -> list[Object]:
    """The conditions in the status of a request."""
    found = member(request, "status", "conditions")
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def condition_types(request: Object) -> frozenset[str]:
    """The types of those of its conditions that are true."""
    types = (each.get("type") for each in conditions(request) if each.get("status") == "True")
    return frozenset(each for each in types if isinstance(each, str))


def with_status(request: Object, status: Object) -> Object:
    """The body of an update: the whole request in the version that was looked at, with another status.

    A PUT removes what its body does not name, labels too, so nothing of the object may be left out.
    """
    return {**request, "status": status}


def chain_pem(svid: IssuedSVID) -> str:
    """Its certificates as PEM: the leaf first, then its issuers up to the root, without the root."""
    return "".join(map(pem_of_der, svid.chain))


def timestamp(instant: datetime) -> str:
    """An instant in whole seconds, as Kubernetes writes it (RFC 3339)."""
    return f"{whole_seconds(instant):%Y-%m-%dT%H:%M:%SZ}"


def parse_timestamp(value: JSON) -> datetime | None:
    """The instant of a timestamp; None if it is no timestamp."""
    try:
        instant = datetime.fromisoformat(value) if isinstance(value, str) else None
        return whole_seconds(instant) if instant is not None and instant.tzinfo is not None else None
    except (ValueError, OverflowError):
        return None


def shown(hostile: str) -> str:
    """Hostile text made safe for a message: escaped and short."""
    return ascii(hostile) if len(hostile) <= _MAX_SHOWN else f"{hostile[:_MAX_SHOWN]!a}..."


def attested(caller: ServiceAccountCaller, signer: Signer, request: Object, method: str) -> Attested:
    """Who asks, as the API server vouches for it, with the details for the record.

    Raises:
        MalformedRequest: the request could not be answered: it has no name, or no version.
    """
    known = caller.attested(signer.trust_domain)
    name = text(request, "metadata", "name")  # that of a CertificateSigningRequest may be anything
    if not name:
        raise MalformedRequest("metadata.name is missing")
    word(request, "metadata", "resourceVersion")
    details = {
        "request": name if _WORD.fullmatch(name) else shown(name),
        "request_uid": word(request, "metadata", "uid"),
    }
    return replace(known, method=method, details={**known.details, **details})
