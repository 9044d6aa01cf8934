"""SVIDs are read from files as one whole, and written as one whole."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
from pathlib import Path

import pytest

from istio_auth.bundle import BundleSet, TrustBundle
from istio_auth.errors import ConfigurationError, MissingError, NotReady, VerificationError
from istio_auth.sources import svid_files
from istio_auth.sources.svid_files import SVIDFiles, SVIDLayout, read_together, write_svid
from istio_auth.svid import X509SVID
from istio_auth.x509_source import X509Context
from tests.fakes.svid_folder import generation

FIRST, SECOND = generation(1), generation(2)


def read(files: SVIDFiles) -> tuple[X509SVID, TrustBundle]:
    svid = X509SVID.parse(files.chain.read_bytes(), files.key.read_bytes())
    return svid, TrustBundle.from_pem(svid.id.trust_domain, files.roots.read_bytes())


def modes(folder: Path) -> dict[str, int]:
    return {path.name: stat.S_IMODE(path.stat().st_mode) for path in folder.iterdir()}


class TestReadingTogether:
    def test_gives_each_file_its_bytes_or_the_reason_why_not(self, tmp_path: Path) -> None:
        (tmp_path / "a").write_bytes(b"aa")
        (tmp_path / "b").write_bytes(b"bbb")
        contents = read_together({tmp_path / "a": 2, tmp_path / "b": 2, tmp_path / "c": 2})
        assert contents[tmp_path / "a"] == b"aa"
        assert isinstance(contents[tmp_path / "b"], ConfigurationError)
        assert isinstance(contents[tmp_path / "c"], MissingError)

    def test_reads_again_what_changed_meanwhile(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        one, other = tmp_path / "one", tmp_path / "other"
        one.write_bytes(b"old")
        other.write_bytes(b"old")
        changes = [b"new"]

        def slowly(path: Path, limit: int) -> bytes:
            content = path.read_bytes()
            if path == one and changes:
                for changed in (one, other):
                    (tmp_path / "fresh").write_bytes(changes[0])
                    (tmp_path / "fresh").replace(changed)
                changes.pop()
            return content

        monkeypatch.setattr(svid_files, "read_bounded", slowly)
        assert read_together({one: 9, other: 9}) == {one: b"new", other: b"new"}

    def test_gives_up_on_what_never_comes_to_rest(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def restless(path: Path, limit: int) -> bytes:
            with path.open("ab") as file:
                file.write(b".")
            return b""

        monkeypatch.setattr(svid_files, "read_bounded", restless)
        with pytest.raises(NotReady, match="again and again"):
            read_together({tmp_path / "file": 9})


class TestWriting:
    @pytest.mark.parametrize(
        "layout", [SVIDLayout.ISTIO, SVIDLayout.KUBERNETES_TLS, SVIDLayout("svid.pem", "svid_key.pem", "bundle.pem")]
    )
    def test_makes_files_that_programs_read(self, tmp_path: Path, layout: SVIDLayout) -> None:
        for context in (FIRST, SECOND):
            files = write_svid(tmp_path / "deep" / "certs", context, layout=layout)
            assert read(files) == (context.svid, context.bundle(context.svid.id.trust_domain))
            assert files == SVIDFiles.in_folder(tmp_path / "deep" / "certs", layout)

    @pytest.mark.parametrize("umask", [0, 0o077])
    def test_keeps_the_key_to_its_owner_and_the_rest_readable_whatever_the_umask(
        self, tmp_path: Path, umask: int
    ) -> None:
        before = os.umask(umask)
        try:
            files = write_svid(tmp_path, FIRST)
        finally:
            os.umask(before)
        assert modes(files.key.resolve().parent) == {
            "key.pem": 0o600, "cert-chain.pem": 0o644, "root-cert.pem": 0o644
        }  # fmt: skip
        assert stat.S_IMODE(files.key.resolve().parent.stat().st_mode) == 0o755

    def test_keeps_a_file_with_key_and_chain_to_its_owner(self, tmp_path: Path) -> None:
        files = write_svid(tmp_path, FIRST, layout=SVIDLayout.CREDENTIAL_BUNDLE)
        assert modes(files.key.resolve().parent) == {"credential-bundle.pem": 0o600, "trust-bundle.pem": 0o644}
        assert files.key.read_bytes() == FIRST.svid.key_pem() + FIRST.svid.chain_pem()

    def test_replaces_all_files_in_one_moment(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        files = write_svid(tmp_path, FIRST)
        seen: list[X509SVID] = []
        swap = Path.replace

        def look_around(self: Path, target: Path) -> Path:
            seen.append(read(files)[0])
            result = swap(self, target)
            seen.append(read(files)[0])
            return result

        monkeypatch.setattr(Path, "replace", look_around)
        write_svid(tmp_path, SECOND)
        assert seen == sorted(seen, key=[FIRST.svid, SECOND.svid].index)
        assert set(seen) == {FIRST.svid, SECOND.svid}

    def test_takes_the_place_of_plain_files(self, tmp_path: Path) -> None:
        for name in SVIDLayout.ISTIO.names:
            (tmp_path / name).write_bytes(b"something old")
        assert read(write_svid(tmp_path, FIRST))[0] == FIRST.svid

    def test_leaves_no_old_key_and_nothing_of_a_killed_writer_behind(self, tmp_path: Path) -> None:
        (tmp_path / "..svid-left").mkdir()
        (tmp_path / "..svid-left" / "key.pem").write_bytes(b"half")
        (tmp_path / "..svid-link").symlink_to("..svid-left")
        (tmp_path / "mine").mkdir()
        for context in (FIRST, SECOND):
            write_svid(tmp_path, context)
        left = {path.name for path in tmp_path.iterdir()}
        assert left == {*SVIDLayout.ISTIO.names, "..data", "mine", (tmp_path / "..data").resolve().name}
        assert len(list(tmp_path.rglob("key.pem"))) == 2  # the link and the file

    @pytest.mark.parametrize("number", range(1, 7))
    def test_that_fails_leaves_the_old_files(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
    ) -> None:
        files, calls = write_svid(tmp_path, FIRST), []
        swap = Path.replace

        def full(self: Path, target: Path) -> Path:
            calls.append(target)
            if len(calls) == number:
                raise OSError(errno.ENOSPC, "full")
            return swap(self, target)

        monkeypatch.setattr(Path, "replace", full)
        if number <= 4:  # three files and the link
            with pytest.raises(NotReady, match="No space left"):
                write_svid(tmp_path, SECOND)
            assert read(files)[0] == FIRST.svid
        else:
            write_svid(tmp_path, SECOND)
            assert read(files)[0] == SECOND.svid
        assert len(list(tmp_path.glob("..svid-*"))) == 1

    def test_into_what_is_no_folder_is_told(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(ConfigurationError, match="file"):
            write_svid(tmp_path / "file", FIRST)

    def test_of_half_a_context_writes_nothing(self, tmp_path: Path) -> None:
        with pytest.raises(NotReady):
            write_svid(tmp_path, X509Context((), FIRST.bundles))
        with pytest.raises(VerificationError):
            write_svid(tmp_path, X509Context(FIRST.svids, BundleSet()))
        assert not list(tmp_path.iterdir())

    def test_for_a_group_that_the_writer_is_not_in_says_what_is_missing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def not_ours(*_: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "chown", not_ours)
        with pytest.raises(ConfigurationError, match="group 4711: who writes them must be in that group"):
            write_svid(tmp_path, FIRST, key_mode=0o640, group=4711)
        assert list(tmp_path.glob("*.pem")) == []

    def test_by_several_at_once_is_one_after_the_other(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(svid_files, "_PATIENCE", 60.0)  # a slow disk is no finding
        start, failed = threading.Barrier(4), list[BaseException]()

        def write(context: X509Context) -> None:
            start.wait()
            try:
                for _ in range(5):
                    write_svid(tmp_path, context)
            except BaseException as error:  # noqa: BLE001  # for the test to see
                failed.append(error)

        writers = [threading.Thread(target=write, args=(context,)) for context in (FIRST, SECOND) * 2]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join()
        assert failed == []
        assert read(SVIDFiles.in_folder(tmp_path, SVIDLayout.ISTIO))[0] in (FIRST.svid, SECOND.svid)
        assert len(list(tmp_path.glob("..svid-*"))) == 1


def test_whoever_keeps_the_folder_locked_holds_up_no_writer_for_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(svid_files, "_PATIENCE", 0.05)
    files = write_svid(tmp_path, FIRST)
    held = os.open(tmp_path, os.O_RDONLY)
    try:
        fcntl.flock(held, fcntl.LOCK_SH)  # any reader can
        with pytest.raises(NotReady, match="locked by another process"):
            write_svid(tmp_path, SECOND)
    finally:
        os.close(held)
    assert read(files)[0].leaf == FIRST.svid.leaf
    write_svid(tmp_path, SECOND)
    assert read(files)[0].leaf == SECOND.svid.leaf
