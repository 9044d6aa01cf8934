"""SPIFFE IDs and trust domain names: the only grammar of both in this project (SPIFFE-ID 2).

    spiffe-id    = "spiffe://" trust-domain [ path ]
    trust-domain = 1*255( a-z / 0-9 / "." / "-" / "_" )
    path         = 1*( "/" segment )
    segment      = 1*( a-z / A-Z / 0-9 / "." / "-" / "_" )      but neither "." nor ".."

Values are checked when they are made, so an invalid `SpiffeID` can not exist. A trust domain is an opaque name: its
dots, digits and suffixes have no meaning here (ID-09). The whole ID is at most 2048 bytes long (ID-14, ID-15).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from istio_auth.errors import InvalidSpiffeID

_SCHEME = "spiffe://"
_MAX_ID = 2048
_MAX_TRUST_DOMAIN = 255
_TRUST_DOMAIN = re.compile(r"[a-z0-9._-]+")
_PATH = re.compile(r"(?:/[a-zA-Z0-9._-]+)*")
_DOT_SEGMENT = re.compile(r"/\.{1,2}(?:/|$)")


@dataclass(frozen=True, slots=True, order=True)
class TrustDomain:
    """The name of a trust domain, for instance `cluster.local`.

    Raises:
        InvalidSpiffeID: the name breaks the grammar.
    """

    name: str

    def __post_init__(self) -> None:
        if not _TRUST_DOMAIN.fullmatch(self.name):
            raise InvalidSpiffeID(
                f"{_shown(self.name)} is no trust domain: only a-z, 0-9, '.', '-' and '_' may occur, and at least one"
            )
        if len(self.name) > _MAX_TRUST_DOMAIN:
            raise InvalidSpiffeID(f"a trust domain has at most {_MAX_TRUST_DOMAIN} bytes, this one {len(self.name)}")

    @property
    def id(self) -> SpiffeID:
        """The SPIFFE ID of the trust domain itself, which its authorities carry (ID-20)."""
        return SpiffeID(self, "")

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True, slots=True, order=True)
class SpiffeID:
    """The name of a workload; with an empty path, the name of a trust domain.

    Args:
        trust_domain: who vouches for the name.
        path: empty, or segments with a `/` before each; compared case-sensitively (ID-17).

    Raises:
        InvalidSpiffeID: the path breaks the grammar, or the whole ID is too long.
    """

    trust_domain: TrustDomain
    path: str

    def __post_init__(self) -> None:
        if not _PATH.fullmatch(self.path):
            raise InvalidSpiffeID(
                f"{_shown(self.path)} is no path of a SPIFFE ID: segments of a-z, A-Z, 0-9, '.', '-' and '_', each led "
                "by '/', none empty"
            )
        if _DOT_SEGMENT.search(self.path):
            raise InvalidSpiffeID(f"{_shown(self.path)} is no path of a SPIFFE ID: '.' and '..' are no segments")
        if len(_SCHEME) + len(self.trust_domain.name) + len(self.path) > _MAX_ID:
            raise InvalidSpiffeID(f"a SPIFFE ID has at most {_MAX_ID} bytes")

    @classmethod
    def parse(cls, text: str) -> Self:
        """The SPIFFE ID in a text, which must be written exactly as in an SVID.

        Raises:
            InvalidSpiffeID: the text is no SPIFFE ID.
        """
        if len(text) > _MAX_ID:
            raise InvalidSpiffeID(f"a SPIFFE ID has at most {_MAX_ID} bytes, this one {len(text)}")
        if not text.startswith(_SCHEME):
            raise InvalidSpiffeID(f"{_shown(text)} is no SPIFFE ID: it does not start with {_SCHEME!r}")
        name, slash, path = text[len(_SCHEME) :].partition("/")
        return cls(TrustDomain(name), slash + path)

    @classmethod
    def normalized(cls, text: str) -> Self:
        """The SPIFFE ID in a text with scheme and trust domain in any case (ID-17). For typed input, never for SVIDs.

        Raises:
            InvalidSpiffeID: the text is no SPIFFE ID.
        """
        if not text.isascii():  # before lower(), which turns the Kelvin sign into a "k"
            raise InvalidSpiffeID(f"{_shown(text)} is no SPIFFE ID: only ASCII may occur")
        head, _, _ = text[len(_SCHEME) :].partition("/")
        cut = len(_SCHEME) + len(head)
        return cls.parse(text[:cut].lower() + text[cut:])

    @classmethod
    def for_service_account(cls, trust_domain: TrustDomain, namespace: str, service_account: str) -> Self:
        """The identity of a Kubernetes service account.

        Raises:
            InvalidSpiffeID: namespace or service account is not one path segment.
        """
        return cls._of_segments(trust_domain, "ns", namespace, "sa", service_account)

    @classmethod
    def for_agent(cls, trust_domain: TrustDomain, name: str) -> Self:
        """The identity of a node agent.

        Raises:
            InvalidSpiffeID: the name is not one path segment.
        """
        return cls._of_segments(trust_domain, "agent", name)

    @classmethod
    def for_ca(cls, trust_domain: TrustDomain) -> Self:
        """The identity of the CA's own server, which no workload can ever be granted."""
        return cls._of_segments(trust_domain, "ca")

    @classmethod
    def _of_segments(cls, trust_domain: TrustDomain, *segments: str) -> Self:
        if any("/" in segment or not segment for segment in segments):
            raise InvalidSpiffeID(f"{_shown('/'.join(segments))}: each part must be exactly one path segment")
        return cls(trust_domain, "/" + "/".join(segments))

    @property
    def namespace(self) -> str | None:
        """The namespace, if the path is exactly `/ns/<namespace>/sa/<service account>`."""
        return parts[2] if (parts := self._service_account_parts()) else None

    @property
    def service_account(self) -> str | None:
        """The service account, if the path is exactly `/ns/<namespace>/sa/<service account>`."""
        return parts[4] if (parts := self._service_account_parts()) else None

    def _service_account_parts(self) -> list[str] | None:
        parts = self.path.split("/")
        return parts if len(parts) == 5 and (parts[1], parts[3]) == ("ns", "sa") else None

    def __str__(self) -> str:
        return f"{_SCHEME}{self.trust_domain.name}{self.path}"


def _shown(text: str) -> str:
    """Hostile text made safe for a log line: escaped and short."""
    return ascii(text) if len(text) <= 120 else f"{text[:120]!a}... ({len(text)} characters)"
