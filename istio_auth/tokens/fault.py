"""TokenFault and TokenRefused: why a token proves nothing, for logs and metrics.

A refusal holds nothing of the token but a few claims that name its issuer or audience. Strangers are told only that
they are not authenticated.
"""

from __future__ import annotations

import enum
from typing import Self

from istio_auth.errors import NotAuthenticated


class TokenFault(enum.Enum):
    """Why a token was refused; the value is used as a label in metrics and as a word in log lines."""

    TOO_LONG = "token too long"
    SEVERAL = "several tokens"
    LOCATION = "wrong place"
    MALFORMED = "malformed"
    EXTENSION = "critical extension"
    HEADER = "forbidden header"
    ALGORITHM = "algorithm"
    FOREIGN_TRUST_DOMAIN = "no bundle for the trust domain"
    UNKNOWN_KEY = "unknown key"
    SIGNATURE = "wrong signature"
    CLAIM = "missing or malformed claim"
    ISSUER = "other issuer"
    AUDIENCE = "other audience"
    EXPIRED = "expired"
    NOT_YET_VALID = "not yet valid"
    LONG_LIVED = "lives too long"


class TokenRefused(NotAuthenticated):
    """A token was refused; `fault` says which rule it broke."""

    def __init__(self, fault: TokenFault, message: str) -> None:
        super().__init__(f"{fault.value}: {message}")
        self.fault = fault
        self._reason = message

    def __reduce__(self) -> tuple[type[Self], tuple[TokenFault, str]]:
        return type(self), (self.fault, self._reason)  # errors may cross to another process of ours
