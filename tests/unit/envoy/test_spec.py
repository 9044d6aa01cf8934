"""Which sidecars can not be: each spec here has one fault, and the faultless one is next to it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest

from istio_auth.envoy.endpoint import HostPort, UnixPath
from istio_auth.envoy.spec import Inbound, Mode, Protocol, SidecarSpec, Upstream
from istio_auth.errors import ConfigurationError
from istio_auth.spiffe_id import SpiffeID

SELF = SpiffeID.parse("spiffe://cluster.local/ns/demo/sa/web")
PEER = SpiffeID.parse("spiffe://cluster.local/ns/demo/sa/db")
INBOUND = Inbound(HostPort("0.0.0.0", 8443), HostPort("127.0.0.1", 8080), allow=(PEER,))
UPSTREAM = Upstream("db", HostPort("127.0.0.1", 9000), HostPort("10.0.0.1", 8443), (PEER,), Protocol.TCP)
SPEC = SidecarSpec(SELF, UnixPath("/run/agent.sock"), (INBOUND,), (UPSTREAM,), HostPort("127.0.0.1", 15000))


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(lambda: replace(INBOUND, name="Web"), id="name"),
        pytest.param(lambda: replace(INBOUND, name="a" * 64), id="long-name"),
        pytest.param(lambda: replace(INBOUND, name="a.b"), id="dotted-name"),
        pytest.param(lambda: Inbound(UnixPath("/a"), UnixPath("/b")), id="unix-without-name"),
        pytest.param(lambda: replace(INBOUND, listen=HostPort("localhost", 1)), id="listen-at-a-name"),
        pytest.param(lambda: replace(INBOUND, forward=HostPort("127.0.0.1", 0)), id="forward-to-port-0"),
        pytest.param(lambda: replace(INBOUND, forward=INBOUND.listen), id="forward-to-itself"),
        pytest.param(lambda: replace(INBOUND, forward=HostPort("127.0.0.1", 8443)), id="forward-to-itself-by-loopback"),
        pytest.param(
            lambda: replace(INBOUND, listen=HostPort("::", 1), forward=HostPort("127.0.0.1", 1)),
            id="forward-to-itself-by-the-other-family",
        ),
        pytest.param(lambda: replace(INBOUND, mode=Mode.DISABLE), id="callers-without-tls"),
        pytest.param(lambda: replace(UPSTREAM, name=""), id="upstream-without-name"),
        pytest.param(lambda: replace(UPSTREAM, expect=()), id="any-server"),
        pytest.param(lambda: replace(UPSTREAM, expect=(SELF.trust_domain.id,)), id="any-server-of-a-trust-domain"),
        pytest.param(lambda: replace(UPSTREAM, connect=HostPort("db", 0)), id="dial-port-0"),
        pytest.param(lambda: replace(UPSTREAM, listen=HostPort("0.0.0.0", 9000)), id="everybody-may-use-our-identity"),
        pytest.param(lambda: replace(UPSTREAM, listen=HostPort("localhost", 9000)), id="upstream-listens-at-a-name"),
        pytest.param(lambda: replace(SPEC, id=SELF.trust_domain.id), id="no-workload"),
        pytest.param(lambda: replace(SPEC, inbound=(), upstreams=()), id="nothing-to-do"),
        pytest.param(lambda: replace(SPEC, certificate=str(PEER)), id="somebody-elses-certificate"),
        pytest.param(lambda: replace(SPEC, admin=HostPort("0.0.0.0", 15000)), id="admin-for-everybody"),
        pytest.param(lambda: replace(SPEC, admin=HostPort("localhost", 15000)), id="admin-at-a-name"),
        pytest.param(lambda: replace(SPEC, max_connection_age=timedelta()), id="no-time-to-live"),
        pytest.param(lambda: replace(SPEC, inbound=(INBOUND, INBOUND)), id="two-of-a-name"),
        pytest.param(lambda: replace(SPEC, inbound=(INBOUND, replace(INBOUND, name="b"))), id="two-at-a-place"),
        pytest.param(lambda: replace(SPEC, admin=UPSTREAM.listen), id="admin-in-the-way"),
    ],
)
def test_a_spec_that_can_not_be_is_refused(build: Callable[[], object]) -> None:
    with pytest.raises(ConfigurationError):
        build()


def test_an_inbound_listener_is_called_after_its_port() -> None:
    assert INBOUND.label == "inbound_8443"
    assert replace(INBOUND, name="web").label == "inbound_web"


def test_the_application_may_have_the_same_port_at_another_address() -> None:
    for listen, forward in [("10.0.0.1", "127.0.0.1"), ("0.0.0.0", "::1"), ("0.0.0.0", "10.0.0.2")]:
        inbound = replace(INBOUND, listen=HostPort(listen, 80), forward=HostPort(forward, 80))
        assert inbound.forward == HostPort(forward, 80)


def test_ports_that_the_system_chooses_do_not_clash() -> None:
    anywhere = HostPort("127.0.0.1", 0)
    listeners = tuple(replace(INBOUND, listen=anywhere, name=name) for name in ("a", "b"))
    assert replace(SPEC, inbound=listeners, upstreams=(replace(UPSTREAM, listen=anywhere),)).inbound == listeners
