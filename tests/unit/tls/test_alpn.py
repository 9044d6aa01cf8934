"""Istio's ALPN as libraries see it; what a sidecar makes of it is tested with a real one."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from istio_auth.authorize import any_id
from istio_auth.tls import client_context, server_context
from tests.fakes.tcp import pair
from tests.fakes.tls import begin, go_on, talk
from tests.unit.tls.test_following import OLD, Mesh, trusting


class TestIstioALPN:
    @pytest.mark.parametrize(
        ("spoken", "offered"),
        [
            ((), ["istio"]),
            (("http/1.1",), ["istio-http/1.1", "istio", "http/1.1"]),
            (("http/1.1", "h2"), ["istio-http/1.1", "istio-h2", "istio", "http/1.1", "h2"]),
            (("http/1.0",), ["istio-http/1.0", "istio", "http/1.0"]),
            (("postgresql",), ["istio", "postgresql"]),
            (("istio-h2", "h2"), ["istio-h2", "istio", "h2"]),  # by somebody who knows the names
        ],
    )
    def test_every_protocol_is_offered_by_both_names(self, spoken: tuple[str, ...], offered: list[str]) -> None:
        mesh = Mesh()
        client = client_context(mesh.client_source, any_id(), istio_alpn=True, alpn=spoken)
        assert alpn_offered(client) == offered
        client.set_alpn_protocols(list(spoken))  # as libraries do, at each request
        client.set_alpn_protocols(iter(spoken))
        assert alpn_offered(client) == offered
        mesh.client_source.replace(trusting(OLD.svid("/client"), OLD))
        assert alpn_offered(client) == offered

    def test_without_it_nothing_is_added(self) -> None:
        mesh = Mesh()
        assert alpn_offered(mesh.client) == []
        mesh.client.set_alpn_protocols(["http/1.1"])
        assert alpn_offered(mesh.client) == ["http/1.1"]

    @pytest.mark.parametrize(
        ("server_speaks", "selected"),
        [
            (("h2", "http/1.1"), "h2"),  # a sidecar's
            (("http/1.1",), "http/1.1"),
            (("istio-h2",), "h2"),
            (("istio-http/1.1",), "http/1.1"),
            (("istio",), None),
            (("postgresql",), None),
            ((), None),
        ],
    )
    def test_what_was_selected_is_told_by_the_name_that_libraries_know(
        self, server_speaks: tuple[str, ...], selected: str | None
    ) -> None:
        mesh = Mesh()
        client = client_context(mesh.client_source, any_id(), istio_alpn=True, alpn=["http/1.1", "h2"])
        server = server_context(mesh.server_source, any_id(), alpn=server_speaks)
        ends = begin(client, server)
        assert ends[0].tls.selected_alpn_protocol() is None
        go_on(*ends)
        talk(*ends)
        assert ends[0].tls.selected_alpn_protocol() == selected

    def test_a_socket_tells_the_same(self) -> None:
        mesh = Mesh()
        client = client_context(mesh.client_source, any_id(), istio_alpn=True, alpn=["h2"])
        server = server_context(mesh.server_source, any_id(), alpn=["istio-h2"])
        with pair() as (dialled, accepted), ThreadPoolExecutor(1) as pool:
            accepting = pool.submit(server.wrap_socket, accepted, server_side=True)
            with client.wrap_socket(dialled) as ours, accepting.result(10) as theirs:
                assert ours.selected_alpn_protocol() == "h2"
                assert theirs.selected_alpn_protocol() == "istio-h2"  # who asked for the name is told the name


def alpn_offered(client: ssl.SSLContext) -> list[str]:
    """The protocols in the first message of a client."""
    outgoing = ssl.MemoryBIO()
    with contextlib.suppress(ssl.SSLWantReadError):
        client.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="web.test").do_handshake()
    hello = memoryview(outgoing.read())
    at = 5 + 4 + 2 + 32  # record, message, version, random
    at += 1 + hello[at]  # session
    at += 2 + int.from_bytes(hello[at : at + 2])  # ciphers
    at += 1 + hello[at]  # compression
    at += 2
    while at < len(hello):
        kind, size = int.from_bytes(hello[at : at + 2]), int.from_bytes(hello[at + 2 : at + 4])
        body = bytes(hello[at + 4 : at + 4 + size])
        at += 4 + size
        if kind == 16:  # RFC 7301 3.1
            return list(split_by_length(body[2:]))
    return []


def split_by_length(names: bytes) -> Iterator[str]:
    while names:
        yield names[1 : 1 + names[0]].decode()
        names = names[1 + names[0] :]
