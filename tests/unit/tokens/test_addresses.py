"""Which addresses are dialled for keys: never those of metadata services, in whatever spelling they come."""

from __future__ import annotations

import pytest

from istio_auth.tokens.addresses import why_not_dialled


@pytest.mark.parametrize(
    "address",
    ["93.184.216.34", "10.0.0.1", "192.168.1.1", "172.16.0.1", "2606:2800::1", "fd12:3456::1", "64:ff9b::808:808"],
)
def test_the_world_and_private_networks_are_dialled(address: str) -> None:
    assert why_not_dialled(address) == ""


@pytest.mark.parametrize(
    "address",
    [
        "169.254.169.254",
        "169.254.170.2",
        "169.254.0.1",
        "fe80::1",
        "fe80::1%eth0",
        "fe80::a9fe:a9fe%2",
        "fec0::1",
        "::ffff:169.254.169.254",
        "::ffff:a9fe:a9fe",
        "::169.254.169.254",
        "64:ff9b::169.254.169.254",
        "64:ff9b:1::a9fe:a9fe",
        "2002:a9fe:a9fe::1",
        "2001:0:a9fe:a9fe::1",
        "fd00:ec2::254",
        "fd00:ec2::254%eth0",
        "fd20:ce::254",
        "100.100.100.200",
        "168.63.129.16",
        "192.0.0.192",
        "0.0.0.0",
        "0.1.2.3",
        "::",
        "::ffff:0.0.0.0",
        "224.0.0.1",
        "ff02::1",
        "255.255.255.255",
        "240.0.0.1",
        "localhost",
        "",
        "1",
    ],
)
def test_some_are_never_dialled_whatever_is_allowed(address: str) -> None:
    assert why_not_dialled(address)
    assert why_not_dialled(address, allow_loopback=True)


@pytest.mark.parametrize("address", ["127.0.0.1", "127.9.9.9", "::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1"])
def test_this_machine_is_dialled_for_who_says_so(address: str) -> None:
    assert "allow_loopback" in why_not_dialled(address)
    assert why_not_dialled(address, allow_loopback=True) == ""
