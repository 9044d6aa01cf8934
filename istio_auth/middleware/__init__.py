"""Who calls an ASGI application, on the scope of each request: the caller's SPIFFE ID, and the claims of its token."""

from istio_auth.middleware.identity import IdentityMiddleware, RequestVerifier, token_claims

__all__ = ["IdentityMiddleware", "RequestVerifier", "token_claims"]
