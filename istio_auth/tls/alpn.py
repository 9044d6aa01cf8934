"""Istio's ALPN names for application protocols, by which a PERMISSIVE sidecar tells TLS of the mesh from other TLS.

A client offers the mesh's name for each protocol that it speaks, then `istio` for any other, then the plain names, as
Istio's own sidecars do. By the mesh's names the sidecar chooses its filter chain; then it selects one of the plain
names. `istio-peer-exchange` is never offered: a server that selects it goes on with Istio's metadata exchange, which
only proxies speak.
"""

from __future__ import annotations

from collections.abc import Iterable

_ANY = "istio"
_NAMES = {"http/1.0": "istio-http/1.0", "http/1.1": "istio-http/1.1", "h2": "istio-h2"}
_MEANINGS = {name: protocol for protocol, name in _NAMES.items()}


def offered(protocols: Iterable[str]) -> tuple[str, ...]:
    """What a mesh client offers if it speaks these protocols, best first; empty for a protocol without a name."""
    spoken = list(protocols)
    names = [_NAMES[protocol] for protocol in spoken if protocol in _NAMES]
    return tuple(dict.fromkeys([*names, _ANY, *spoken]))


def meant(selected: str | None) -> str | None:
    """The protocol that a selected name stands for; None if it only says that the connection is one of the mesh."""
    if selected is None or selected == _ANY:
        return None
    return _MEANINGS.get(selected, selected)
