"""One context for a long life: it follows its source at each handshake, and keeps the settings made on it."""

from __future__ import annotations

import itertools
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from istio_auth.authorize import any_id
from istio_auth.bundle import BundleSet, TrustBundle
from istio_auth.errors import Code, ConfigurationError, Fault, NotReady, VerificationError
from istio_auth.peer import HandshakeRefused, PeerRefused
from istio_auth.pem import write_der
from istio_auth.sources.memory import MemorySource
from istio_auth.svid import X509SVID
from istio_auth.tls import client_context, peer_chain, server_context
from istio_auth.tls.contexts import FollowingContext
from istio_auth.x509_source import X509Context
from tests.fakes.authority import FakeAuthority
from tests.fakes.tcp import pair
from tests.fakes.tls import begin, go_on, meet, stranger, talk
from tests.vectors.x509_svid import FEDERATED, KEY, LOCAL, STRANGER

OLD, NEW = LOCAL, STRANGER  # two roots of one trust domain
TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3


def trusting(svid: X509SVID, *roots: FakeAuthority) -> X509Context:
    bundle = TrustBundle(LOCAL.trust_domain, tuple(root.certificate for root in roots))
    return X509Context((svid,), BundleSet((bundle,)))


class Mesh:
    """A server and a client with a source and a context each, which are the same from beginning to end."""

    def __init__(self, version: ssl.TLSVersion = TLS_1_3) -> None:
        self.server_source = MemorySource(trusting(OLD.svid("/server"), OLD))
        self.client_source = MemorySource(trusting(OLD.svid("/client"), OLD))
        self.server = server_context(self.server_source, any_id())
        self.client = client_context(self.client_source, any_id())
        self.client.maximum_version = version

    def sources(self) -> Iterator[tuple[str, MemorySource]]:
        return iter((("/server", self.server_source), ("/client", self.client_source)))


@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3], ids=lambda version: version.name)
class TestRotation:
    def test_a_new_svid_is_presented_at_the_next_handshake(self, version: ssl.TLSVersion) -> None:
        mesh = Mesh(version)
        for _ in range(3):
            for name, source in mesh.sources():
                source.replace(trusting(OLD.svid(name), OLD))
            client, server = meet(mesh.client, mesh.server)
            talk(client, server)
            assert peer_chain(server.tls)[0] == mesh.client_source.svid().leaf
            assert peer_chain(client.tls)[0] == mesh.server_source.svid().leaf

    def test_an_added_root_is_trusted_at_the_next_handshake(self, version: ssl.TLSVersion) -> None:
        mesh = Mesh(version)
        mesh.client_source.replace(trusting(NEW.svid("/client"), OLD))
        _, server = meet(mesh.client, mesh.server)
        assert isinstance(server.refusal, VerificationError)
        assert server.refusal.fault is Fault.UNTRUSTED
        mesh.server_source.replace(trusting(mesh.server_source.svid(), OLD, NEW))
        talk(*meet(mesh.client, mesh.server))

    def test_a_removed_root_is_trusted_no_more_at_the_next_handshake(self, version: ssl.TLSVersion) -> None:
        mesh = Mesh(version)
        mesh.server_source.replace(trusting(OLD.svid("/server"), OLD, NEW))
        client, server = meet(mesh.client, mesh.server)
        talk(client, server)
        mesh.server_source.replace(trusting(OLD.svid("/server"), NEW))
        _, refusing = meet(mesh.client, mesh.server)
        assert isinstance(refusing.refusal, VerificationError)
        assert refusing.refusal.fault is Fault.UNTRUSTED
        talk(client, server)  # the connection that was made before goes on
        mesh.client_source.replace(trusting(NEW.svid("/client"), OLD))
        talk(*meet(mesh.client, mesh.server))

    def test_a_client_stops_trusting_a_removed_root_too(self, version: ssl.TLSVersion) -> None:
        mesh = Mesh(version)
        mesh.client_source.replace(trusting(OLD.svid("/client"), NEW))
        client, _ = meet(mesh.client, mesh.server)
        assert isinstance(client.refusal, VerificationError)
        mesh.server_source.replace(trusting(NEW.svid("/server"), OLD))
        talk(*meet(mesh.client, mesh.server))

    def test_a_root_removed_during_a_handshake_counts_already(self, version: ssl.TLSVersion) -> None:
        mesh = Mesh(version)
        client, server = begin(mesh.client, mesh.server)
        client.step()
        server.step()
        mesh.server_source.replace(trusting(OLD.svid("/server"), NEW))
        go_on(client, server)
        assert "no path to the bundle" in str(server.refusal)

    def test_a_whole_rotation_under_traffic_refuses_nobody(self, version: ssl.TLSVersion) -> None:
        mesh = Mesh(version)
        stages: tuple[Callable[[str], X509Context], ...] = (
            lambda name: trusting(OLD.svid(name), OLD, NEW),
            lambda name: trusting(NEW.svid(name), OLD, NEW),
            lambda name: trusting(NEW.svid(name), NEW),
        )
        for stage in stages:
            for name, source in mesh.sources():
                source.replace(stage(name))
                talk(*meet(mesh.client, mesh.server))
        _, server = meet(stranger(server_side=False, chain=OLD.chain(key=KEY), key=KEY), mesh.server)
        assert isinstance(server.refusal, VerificationError)


def test_half_of_a_rotation_is_never_seen() -> None:
    """Each snapshot is of one authority alone; an inner context with parts of both would show a torn one."""
    whole = [trusting(root.svid("/x"), root) for root in (OLD, NEW)]
    source, done, torn, looks = MemorySource(whole[0]), threading.Event(), [], [0, 0]
    context = server_context(source, any_id())
    assert isinstance(context, FollowingContext)
    issuer_of = {held.svid.leaf: write_der(root.certificate) for held, root in zip(whole, (OLD, NEW), strict=True)}

    def look(number: int) -> None:
        while not done.is_set():
            inner = context.current()
            roots = inner.get_ca_certs(binary_form=True)
            client, server = begin(stranger(server_side=False), inner)
            client.step()
            server.step()
            client.step()
            presented = client.tls.getpeercert(binary_form=True)
            if [issuer_of[leaf] for leaf in issuer_of if write_der(leaf) == presented] != roots:
                torn.append(roots)
            looks[number] += 1

    with ThreadPoolExecutor(2) as pool:
        lookers = [pool.submit(look, number) for number in range(2)]
        try:
            for number, turn in enumerate(itertools.cycle(whole)):
                source.replace(turn)
                socket.getaddrinfo("127.0.0.1", 0)  # lets the others run
                if number >= 400 and (min(looks) >= 10 or any(looker.done() for looker in lookers)):
                    break
        finally:
            done.set()
        for looker in lookers:
            looker.result(60)
    assert not torn


def test_one_snapshot_is_loaded_once() -> None:
    mesh = Mesh()
    assert isinstance(mesh.server, FollowingContext)
    first = mesh.server.current()
    talk(*meet(mesh.client, mesh.server))
    assert mesh.server.current() is first
    mesh.server_source.replace(trusting(OLD.svid("/server"), OLD))
    assert mesh.server.current() is not first


class TestNotReady:
    def test_without_an_svid_yet_a_server_refuses_and_then_serves(self) -> None:
        source = MemorySource()
        server = server_context(source, any_id())
        mesh = Mesh()
        client, ours = meet(mesh.client, server)
        assert ours.refusal.code is Code.NOT_READY
        assert not isinstance(ours.error, PeerRefused)  # it is not the peer's fault
        assert not client.done
        source.replace(trusting(OLD.svid("/server"), OLD))
        talk(*meet(mesh.client, server))

    def test_without_anything_yet_a_client_refuses_and_then_dials(self) -> None:
        source = MemorySource()
        client = client_context(source, any_id())
        mesh = Mesh()
        ours, _ = meet(client, mesh.server)
        assert isinstance(ours.refusal, NotReady)
        source.replace(trusting(OLD.svid("/client"), OLD))
        talk(*meet(client, mesh.server))

    def test_blocking_sockets_are_told_the_same(self) -> None:
        server = server_context(MemorySource(), any_id())
        with pair() as (_, accepted), pytest.raises(HandshakeRefused) as caught:
            server.wrap_socket(accepted, server_side=True)
        assert isinstance(caught.value.reason_error, NotReady)

    def test_what_a_source_of_somebody_else_raises_is_a_refusal_that_says_so(
        self, caplog: pytest.LogCaptureFixture
    ) -> None:
        class Broken(MemorySource):
            def x509_context(self) -> X509Context:
                raise KeyError("svid")

        client, server = meet(Mesh().client, server_context(Broken(), any_id()))
        assert server.refusal.code is Code.INTERNAL
        assert "asking the source failed: KeyError('svid')" in caplog.text
        assert not client.done

    def test_an_svid_that_openssl_does_not_take_is_no_end(self) -> None:
        """A key that is not the leaf's, as a broken source would have it: the next snapshot mends it."""
        mesh = Mesh()
        broken = OLD.svid("/server")
        object.__setattr__(broken, "private_key", OLD.svid("/server").private_key)
        mesh.server_source.replace(trusting(broken, OLD))
        _, server = meet(mesh.client, mesh.server)
        assert "OpenSSL can not use" in str(server.refusal)
        mesh.server_source.replace(trusting(OLD.svid("/server"), OLD))
        talk(*meet(mesh.client, mesh.server))


class TestSettings:
    def test_alpn_chooses_the_protocol(self) -> None:
        mesh = Mesh()
        server = server_context(mesh.server_source, any_id(), alpn=("h2", "http/1.1"))
        for offered, chosen in ((("http/1.1", "h2"), "h2"), (("http/1.1",), "http/1.1"), (("other",), None)):
            client = client_context(mesh.client_source, any_id(), alpn=offered)
            ends = meet(client, server)
            talk(*ends)
            assert [end.tls.selected_alpn_protocol() for end in ends] == [chosen, chosen]

    def test_alpn_set_later_is_kept_over_rotations(self) -> None:
        mesh = Mesh()
        talk(*meet(mesh.client, mesh.server))
        mesh.server.set_alpn_protocols(["h2"])
        mesh.client.set_alpn_protocols(iter(["h2"]))  # used up by the first that reads it
        for _ in range(2):
            client, server = meet(mesh.client, mesh.server)
            talk(client, server)
            assert client.tls.selected_alpn_protocol() == server.tls.selected_alpn_protocol() == "h2"
            mesh.client_source.replace(trusting(OLD.svid("/client"), OLD))

    def test_a_minimum_version_refuses_older_peers(self) -> None:
        mesh = Mesh(TLS_1_2)
        talk(*meet(mesh.client, mesh.server))
        mesh.server.minimum_version = TLS_1_3
        _, server = meet(mesh.client, mesh.server)
        assert server.error is not None
        assert server.error.reason == "UNSUPPORTED_PROTOCOL"
        mesh.client.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
        client, server = meet(mesh.client, mesh.server)
        talk(client, server)
        assert server.tls.version() == "TLSv1.3"

    def test_the_newest_version_may_be_demanded(self) -> None:
        mesh = Mesh(TLS_1_2)
        mesh.server.minimum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
        assert meet(mesh.client, mesh.server)[1].error
        mesh.client.maximum_version = ssl.TLSVersion.MAXIMUM_SUPPORTED
        talk(*meet(mesh.client, mesh.server))

    @pytest.mark.filterwarnings("ignore:ssl.TLSVersion:DeprecationWarning")
    def test_nothing_older_than_tls_1_2_is_spoken_whatever_is_set(self) -> None:
        mesh = Mesh()
        old = stranger(server_side=False, chain=OLD.chain(key=KEY), key=KEY)
        old.minimum_version = old.maximum_version = ssl.TLSVersion.TLSv1_1
        for minimum in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.MINIMUM_SUPPORTED):
            mesh.server.minimum_version = minimum
            _, server = meet(old, mesh.server)
            assert server.error is not None
            assert server.error.reason == "UNSUPPORTED_PROTOCOL"
        old.maximum_version = TLS_1_2
        talk(*meet(old, mesh.server))

    def test_ciphers_are_those_of_the_mesh_unless_set(self) -> None:
        mesh = Mesh(TLS_1_2)
        _, server = meet(mesh.client, mesh.server)
        assert (server.tls.cipher() or ("",))[0] == "ECDHE-ECDSA-AES256-GCM-SHA384"
        mesh.server.set_ciphers("ECDHE-ECDSA-AES128-GCM-SHA256")
        _, server = meet(mesh.client, mesh.server)
        assert (server.tls.cipher() or ("",))[0] == "ECDHE-ECDSA-AES128-GCM-SHA256"
        weak = stranger(server_side=False, chain=OLD.chain(key=KEY), key=KEY)
        weak.set_ciphers("ECDHE-ECDSA-AES256-SHA384")  # with CBC: Python would take it
        weak.maximum_version = TLS_1_2
        _, server = meet(weak, Mesh().server)
        assert server.error is not None
        assert server.error.reason == "NO_SHARED_CIPHER"

    def test_no_setting_takes_the_encryption_away(self) -> None:
        mesh = Mesh(TLS_1_2)
        without = "ECDHE-ECDSA-NULL-SHA"
        for context in (mesh.server, mesh.client):
            context.set_ciphers(f"{without}:AES128-SHA:ECDHE-ECDSA-AES128-SHA:@SECLEVEL=0")
        client, server = meet(mesh.client, mesh.server)
        talk(client, server)
        assert (server.tls.cipher() or ("",))[0] == "ECDHE-ECDSA-AES128-SHA"
        with pytest.raises(ssl.SSLError, match="No cipher can be selected"):
            mesh.server.set_ciphers(f"{without}:@SECLEVEL=0")

    @pytest.mark.filterwarnings("ignore:ssl.OP_NO:DeprecationWarning")
    def test_options_are_added(self) -> None:
        mesh = Mesh()
        mesh.server.options |= ssl.OP_NO_TLSv1_3
        client, server = meet(mesh.client, mesh.server)
        talk(client, server)
        assert server.tls.version() == "TLSv1.2"

    def test_strictness_is_added(self) -> None:
        """Python's strict flag refuses roots without key identifier; those that have one pass."""
        mesh = Mesh()
        loose = FakeAuthority(now=OLD.now, key_identifier_present=False)
        for strict in (False, True):
            mesh.server_source.replace(trusting(OLD.svid("/server"), OLD, loose))
            mesh.client_source.replace(trusting(loose.svid("/client"), OLD))
            if strict:
                mesh.server.verify_flags |= ssl.VERIFY_X509_STRICT
                _, server = meet(mesh.client, mesh.server)
                assert "Missing Subject Key Identifier" in str(server.refusal)
            else:
                talk(*meet(mesh.client, mesh.server))
        mesh.client_source.replace(trusting(OLD.svid("/client"), OLD))
        talk(*meet(mesh.client, mesh.server))

    def test_the_secrets_of_connections_can_be_logged_for_those_who_debug(self, tmp_path: Path) -> None:
        mesh = Mesh()
        mesh.client.keylog_filename = str(tmp_path / "keys")
        talk(*meet(mesh.client, mesh.server))
        assert "CLIENT_HANDSHAKE_TRAFFIC_SECRET" in (tmp_path / "keys").read_text()

    def test_the_name_that_a_client_asks_for_can_be_seen(self) -> None:
        mesh = Mesh()
        names: list[str] = []
        mesh.server.sni_callback = lambda _connection, name, _context: names.append(name)
        talk(*meet(mesh.client, mesh.server))
        assert names == ["web.test"]

    def test_curves_can_be_chosen(self) -> None:
        mesh = Mesh()
        mesh.server.set_ecdh_curve("secp384r1")
        talk(*meet(mesh.client, mesh.server))


class TestNoWayToVerifyLess:
    @pytest.mark.parametrize("side", ["client", "server"])
    def test_settings_that_turn_verification_off_change_nothing(self, side: str) -> None:
        mesh = Mesh()
        ours = getattr(mesh, side)
        ours.check_hostname = False
        ours.verify_mode = ssl.CERT_NONE
        ours.verify_flags = ssl.VerifyFlags.VERIFY_DEFAULT
        ours.options = ssl.Options.OP_ALL
        ours.load_default_certs()
        ours.set_default_verify_paths()
        other = stranger(server_side=side == "client", chain=NEW.chain(key=KEY), key=KEY)
        refusing = meet(ours, other)[0] if side == "client" else meet(other, ours)[1]
        assert isinstance(refusing.refusal, VerificationError)
        talk(*meet(mesh.client, mesh.server))

    @pytest.mark.parametrize("side", ["client", "server"])
    def test_roots_that_others_add_are_not_trusted(self, side: str) -> None:
        mesh = Mesh()
        ours = getattr(mesh, side)
        ours.load_verify_locations(cadata=write_der(NEW.certificate))
        other = stranger(server_side=side == "client", chain=NEW.chain(key=KEY), key=KEY)
        refusing = meet(ours, other)[0] if side == "client" else meet(other, ours)[1]
        assert isinstance(refusing.refusal, VerificationError)
        assert not ours.get_ca_certs()
        talk(*meet(mesh.client, mesh.server))

    def test_a_certificate_of_others_is_refused(self) -> None:
        for context in (Mesh().server, Mesh().client):
            with pytest.raises(ConfigurationError):
                context.load_cert_chain("any.pem")

    def test_a_client_that_asks_for_a_host_name_knows_servers_by_spiffe_id_alone(self) -> None:
        """No certificate here has a DNS name."""
        mesh = Mesh()
        talk(*meet(mesh.client, mesh.server))


@contextmanager
def listening(context: ssl.SSLContext) -> Iterator[tuple[ssl.SSLSocket, Callable[[ssl.SSLContext], ssl.SSLSocket]]]:
    """A listening socket of TLS, and a way to dial it."""
    with socket.create_server(("127.0.0.1", 0)) as plain, context.wrap_socket(plain, server_side=True) as listener:

        def dial(client: ssl.SSLContext) -> ssl.SSLSocket:
            return client.wrap_socket(socket.create_connection(listener.getsockname(), timeout=10))

        yield listener, dial


class TestSocketsMadeBefore:
    """A socket that was wrapped long before it connects or accepts must not bring its old snapshot with it."""

    def test_a_listening_socket_accepts_under_the_snapshot_of_the_moment(self) -> None:
        mesh = Mesh()
        with listening(mesh.server) as (listener, dial), ThreadPoolExecutor(1) as pool:
            for trusted in (OLD, NEW, OLD):
                mesh.server_source.replace(trusting(trusted.svid("/server"), trusted))
                for root in (OLD, NEW):
                    mesh.client_source.replace(trusting(root.svid("/client"), OLD, NEW))
                    dialling = pool.submit(dial, mesh.client)
                    if root is trusted:
                        connection, address = listener.accept()
                        assert address[0] == "127.0.0.1"
                        assert peer_chain(connection)[0] == mesh.client_source.svid().leaf
                        connection.close()
                    else:
                        with pytest.raises(PeerRefused):
                            listener.accept()
                    dialling.result(10).close()

    @pytest.mark.parametrize("connect", ["connect", "connect_ex"])
    def test_a_socket_connects_under_the_snapshot_of_the_moment(self, connect: str) -> None:
        mesh = Mesh()
        with listening(mesh.server) as (listener, _), ThreadPoolExecutor(1) as pool:
            early = mesh.client.wrap_socket(socket.socket())
            early.settimeout(10)
            mesh.client_source.replace(trusting(NEW.svid("/client"), OLD))
            mesh.server_source.replace(trusting(OLD.svid("/server"), NEW))
            accepting = pool.submit(listener.accept)
            assert not getattr(early, connect)(listener.getsockname())
            connection, _ = accepting.result(10)
            assert peer_chain(connection)[0] == mesh.client_source.svid().leaf
            early.close()
            connection.close()

    def test_handshakes_may_be_left_to_the_accepted_sockets(self) -> None:
        mesh = Mesh()
        with socket.create_server(("127.0.0.1", 0)) as plain, ThreadPoolExecutor(1) as pool:
            listener = mesh.server.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
            address = listener.getsockname()
            dialling = pool.submit(lambda: mesh.client.wrap_socket(socket.create_connection(address, timeout=10)))
            connection, _ = listener.accept()  # returns before the handshake
            connection.settimeout(10)
            connection.sendall(b"hello")
            client = dialling.result(10)
            assert client.recv(5) == b"hello"
            for each in (client, connection, listener):
                each.close()


def test_a_federated_bundle_that_arrives_later_is_followed() -> None:
    mesh = Mesh()
    visitor = MemorySource.of(FEDERATED.svid("/visitor"), FEDERATED.bundle(), LOCAL.bundle())
    client = client_context(visitor, any_id())
    _, server = meet(client, mesh.server)
    assert isinstance(server.refusal, VerificationError)
    held = mesh.server_source.x509_context()
    mesh.server_source.replace(X509Context(held.svids, held.bundles.having(FEDERATED.bundle())))
    talk(*meet(client, mesh.server))
