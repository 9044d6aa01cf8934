"""What every channel through a portal has in common: the portal, its options, and why a call was not answered."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from typing import TypeAlias

import grpc

from istio_auth.authorize import Authorizer
from istio_auth.clock import Clock
from istio_auth.door import Portal
from istio_auth.errors import ConfigurationError
from istio_auth.host_port import HostPort
from istio_auth.tls import client_context
from istio_auth.x509_source import X509Source

Option: TypeAlias = tuple[str, int | str]

_LONGEST_BACKOFF_MS = 10_000  # gRPC's own is two minutes, but a missing SVID or root often comes sooner
_UNANSWERED = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED})


def portal_to(
    address: str,
    source: X509Source,
    authorize: Authorizer,
    *,
    istio_alpn: bool,
    patience: timedelta,
    clock: Clock | None,
) -> Portal:
    """The portal to a server (see `grpc_channel`).

    Raises:
        ConfigurationError: the address can not be dialled, what was given is no source or no authorizer, or no folder
            for a private socket can be made.
    """
    where = HostPort.parse(address)
    if not where.host or not where.port:
        raise ConfigurationError(f"{address!r} is no server's address: host and port are needed")
    context = client_context(source, authorize, alpn=("h2",), istio_alpn=istio_alpn, clock=clock)
    return Portal(where.host, where.port, context, patience=patience)


def channel_options(portal: Portal, options: Sequence[Option]) -> list[Option]:
    """Our options and the application's, whose win if both have one of the same name."""
    ours: list[Option] = [("grpc.max_reconnect_backoff_ms", _LONGEST_BACKOFF_MS), *portal.channel_options]
    theirs = {name for name, _ in options}
    return [*(option for option in ours if option[0] not in theirs), *options]


def explained(portal: Portal, code: grpc.StatusCode, details: str | None) -> str | None:
    """The details of a call's status, with our reason added if the server was not reached."""
    if code not in _UNANSWERED or (reason := portal.unreached) is None:
        return details
    return f"{reason} (gRPC says: {details})"
