"""Which addresses are never dialled for keys, whatever their name: link-local and metadata services, among others.

At some of these addresses a machine tells its own secrets. A URL may come from a document that somebody else wrote, and
a name may mean another address a moment later: so the address itself is checked, right before a socket is made for it.
Private networks are dialled, because issuers of a mesh are there; this machine only with `allow_loopback`.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import IPv4Address, IPv6Address, IPv6Network, ip_address, ip_network

# Besides the link-local 169.254.0.0/16 and fe80::/10, where most clouds have their metadata services.
_METADATA = frozenset(
    ip_address(text)
    for text in (
        "fd00:ec2::254",  # AWS
        "fd20:ce::254",  # Google
        "100.100.100.200",  # Alibaba
        "168.63.129.16",  # Azure's host
        "192.0.0.192",  # Oracle
    )
)
_THIS_NETWORK = ip_network("0.0.0.0/8")
_NAT64 = (IPv6Network("64:ff9b::/96"), IPv6Network("64:ff9b:1::/48"))
_COMPATIBLE = IPv6Network("::/96")


def why_not_dialled(address: str, *, allow_loopback: bool = False) -> str:
    """Why an address must not be dialled; empty if it may be.

    Args:
        address: the address from name resolution; an IPv6 address may have a scope.
        allow_loopback: whether this machine may be dialled.
    """
    try:
        literal = ip_address(address)
    except ValueError:
        return f"{address[:100]!a} is no IP address"
    for meant in _meanings(literal):
        if reason := _reason(meant, allow_loopback=allow_loopback):
            return f"{literal} is {reason}, where no keys are fetched"
    return ""


def _reason(address: IPv4Address | IPv6Address, *, allow_loopback: bool) -> str:
    if address.is_link_local or (isinstance(address, IPv6Address) and address.is_site_local):
        return "a link-local address"
    if _without_scope(address) in _METADATA:
        return "the address of a metadata service"
    if address.is_loopback:
        return "" if allow_loopback else "this machine (allow_loopback is not set)"
    if address.is_multicast or address.is_unspecified or address in _THIS_NETWORK:
        return "nobody's address"
    if isinstance(address, IPv4Address) and address.is_reserved:
        return "nobody's address"
    return ""


def _meanings(address: IPv4Address | IPv6Address) -> Iterator[IPv4Address | IPv6Address]:
    """The address, and the IPv4 addresses that may be reached through it."""
    yield address
    if isinstance(address, IPv4Address):
        return
    if address.ipv4_mapped:
        yield address.ipv4_mapped
    if address.sixtofour:
        yield address.sixtofour
    if address.teredo:
        yield from address.teredo
    if any(address in network for network in _NAT64):
        yield IPv4Address(int(address) & 0xFFFF_FFFF)
    if address in _COMPATIBLE and int(address) > 0xFFFF:
        yield IPv4Address(int(address))


def _without_scope(address: IPv4Address | IPv6Address) -> IPv4Address | IPv6Address:
    return address if isinstance(address, IPv4Address) else IPv6Address(int(address))
