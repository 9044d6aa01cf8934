"""Workload identity and mutual TLS for Python: SPIFFE IDs, X509-SVIDs, trust bundles and TLS contexts that rotate.

The public names stand here and load on first use, so that importing the package costs nothing:

    from istio_auth import SpiffeID, MemorySource, X509SVID, client_context, is_id

    source = MemorySource.of(svid, bundle)
    context = client_context(source, is_id(SpiffeID.parse("spiffe://cluster.local/ns/default/sa/db")))
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from istio_auth.authorize import Authorizer, any_id, in_namespace, is_id, member_of, one_of
    from istio_auth.bundle import BundleSet, BundleSource, TrustBundle
    from istio_auth.errors import (
        Code,
        ConfigurationError,
        Fault,
        IstioAuthError,
        MissingError,
        NotAuthenticated,
        NotAuthorized,
        NotReady,
        VerificationError,
    )
    from istio_auth.peer import HandshakeRefused, PeerRefused
    from istio_auth.sources.files import FileSource
    from istio_auth.sources.memory import MemorySource
    from istio_auth.sources.source import Source, SourceStatus
    from istio_auth.sources.svid_files import SVIDFiles, SVIDLayout, write_svid
    from istio_auth.spiffe_id import SpiffeID, TrustDomain
    from istio_auth.svid import X509SVID
    from istio_auth.tls import client_context, peer_id, server_context
    from istio_auth.verify import verify_chain
    from istio_auth.x509_source import X509Context, X509Source

    # isort: split
    # Names that need an extra are not in __all__, so that `from istio_auth import *` works without.
    from istio_auth.grpc import blocking_grpc_channel as blocking_grpc_channel
    from istio_auth.grpc import grpc_channel as grpc_channel
    from istio_auth.grpc import serve_grpc as serve_grpc
    from istio_auth.jwks import KeySet as KeySet
    from istio_auth.jwt_bundle import JWTBundle as JWTBundle
    from istio_auth.jwt_bundle import JWTBundleSet as JWTBundleSet
    from istio_auth.jwt_bundle import JWTBundleSource as JWTBundleSource
    from istio_auth.jwt_svid import JWTSVID as JWTSVID
    from istio_auth.jwt_svid import validate_jwt_svid as validate_jwt_svid
    from istio_auth.sources.jwt import JWTSource as JWTSource
    from istio_auth.sources.jwt import JWTSourceStatus as JWTSourceStatus
    from istio_auth.sources.workload_api import WorkloadAPISource as WorkloadAPISource
    from istio_auth.tokens import Claims as Claims
    from istio_auth.tokens import TokenFault as TokenFault
    from istio_auth.tokens import TokenRefused as TokenRefused
    from istio_auth.tokens import verify_token as verify_token
    from istio_auth.tokens.key_sources import DiscoveredKeys as DiscoveredKeys
    from istio_auth.tokens.key_sources import RemoteKeys as RemoteKeys
    from istio_auth.tokens.rules import TokenRule as TokenRule
    from istio_auth.tokens.verifier import TokenVerifier as TokenVerifier
    from istio_auth.workload_api import BlockingWorkloadAPIClient as BlockingWorkloadAPIClient
    from istio_auth.workload_api import WorkloadAPIClient as WorkloadAPIClient
    from istio_auth.workload_api.decode import InvalidResponse as InvalidResponse
    from istio_auth.workload_api.decode import ValidatedJWTSVID as ValidatedJWTSVID

__all__ = [
    "X509SVID",
    "Authorizer",
    "BundleSet",
    "BundleSource",
    "Code",
    "ConfigurationError",
    "Fault",
    "FileSource",
    "HandshakeRefused",
    "IstioAuthError",
    "MemorySource",
    "MissingError",
    "NotAuthenticated",
    "NotAuthorized",
    "NotReady",
    "PeerRefused",
    "SVIDFiles",
    "SVIDLayout",
    "Source",
    "SourceStatus",
    "SpiffeID",
    "TrustBundle",
    "TrustDomain",
    "VerificationError",
    "X509Context",
    "X509Source",
    "any_id",
    "client_context",
    "in_namespace",
    "is_id",
    "member_of",
    "one_of",
    "peer_id",
    "server_context",
    "verify_chain",
    "write_svid",
]

_HOMES = {
    "istio_auth.authorize": ("Authorizer", "any_id", "in_namespace", "is_id", "member_of", "one_of"),
    "istio_auth.bundle": ("BundleSet", "BundleSource", "TrustBundle"),
    "istio_auth.errors": (
        "Code",
        "ConfigurationError",
        "Fault",
        "IstioAuthError",
        "MissingError",
        "NotAuthenticated",
        "NotAuthorized",
        "NotReady",
        "VerificationError",
    ),
    "istio_auth.peer": ("HandshakeRefused", "PeerRefused"),
    "istio_auth.sources.files": ("FileSource",),
    "istio_auth.sources.memory": ("MemorySource",),
    "istio_auth.sources.source": ("Source", "SourceStatus"),
    "istio_auth.sources.svid_files": ("SVIDFiles", "SVIDLayout", "write_svid"),
    "istio_auth.spiffe_id": ("SpiffeID", "TrustDomain"),
    "istio_auth.svid": ("X509SVID",),
    "istio_auth.tls": ("client_context", "peer_id", "server_context"),
    "istio_auth.verify": ("verify_chain",),
    "istio_auth.x509_source": ("X509Context", "X509Source"),
}
_HOMES_WITH_EXTRA: dict[str, dict[str, tuple[str, ...]]] = {
    "grpc": {"istio_auth.grpc": ("blocking_grpc_channel", "grpc_channel", "serve_grpc")},
    "jwt": {
        "istio_auth.jwt_bundle": ("JWTBundle", "JWTBundleSet", "JWTBundleSource"),
        "istio_auth.jwt_svid": ("JWTSVID", "validate_jwt_svid"),
        "istio_auth.jwks": ("KeySet",),
        "istio_auth.tokens": ("Claims", "TokenFault", "TokenRefused", "verify_token"),
        "istio_auth.tokens.key_sources": ("DiscoveredKeys", "RemoteKeys"),
        "istio_auth.tokens.rules": ("TokenRule",),
        "istio_auth.tokens.verifier": ("TokenVerifier",),
    },
    "workload-api": {
        "istio_auth.sources.jwt": ("JWTSource", "JWTSourceStatus"),
        "istio_auth.sources.workload_api": ("WorkloadAPISource",),
        "istio_auth.workload_api": ("BlockingWorkloadAPIClient", "WorkloadAPIClient"),
        "istio_auth.workload_api.decode": ("InvalidResponse", "ValidatedJWTSVID"),
    },
}
_HOME_OF = {name: (home, "") for home, names in _HOMES.items() for name in names} | {
    name: (home, extra) for extra, homes in _HOMES_WITH_EXTRA.items() for home, names in homes.items() for name in names
}


def __getattr__(name: str) -> object:
    """Load a public name from its home module when it is first asked for (PEP 562)."""
    if name not in _HOME_OF:
        raise AttributeError(f"module 'istio_auth' has no attribute {name!r}")
    home, extra = _HOME_OF[name]
    try:
        value: object = getattr(importlib.import_module(home), name)
    except ModuleNotFoundError as error:
        if not extra:
            raise
        raise ModuleNotFoundError(
            f"istio_auth.{name} needs {error.name}: install 'istio-auth[{extra}]'", name=error.name
        ) from error
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted(_HOME_OF)
