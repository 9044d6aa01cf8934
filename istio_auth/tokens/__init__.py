"""Tokens: JSON Web Tokens are taken apart, proven against the keys of their issuers, and become Claims, or are refused.

What is here judges a token that somebody has in hand. Requests are judged by `istio_auth.tokens.verifier`, which finds
the token in a request and keeps the keys of issuers up to date.
"""

from __future__ import annotations

from istio_auth.tokens.claims import Claims, FrozenJSON
from istio_auth.tokens.compact import MAX_TOKEN, Unproven, claimed_end, unproven
from istio_auth.tokens.fault import TokenFault, TokenRefused
from istio_auth.tokens.verify import DEFAULT_LEEWAY, verify_token

__all__ = [
    "DEFAULT_LEEWAY",
    "MAX_TOKEN",
    "Claims",
    "FrozenJSON",
    "TokenFault",
    "TokenRefused",
    "Unproven",
    "claimed_end",
    "unproven",
    "verify_token",
]
