"""Where the Workload API listens (Workload Endpoint 4): what is no address is refused, and it is said why."""

from __future__ import annotations

import pytest

from istio_auth.errors import ConfigurationError
from istio_auth.workload_api.address import VARIABLE, chosen_address, grpc_target


def test_we_07_without_an_address_of_its_own_a_client_takes_the_environments() -> None:
    assert chosen_address(None, {VARIABLE: "unix:///run/agent.sock"}) == "unix:///run/agent.sock"
    assert chosen_address("unix:///mine", {VARIABLE: "unix:///run/agent.sock"}) == "unix:///mine"
    for nothing in ({}, {VARIABLE: ""}):
        with pytest.raises(ConfigurationError, match="set SPIFFE_ENDPOINT_SOCKET, for instance to unix:///"):
            chosen_address(None, nothing)


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("unix:///run/agent.sock", "unix:///run/agent.sock"),
        ("unix:/run/agent.sock", "unix:///run/agent.sock"),
        ("unix:///run/an%20agent", "unix:///run/an%20agent"),
        ("unix:///run/agent+1@home", "unix:///run/agent%2B1%40home"),
        ("unix:///" + "a" * 106, "unix:///" + "a" * 106),
    ],
)
def test_we_08_a_unix_address_is_an_absolute_path(address: str, target: str) -> None:
    assert grpc_target(address) == target


@pytest.mark.parametrize(
    ("address", "why"),
    [
        ("unix://host/run/agent.sock", "without a host name"),
        ("unix://run", "without a host name"),
        ("unix:run/agent.sock", "absolute path"),
        ("unix:", "absolute path"),
        ("unix://", "absolute path"),
        ("unix:///", "names no socket"),
        ("unix:///run/", "names no socket"),
        ("unix:///run/%00", "names no socket"),
        ("unix:///run/agent.sock?x=1", "no query"),
        ("unix:///run/agent.sock#x", "no fragment"),
        ("unix:///run/%zz", "percent"),
        ("unix:///run/agent%2", "percent"),
        ("unix:///run/an agent", "must look like"),
        ("unix:///run/agent\n", "must look like"),
        ("unix:///" + "a" * 107, "at most 107 bytes"),
        ("UNIX:///run/agent.sock", "must look like"),
        ("unix-abstract:agent", "must look like"),
        ("/run/agent.sock", "must look like"),
        ("dns:///agent", "must look like"),
        ("https://127.0.0.1:80", "must look like"),
        ("unix:///" + "a" * 5000, "must look like"),
    ],
)
def test_we_08_a_unix_address_with_anything_else_in_it_is_refused(address: str, why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        grpc_target(address)


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("tcp://127.0.0.1:8080", "ipv4:127.0.0.1:8080"),
        ("tcp://[::1]:8080", "ipv6:[::1]:8080"),
        ("tcp://10.0.0.1:65535", "ipv4:10.0.0.1:65535"),
    ],
)
def test_we_09_a_tcp_address_is_an_ip_address_and_a_port(address: str, target: str) -> None:
    assert grpc_target(address) == target


@pytest.mark.parametrize(
    "address",
    [
        "tcp://localhost:80",
        "tcp://127.0.0.1",
        "tcp://127.0.0.1:",
        "tcp://127.0.0.1:0",
        "tcp://127.0.0.1:65536",
        "tcp://127.0.0.1:http",
        "tcp://127.0.0.1:80/",
        "tcp://127.0.0.1:80/path",
        "tcp://127.0.0.1:80?x",
        "tcp://127.0.0.1:80#x",
        "tcp://user@127.0.0.1:80",
        "tcp://[127.0.0.1]:80",
        "tcp://::1:80",
        "tcp://[fe80::1%eth0]:80",
        "tcp://127.1:80",
        "tcp://127.0.0.01:80",
        "tcp://:80",
        "tcp:127.0.0.1:80",
        "tcp:///127.0.0.1:80",
        "tcp://127.0.0.1:\u0668\u0660",
    ],
)
def test_we_09_a_tcp_address_with_anything_else_in_it_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match="is no address of a Workload API"):
        grpc_target(address)


def test_a_hostile_address_is_shown_escaped_and_short() -> None:
    with pytest.raises(ConfigurationError) as refused:
        grpc_target("unix:\x1b[2J" + "a" * 3000)
    assert "\x1b" not in str(refused.value)
    assert len(str(refused.value)) < 400
