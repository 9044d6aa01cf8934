"""A file source, look by look: what it takes, what it leaves alone, and what it says of it."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from datetime import timedelta
from os import mkfifo, truncate
from pathlib import Path

import pytest

from istio_auth.bundle import BundleSet, TrustBundle
from istio_auth.errors import ConfigurationError, NotReady, VerificationError
from istio_auth.sources import svid_files
from istio_auth.sources.files import FileSource
from istio_auth.sources.svid_files import SVIDFiles, SVIDLayout
from istio_auth.spiffe_id import TrustDomain
from istio_auth.x509_source import X509Context
from tests.fakes.authority import HOUR, FakeAuthority
from tests.fakes.clock import FakeClock
from tests.fakes.svid_folder import SVIDFolder, generation

FIRST, SECOND = generation(1), generation(2)
LOCAL, PARTNER, OTHER = (TrustDomain(name) for name in ("cluster.local", "partner.test", "other.test"))
PARTNERS = FakeAuthority("partner.test"), FakeAuthority("partner.test")


class StillSource(FileSource):
    """One without a thread: a test looks when it wants."""

    def _start(self, first: float) -> None:
        pass

    def look(self) -> float:
        return self._poll()

    def settle(self) -> StillSource:
        """Two looks, between which nothing happens."""
        self.look()
        self.look()
        return self


def content(context: X509Context) -> tuple[object, ...]:
    """What a snapshot says."""
    return context.svids, set(context.bundles)


@pytest.fixture
def folder(tmp_path: Path) -> SVIDFolder:
    return SVIDFolder(tmp_path)


@pytest.fixture
def held(folder: SVIDFolder) -> StillSource:
    """A source that holds the first generation."""
    folder.write(FIRST)
    return StillSource(folder.path).settle()


class TestLayouts:
    @pytest.mark.parametrize(
        "layout", [SVIDLayout.ISTIO, SVIDLayout.KUBERNETES_TLS, SVIDLayout.CREDENTIAL_BUNDLE], ids=lambda one: one.chain
    )
    def test_each_is_found_out(self, tmp_path: Path, layout: SVIDLayout) -> None:
        SVIDFolder(tmp_path, layout).write(FIRST)
        assert content(StillSource(tmp_path).x509_context()) == content(FIRST)

    def test_the_one_of_which_more_is_there_is_meant(self, tmp_path: Path) -> None:
        SVIDFolder(tmp_path).put("root-cert.pem", b"")
        SVIDFolder(tmp_path, SVIDLayout.KUBERNETES_TLS).write(FIRST)
        assert content(StillSource(str(tmp_path)).x509_context()) == content(FIRST)

    def test_one_with_other_names_is_told(self, tmp_path: Path) -> None:
        layout = SVIDLayout("svid.pem", "svid_key.pem", "bundle.pem")
        SVIDFolder(tmp_path, layout).write(FIRST)
        assert content(StillSource(tmp_path, layout=layout).x509_context()) == content(FIRST)

    def test_files_are_told_one_by_one(self, tmp_path: Path) -> None:
        for name, data in SVIDFolder(tmp_path).contents(FIRST).items():
            (tmp_path / name).mkdir()
            (tmp_path / name / "it").write_bytes(data)
        files = SVIDFiles(*(tmp_path / name / "it" for name in SVIDLayout.ISTIO.names))
        assert content(StillSource(files).x509_context()) == content(FIRST)

    def test_roots_may_be_in_a_volume_of_their_own(self, tmp_path: Path) -> None:
        own, roots = SVIDFolder(tmp_path / "own", SVIDLayout.CREDENTIAL_BUNDLE), tmp_path / "roots" / "anchors.pem"
        own.path.mkdir()
        roots.parent.mkdir()
        source = StillSource(own.path, roots=roots)
        for context in (FIRST, SECOND):
            own.write(context)
            roots.write_bytes((own.path / "trust-bundle.pem").read_bytes())
            (own.path / "trust-bundle.pem").unlink()
            assert content(source.settle().x509_context()) == content(context)
        own.put("credential-bundle.pem", SECOND.svid.chain_pem())
        assert "exactly one private key" in str(source.settle().status().trouble)
        assert content(source.x509_context()) == content(SECOND)
        (own.path / "credential-bundle.pem").unlink()
        assert "nor is there a tls.crt or credential-bundle.pem" in str(source.settle().status().trouble)

    def test_settings_that_make_no_sense_are_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ConfigurationError, match="interval"):
            StillSource(tmp_path, interval=timedelta())
        with pytest.raises(ConfigurationError, match="layout"):
            StillSource(SVIDFiles.in_folder(tmp_path, SVIDLayout.ISTIO), layout=SVIDLayout.ISTIO)
        with pytest.raises(ConfigurationError, match="layout"):
            StillSource(SVIDFiles.in_folder(tmp_path, SVIDLayout.ISTIO), roots=tmp_path / "roots.pem")


class TestARotation:
    @pytest.mark.parametrize("way", ["in_place", "by_renaming"])
    def test_is_taken_when_two_looks_agree(self, held: StillSource, folder: SVIDFolder, way: str) -> None:
        for step in getattr(folder, way)(SECOND):
            step()
        held.look()
        assert content(held.x509_context()) == content(FIRST)
        held.look()
        assert content(held.x509_context()) == content(SECOND)
        assert held.status().updates == 2

    @pytest.mark.parametrize("layout", [SVIDLayout.ISTIO, SVIDLayout.CREDENTIAL_BUNDLE], ids=lambda one: one.chain)
    def test_of_a_volume_is_taken_at_once(self, tmp_path: Path, layout: SVIDLayout) -> None:
        folder = SVIDFolder(tmp_path, layout)
        for step in folder.by_swapping(FIRST):
            step()
        source = StillSource(tmp_path).settle()
        for step in folder.by_swapping(SECOND):
            step()
        source.look()
        assert content(source.x509_context()) == content(SECOND)

    def test_of_a_folder_that_is_a_link_is_taken(self, tmp_path: Path) -> None:
        for number, context in enumerate((FIRST, SECOND)):
            (tmp_path / str(number)).mkdir()
            SVIDFolder(tmp_path / str(number)).write(context)
        (tmp_path / "live").symlink_to("0")
        source = StillSource(tmp_path / "live").settle()
        (tmp_path / "next").symlink_to("1")
        (tmp_path / "next").replace(tmp_path / "live")
        assert content(source.settle().x509_context()) == content(SECOND)

    def test_is_no_change_when_the_files_say_the_same(self, held: StillSource, folder: SVIDFolder) -> None:
        before = held.x509_context()
        folder.write(FIRST)
        assert held.settle().x509_context() is before

    def test_of_which_half_is_there_leaves_the_old_svid_and_is_told(
        self, held: StillSource, folder: SVIDFolder, caplog: pytest.LogCaptureFixture
    ) -> None:
        steps = folder.by_renaming(SECOND, names=["key.pem", "root-cert.pem", "cert-chain.pem"])
        for step in steps[:4]:
            step()
        for _ in range(5):
            held.settle()
        assert content(held.x509_context()) == content(FIRST)
        (line,) = caplog.messages
        for word in ("key.pem", "cert-chain.pem", "not the key of the leaf", "stays in use"):
            assert word in line
        assert "not the key of the leaf" in str(held.status().trouble)
        for step in steps[4:]:
            step()
        assert content(held.settle().x509_context()) == content(SECOND)
        assert held.status().trouble is None

    def test_that_removes_a_root_takes_effect(self, held: StillSource, folder: SVIDFolder) -> None:
        left = FIRST.bundle(LOCAL).x509_authorities[:1]
        folder.put("root-cert.pem", TrustBundle(LOCAL, left).to_pem())
        assert held.settle().bundle(LOCAL).x509_authorities == left

    def test_is_taken_at_once_by_reload(self, held: StillSource, folder: SVIDFolder) -> None:
        folder.write(SECOND)
        assert held.reload().updates == 2
        assert content(held.x509_context()) == content(SECOND)


def instead(make: Callable[[Path], object]) -> Callable[[Path], object]:
    """Something else in the place of the file."""

    def spoil(path: Path) -> None:
        path.unlink()
        make(path)

    return spoil


FAULTS: dict[str, tuple[str, Callable[[Path], object]]] = {
    "missing": ("No such file", Path.unlink),
    "a folder": ("no regular file", instead(Path.mkdir)),
    "a FIFO": ("no regular file", instead(mkfifo)),
    "a device": ("no regular file", instead(lambda path: path.symlink_to("/dev/zero"))),
    "a dangling link": ("dangling link", instead(lambda path: path.symlink_to("nowhere"))),
    "a link to itself": ("symbolic links", instead(lambda path: path.symlink_to(path.name))),
    "huge": ("larger than", lambda path: truncate(path, 100 << 20)),
    "empty": ("expected", lambda path: path.write_bytes(b"")),
    "truncated": ("PEM|parse", lambda path: path.write_bytes(path.read_bytes()[:-40])),
    "binary": ("expected", lambda path: path.write_bytes(b"\xff" * 1000)),
    "something else": ("expected|parse", lambda path: path.write_bytes(b"-----BEGIN DH PARAMETERS-----\n")),
}


class TestFilesThatAreNoGood:
    def test_are_waited_for(self, folder: SVIDFolder) -> None:
        source = StillSource(folder.path / "later")
        with pytest.raises(NotReady) as refusal:
            source.wait_until_ready(timedelta())
        for word in (
            "cert-chain.pem",
            "No such file",
            "nor is there a tls.crt or credential-bundle.pem",
            "may read them",
        ):
            assert word in str(refusal.value)
        (folder.path / "later").mkdir()
        SVIDFolder(folder.path / "later").write(FIRST)
        source.settle().wait_until_ready(timedelta())

    @pytest.mark.parametrize("name", SVIDLayout.ISTIO.names)
    @pytest.mark.parametrize("fault", FAULTS)
    def test_leave_the_last_good_snapshot_and_are_told_once_by_their_name(
        self, held: StillSource, folder: SVIDFolder, caplog: pytest.LogCaptureFixture, name: str, fault: str
    ) -> None:
        word, spoil = FAULTS[fault]
        before = held.x509_context()
        spoil(folder.path / name)
        for _ in range(3):
            held.settle()
        assert held.x509_context() is before
        assert re.search(word, str(held.status().trouble))
        assert name in str(held.status().trouble)
        assert len(caplog.records) == 1
        assert "PRIVATE KEY" not in caplog.text
        if (folder.path / name).is_dir():
            (folder.path / name).rmdir()
        else:
            (folder.path / name).unlink(missing_ok=True)
        folder.put(name, folder.contents(FIRST)[name])
        assert held.settle().x509_context() is before
        assert held.status().trouble is None

    def test_for_a_moment_are_read_again_though_nothing_about_them_changed(
        self, held: StillSource, folder: SVIDFolder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(path: Path, limit: int) -> bytes:
            raise NotReady(f"can not read {path}: Input/output error")

        folder.write(SECOND)
        with monkeypatch.context() as broken:
            broken.setattr(svid_files, "read_bounded", failing)
            assert "Input/output error" in str(held.settle().status().trouble)
        held.look()
        assert content(held.x509_context()) == content(SECOND)

    def test_of_an_svid_that_has_ended_do_not_replace_a_good_one(
        self, folder: SVIDFolder, authority: FakeAuthority
    ) -> None:
        folder.write(FIRST)
        clock = FakeClock(authority.now)
        source = StillSource(folder.path, clock=clock).settle()
        ended = authority.svid("/web", not_before=authority.now - HOUR, not_after=authority.now)
        folder.write(X509Context((ended,), BundleSet((authority.bundle(),))))
        assert content(source.settle().x509_context()) == content(FIRST)
        assert "has ended" in str(source.status().trouble)


class TestThePrivateKey:
    def test_that_everybody_may_read_is_taken_and_warned_of_once(
        self, folder: SVIDFolder, caplog: pytest.LogCaptureFixture
    ) -> None:
        folder.write(FIRST)
        (folder.path / "key.pem").chmod(0o644)
        source = StillSource(folder.path).settle()
        folder.write(SECOND)
        (folder.path / "key.pem").chmod(0o644)
        assert content(source.settle().x509_context()) == content(SECOND)
        assert [(record.levelno, "0600" in record.getMessage()) for record in caplog.records] == [
            (logging.WARNING, True)
        ]
        assert str(folder.path / "key.pem") in caplog.text

    @pytest.mark.parametrize("mode", [0o600, 0o400, 0o640])
    def test_that_the_group_at_most_may_read_is_not(
        self, folder: SVIDFolder, caplog: pytest.LogCaptureFixture, mode: int
    ) -> None:
        folder.write(FIRST)
        (folder.path / "key.pem").chmod(mode)
        StillSource(folder.path)
        assert not caplog.records


class TestTrustDomains:
    def test_the_roots_are_for_the_svids_own_unless_told(self, folder: SVIDFolder) -> None:
        folder.write(FIRST)
        own = StillSource(folder.path).x509_context()
        assert [bundle.trust_domain for bundle in own.bundles] == [LOCAL]
        told = StillSource(folder.path, trust_domain=PARTNER).x509_context()
        assert [bundle.trust_domain for bundle in told.bundles] == [PARTNER]
        assert told.svid == own.svid

    def test_others_have_a_file_each_or_stand_in_a_map(self, folder: SVIDFolder) -> None:
        source = self.federated(folder)
        assert source.bundle(PARTNER).x509_authorities == (PARTNERS[0].certificate,)
        assert source.bundle(OTHER).x509_authorities == (PARTNERS[1].certificate,)
        assert source.bundle(LOCAL) == FIRST.bundle(LOCAL)

    def test_are_never_told_by_the_map_if_they_have_a_file(self, folder: SVIDFolder) -> None:
        source = self.federated(folder)
        forged = [TrustBundle(domain, (PARTNERS[1].certificate,)) for domain in (LOCAL, PARTNER)]
        (folder.path / "map.json").write_bytes(BundleSet(tuple(forged)).to_json())
        source.settle()
        assert source.bundle(LOCAL) == FIRST.bundle(LOCAL)
        assert source.bundle(PARTNER).x509_authorities == (PARTNERS[0].certificate,)
        with pytest.raises(VerificationError):
            source.bundle(OTHER)

    @pytest.mark.parametrize("name", ["partner.pem", "map.json"])
    def test_one_that_can_not_be_read_keeps_its_bundle_and_holds_up_nobody(self, folder: SVIDFolder, name: str) -> None:
        source = self.federated(folder)
        (folder.path / name).write_bytes(b"{")
        folder.write(SECOND)
        source.settle()
        assert source.svid() == SECOND.svid
        assert {bundle.trust_domain for bundle in source.x509_context().bundles} == {LOCAL, PARTNER, OTHER}
        assert name in str(source.status().trouble)

    @pytest.mark.parametrize(("name", "gone"), [("partner.pem", PARTNER), ("map.json", OTHER)])
    def test_one_whose_file_is_removed_is_not_trusted_any_more(
        self, folder: SVIDFolder, name: str, gone: TrustDomain, caplog: pytest.LogCaptureFixture
    ) -> None:
        source = self.federated(folder)
        (folder.path / name).unlink()
        for _ in range(3):
            source.settle()
        with pytest.raises(VerificationError):
            source.bundle(gone)
        assert len(list(source.x509_context().bundles)) == 2
        assert len([line for line in caplog.messages if name in line]) == 1

    def test_one_whose_whole_folder_is_away_keeps_its_bundle(self, folder: SVIDFolder) -> None:
        (folder.path / "mount").mkdir()
        partner = folder.path / "mount" / "partner.pem"
        partner.write_bytes(PARTNERS[0].bundle().to_pem())
        folder.write(FIRST)
        source = StillSource(folder.path, federated={PARTNER: partner}).settle()
        (folder.path / "mount").rename(folder.path / "away")
        assert source.settle().bundle(PARTNER)
        assert "partner.pem" in str(source.status().trouble)

    def test_one_in_the_middle_of_being_written_waits_though_the_volume_is_swapped(self, tmp_path: Path) -> None:
        volume = SVIDFolder(tmp_path)
        for step in volume.by_swapping(FIRST):
            step()
        both = TrustBundle(PARTNER, tuple(authority.certificate for authority in PARTNERS)).to_pem()
        volume.put("partner.pem", both)
        source = StillSource(tmp_path, federated={PARTNER: tmp_path / "partner.pem"}).settle()
        volume.put("partner.pem", PARTNERS[0].bundle().to_pem())
        source.look()
        volume.put("partner.pem", both)
        source.look()
        assert source.status().updates == 1

    @staticmethod
    def federated(folder: SVIDFolder) -> StillSource:
        folder.write(FIRST)
        (folder.path / "partner.pem").write_bytes(PARTNERS[0].bundle().to_pem())
        others = BundleSet((TrustBundle(OTHER, (PARTNERS[1].certificate,)),))
        (folder.path / "map.json").write_bytes(others.to_json())
        partner, everybody = folder.path / "partner.pem", folder.path / "map.json"
        return StillSource(folder.path, federated={PARTNER: partner}, bundle_map=everybody).settle()


def test_a_look_speaks_of_an_svid_that_nobody_renews(
    folder: SVIDFolder, authority: FakeAuthority, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock(authority.now)
    svid = authority.svid("/web", not_before=authority.now, not_after=authority.now + 10 * HOUR)
    folder.write(X509Context((svid,), BundleSet((authority.bundle(),))))
    source = StillSource(folder.path, clock=clock).settle()
    clock.advance(9 * HOUR)
    source.look()
    clock.advance(HOUR)
    source.look()
    assert [record.levelname for record in caplog.records] == ["WARNING", "ERROR"]
    assert str(folder.path) in caplog.messages[0]


def test_files_that_did_not_change_are_not_read_again(held: StillSource, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(svid_files, "read_bounded", None)
    assert [held.look() for _ in range(3)] == [1, 1, 1]
