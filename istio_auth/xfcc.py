r"""The header `x-forwarded-client-cert`: what the proxy in front of us saw of its client's certificate.

The format is Envoy's. Commas separate the elements, one for each proxy on the way; semicolons separate the `key=value`
pairs of an element. Keys may be in any case. A value with `,`, `;` or `=` stands in double quotes, in which `\"` is a
quote and `\\` a backslash. `By` (the proxy's own name), `URI` and `DNS` may occur several times, all others once.

Each proxy appends its element to the header that it received. So only the last element is from the proxy that we know;
anybody may have written the others. The header is therefore read from its end: an open quote or an escape in front of
the last element can not change where that begins.
"""

from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass

from istio_auth.errors import InvalidSpiffeID, MalformedError
from istio_auth.spiffe_id import SpiffeID

MAX_HEADER = 64 << 10  # characters; Envoy takes 60 KiB for all headers of a request

_FROM_THE_END = re.compile(r',|"\\*')
_PAIR = re.compile(r'([A-Za-z]+)=(?:"((?:[^"\\]|\\.)*)"|([^",;=\s]*))(?:;(?!\Z)|\Z)', re.DOTALL)
_ESCAPED = re.compile(r'\\(["\\])')
_REPEATABLE = {"by", "uri", "dns"}


class InvalidXFCC(MalformedError):
    """A header that is malformed, or that does not name exactly one caller."""


@dataclass(frozen=True, slots=True)
class XFCCElement:
    """What one proxy saw.

    Args:
        by: the URI names of the proxy's own certificate.
        uris: the URI names of the client's certificate.
        dns_names: the DNS names of the client's certificate.
        subject: the subject of the client's certificate, as the proxy writes it; empty if it does not.
        fingerprint: the SHA-256 of the client's certificate in hexadecimal; empty if the proxy does not tell it.
    """

    by: tuple[str, ...]
    uris: tuple[str, ...]
    dns_names: tuple[str, ...]
    subject: str
    fingerprint: str


def forwarded_id(header: str, *, proxy: SpiffeID) -> SpiffeID | None:
    """The SPIFFE ID of the client that a proxy names; None if the client's certificate has no URI name.

    Args:
        header: the value of the one header that the proxy sent.
        proxy: the proxy that sent it, whose SPIFFE ID TLS has proven.

    Raises:
        InvalidXFCC: the header is malformed, is about another proxy, or does not name exactly one workload.
    """
    element = last_element(header)
    if element.by and element.by != (str(proxy),):
        others = " and ".join(map(repr, element.by))[:300]
        raise InvalidXFCC(f"{proxy} forwards what {others} saw, and not what it saw itself")
    if not element.uris:
        return None
    if len(element.uris) > 1:
        raise InvalidXFCC(f"{proxy} names a client with {len(element.uris)} URI names, and an X509-SVID has one")
    try:
        caller = SpiffeID.parse(element.uris[0])
    except InvalidSpiffeID as error:
        raise InvalidXFCC(f"{proxy} names a client that has no SPIFFE ID: {error}") from error
    if not caller.path:
        raise InvalidXFCC(f"{proxy} names the trust domain {caller} as its client, which is no workload")
    return caller


def last_element(header: str) -> XFCCElement:
    """The element that the last proxy wrote.

    Raises:
        InvalidXFCC: the header is too long, or its last element breaks the format.
    """
    if len(header) > MAX_HEADER:
        raise InvalidXFCC(f"x-forwarded-client-cert has {len(header)} characters, at most {MAX_HEADER} are read")
    values = _pairs(_after_the_last_comma(header).strip())
    return XFCCElement(
        by=_told(values["by"]),
        uris=_told(values["uri"]),
        dns_names=_told(values["dns"]),
        subject="".join(values["subject"]),
        fingerprint="".join(values["hash"]),
    )


def _after_the_last_comma(header: str) -> str:
    quoted = False
    for found in _FROM_THE_END.finditer(header[::-1]):
        if found[0] == ",":
            if not quoted:
                return header[len(header) - found.start() :]
        elif len(found[0]) % 2:  # a quote with an even number of backslashes before it
            quoted = not quoted
    return header


def _pairs(element: str) -> defaultdict[str, list[str]]:
    values: defaultdict[str, list[str]] = defaultdict(list)
    place = 0
    while place < len(element):
        if (pair := _PAIR.match(element, place)) is None:
            raise InvalidXFCC(f"the last element of x-forwarded-client-cert is malformed at its character {place + 1}")
        key, quoted, bare = pair[1].lower(), pair[2], pair[3]
        if key in values and key not in _REPEATABLE:
            raise InvalidXFCC(f"the last element of x-forwarded-client-cert has {key[:100]} twice")
        values[key].append(bare if quoted is None else _ESCAPED.sub(r"\1", quoted))
        place = pair.end()
    if not values:
        raise InvalidXFCC("the last element of x-forwarded-client-cert is empty")
    return values


def _told(values: list[str]) -> tuple[str, ...]:
    """The values that are not empty: Envoy writes the key even if there is no such name."""
    return tuple(filter(None, values))
