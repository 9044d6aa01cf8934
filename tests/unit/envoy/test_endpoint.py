"""Where Envoy may listen and dial, and what is no such place."""

from __future__ import annotations

import pytest

from istio_auth.envoy.endpoint import Endpoint, HostPort, UnixPath, dial_address, listen_address, parse_endpoint
from istio_auth.errors import ConfigurationError


@pytest.mark.parametrize(
    ("text", "endpoint"),
    [
        ("127.0.0.1:8080", HostPort("127.0.0.1", 8080)),
        ("[::1]:8080", HostPort("::1", 8080)),
        ("db.internal:5432", HostPort("db.internal", 5432)),
        ("localhost:0", HostPort("localhost", 0)),
        ("unix:/run/app.sock", UnixPath("/run/app.sock")),
    ],
)
def test_an_endpoint_reads_as_it_is_written(text: str, endpoint: Endpoint) -> None:
    assert parse_endpoint(text) == endpoint
    assert str(endpoint) == text


@pytest.mark.parametrize(
    "text",
    [
        "", ":", ":80", "8080", "127.0.0.1", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536", "127.0.0.1:-1",
        "127.0.0.1:²", "127.0.0.1:+1", "::1:80", "[::1]", "[127.0.0.1]:80", "[fe80::1%eth0]:80", "256.0.0.1:80",
        "1.2.3:80", "Ho st:80", "http://a:80", "a_b:80", "unix:", "unix:run/a.sock", "unix:@abstract",
        "unix:/a\nb", "unix:/" + "a" * 107, "\u212aelvin:80",
    ],
)  # fmt: skip
def test_everything_else_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        parse_endpoint(text)


def test_the_wildcard_of_ipv6_takes_ipv4_too() -> None:
    assert listen_address(HostPort("::", 1))["socket_address"] == {
        "address": "::",
        "port_value": 1,
        "ipv4_compat": True,
    }
    assert "ipv4_compat" not in str(listen_address(HostPort("::1", 1)))
    assert "ipv4_compat" not in str(dial_address(HostPort("::", 1)))


def test_a_unix_socket_is_for_its_owner_alone() -> None:
    assert listen_address(UnixPath("/a")) == {"pipe": {"path": "/a", "mode": 0o600}}
    assert dial_address(UnixPath("/a")) == {"pipe": {"path": "/a"}}


@pytest.mark.parametrize(
    ("host", "inside"),
    [("127.8.0.1", True), ("::1", True), ("0.0.0.0", False), ("::", False), ("localhost", False)],
)
def test_only_an_address_of_this_machine_is_loopback(host: str, inside: bool) -> None:
    assert HostPort(host, 1).is_loopback is inside
