"""Keys on their way into OpenSSL: through memory; where that can not be, encrypted through a file."""

from __future__ import annotations

import errno
import os
import ssl
import stat
import tempfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from istio_auth.bundle import TrustBundle
from istio_auth.pem import write_der
from istio_auth.svid import X509SVID
from istio_auth.tls.loading import load_roots, load_svid
from tests.fakes.authority import FakeAuthority
from tests.fakes.descriptors import open_descriptors
from tests.fakes.tls import meet, stranger, talk


class Watched(ssl.SSLContext):
    """Keeps what it was given to load: where it was, and what was there."""

    path = Path()
    real = ""
    mode = 0
    content = b""
    password: object = None
    fails = False

    def load_cert_chain(self, certfile: object, keyfile: object = None, password: object = None) -> None:
        self.path = Path(str(certfile))
        self.real = str(self.path.readlink()) if self.path.is_symlink() else str(self.path)
        self.mode = stat.S_IMODE(self.path.stat().st_mode)
        self.content = self.path.read_bytes()
        self.password = password
        assert keyfile is None
        super().load_cert_chain(str(certfile), password=password)  # type: ignore[arg-type]  # as it came
        if self.fails:
            raise ssl.SSLError("as if OpenSSL did not like it")


def watched() -> Watched:
    return Watched(ssl.PROTOCOL_TLS_SERVER)


@pytest.fixture
def svid() -> X509SVID:
    return FakeAuthority(parent=FakeAuthority()).svid()


def is_presented(svid: X509SVID, context: ssl.SSLContext) -> bool:
    """Whether a server with this context shows the SVID's leaf, which takes the key to it."""
    client, server = meet(stranger(server_side=False), context)
    talk(client, server)
    return client.tls.getpeercert(binary_form=True) == write_der(svid.leaf)


def no_memory_files(*_args: object) -> int:
    raise OSError("no memory files here")


def test_a_key_goes_through_memory_and_leaves_nothing_open(svid: X509SVID) -> None:
    before = open_descriptors("memfd")
    context = watched()
    load_svid(context, svid)
    assert context.real == "/memfd:svid (deleted)"
    assert context.content == svid.chain_pem() + svid.key_pem()
    assert open_descriptors("memfd") == before
    assert is_presented(svid, context)


def test_no_file_is_made_for_a_key(svid: X509SVID, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    before = tmp_path.stat().st_mtime_ns
    load_svid(watched(), svid)
    assert tmp_path.stat().st_mtime_ns == before  # a folder remembers even what is gone


@pytest.mark.parametrize("missing", ["refused", "unknown"])
def test_without_memory_files_the_key_is_encrypted_and_its_file_gone_at_once(
    svid: X509SVID, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    if missing == "refused":
        monkeypatch.setattr(os, "memfd_create", no_memory_files)
    else:
        monkeypatch.delattr(os, "memfd_create")
    passwords = set()
    for _ in range(2):
        context = watched()
        load_svid(context, svid)
        assert context.path.parent == tmp_path
        assert context.mode == 0o600
        assert svid.key_pem() not in context.content
        assert b"BEGIN ENCRYPTED PRIVATE KEY" in context.content
        assert b"BEGIN PRIVATE KEY" not in context.content
        assert isinstance(context.password, bytes)
        assert len(context.password) == 64
        key = load_pem_private_key(context.content[len(svid.chain_pem()) :], context.password)
        assert key.public_key() == svid.private_key.public_key()
        passwords.add(context.password)
        assert is_presented(svid, context)
        assert not list(tmp_path.iterdir())
    assert len(passwords) == 2


def test_a_file_that_openssl_refuses_is_removed_too(
    svid: X509SVID, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "memfd_create", no_memory_files)
    context = watched()
    context.fails = True
    with pytest.raises(ssl.SSLError):
        load_svid(context, svid)
    assert not list(tmp_path.iterdir())


def test_what_openssl_refuses_in_memory_is_not_tried_on_disk(
    svid: X509SVID, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    context = watched()
    context.fails = True
    before = tmp_path.stat().st_mtime_ns
    with pytest.raises(ssl.SSLError):
        load_svid(context, svid)
    assert context.real == "/memfd:svid (deleted)"
    assert tmp_path.stat().st_mtime_ns == before


def test_without_a_descriptor_left_that_is_said_and_no_file_tried(
    svid: X509SVID, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*_args: object) -> int:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(os, "memfd_create", none_left)
    before = tmp_path.stat().st_mtime_ns
    with pytest.raises(OSError, match="Too many open files"):
        load_svid(watched(), svid)
    assert tmp_path.stat().st_mtime_ns == before


def test_the_roots_of_all_bundles_are_loaded_and_none_is_no_error() -> None:
    one, two = FakeAuthority("one.test"), FakeAuthority("two.test")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    load_roots(context, [])
    load_roots(context, [TrustBundle(one.trust_domain)])
    assert not context.get_ca_certs()
    load_roots(context, [one.bundle(), two.bundle()])
    assert len(context.get_ca_certs()) == 2
