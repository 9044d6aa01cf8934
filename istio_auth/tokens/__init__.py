"""Tokens: verifies JSON Web Tokens with the keys of their issuers, which gives their Claims.

`verify_token` verifies one token with keys that the caller has. `istio_auth.tokens.verifier` is for requests: it finds
the token in a request and keeps the keys of issuers up to date. Only that needs the HTTP client.
"""

from __future__ import annotations

from istio_auth.tokens.claims import Claims, FrozenJSON
from istio_auth.tokens.compact import MAX_TOKEN, Unproven, claimed_end, unproven
from istio_auth.tokens.fault import TokenFault, TokenRefused
from istio_auth.tokens.key_sources import DiscoveredKeys, RemoteKeys, TLSFiles
from istio_auth.tokens.locations import DEFAULT_LOCATIONS, InCookie, InHeader, InQuery
from istio_auth.tokens.rules import TokenRule
from istio_auth.tokens.verify import DEFAULT_LEEWAY, verify_token

__all__ = [
    "DEFAULT_LEEWAY",
    "DEFAULT_LOCATIONS",
    "MAX_TOKEN",
    "Claims",
    "DiscoveredKeys",
    "FrozenJSON",
    "InCookie",
    "InHeader",
    "InQuery",
    "RemoteKeys",
    "TLSFiles",
    "TokenFault",
    "TokenRefused",
    "TokenRule",
    "Unproven",
    "claimed_end",
    "unproven",
    "verify_token",
]
