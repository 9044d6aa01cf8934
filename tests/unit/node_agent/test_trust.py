"""Whom the node trusts, and who may change that."""

from __future__ import annotations

import pytest

from istio_auth.bundle import BundleSet, TrustBundle
from istio_auth.errors import InvalidBundle, InvalidPEM, NotReady
from istio_auth.spiffe_id import TrustDomain
from node_agent.trust import BundleRefused, KeptTrust, Trust, at_start, fingerprint, offered, read_pin
from tests.fakes.authority import FakeAuthority

OLD, NEW, FOREIGN = FakeAuthority(), FakeAuthority(), FakeAuthority("foreign.test")
LOCAL = TrustDomain("cluster.local")


def bundle(*authorities: FakeAuthority, sequence: int | None = 1) -> TrustBundle:
    return TrustBundle(authorities[0].trust_domain, tuple(each.certificate for each in authorities), sequence)


def kept(pin: TrustBundle, *held: TrustBundle) -> KeptTrust:
    return KeptTrust(BundleSet(held), fingerprint(pin))


class Disk:
    def __init__(self) -> None:
        self.content: KeptTrust | None = None
        self.failure: Exception | None = None

    async def keep(self, what: KeptTrust) -> None:
        if self.failure:
            raise self.failure
        self.content = what


class TestThePin:
    def test_is_a_bundle_document_or_pem(self) -> None:
        assert read_pin(LOCAL, bundle(OLD, sequence=7).to_json()) == bundle(OLD, sequence=7)
        assert read_pin(LOCAL, b"\n" + bundle(OLD).to_pem()) == bundle(OLD, sequence=None)

    def test_without_an_authority_is_refused(self) -> None:
        with pytest.raises(InvalidBundle):
            read_pin(LOCAL, b'{"keys": []}')

    def test_of_what_an_authority_issued_is_refused(self) -> None:
        leaf = OLD.svid("/x").leaf
        with pytest.raises(InvalidBundle, match="no CA"):
            read_pin(LOCAL, TrustBundle(LOCAL, (OLD.certificate, leaf)).to_pem())

    def test_that_is_neither_is_refused(self) -> None:
        with pytest.raises(InvalidPEM):
            read_pin(LOCAL, b"no bundle")


class TestTheStart:
    def test_trusts_the_pin_when_nothing_is_kept(self) -> None:
        assert list(at_start(bundle(OLD), None).bundles) == [bundle(OLD)]

    def test_takes_up_what_grew_out_of_the_same_pin(self) -> None:
        pin = bundle(OLD, sequence=None)
        grown = kept(pin, bundle(OLD, NEW, sequence=5))
        assert at_start(pin, grown) is grown

    def test_takes_it_up_whatever_format_the_pin_has_now(self) -> None:
        grown = kept(bundle(OLD, sequence=1), bundle(NEW, sequence=5))
        assert at_start(bundle(OLD, sequence=None), grown) is grown

    def test_starts_over_with_another_pin(self) -> None:
        grown = kept(bundle(OLD), bundle(OLD, sequence=5))
        assert list(at_start(bundle(NEW, sequence=1), grown).bundles) == [bundle(NEW, sequence=1)]

    def test_does_not_go_back_to_an_outdated_copy_of_what_it_holds(self) -> None:
        grown = kept(bundle(OLD), bundle(OLD, NEW, sequence=5))
        assert at_start(bundle(NEW, sequence=4), grown) is grown
        assert at_start(bundle(NEW, sequence=6), grown).bundles.bundle(LOCAL).sequence == 6

    def test_starts_over_when_what_is_kept_is_another_trust_domains(self) -> None:
        grown = kept(bundle(OLD), bundle(FOREIGN, sequence=5))
        assert list(at_start(bundle(OLD), grown).bundles) == [bundle(OLD)]


class TestAnOffer:
    def test_replaces_the_set_whole(self) -> None:
        held = BundleSet((bundle(OLD, sequence=1), bundle(FOREIGN)))
        assert list(offered(held, [bundle(OLD, NEW, sequence=2)], LOCAL)) == [bundle(OLD, NEW, sequence=2)]

    def test_puts_our_own_trust_domain_first(self) -> None:
        fresh = offered(BundleSet((bundle(OLD),)), [bundle(FOREIGN), bundle(OLD)], LOCAL)
        assert [each.trust_domain.name for each in fresh] == ["cluster.local", "foreign.test"]

    @pytest.mark.parametrize(
        "offer",
        [
            [bundle(OLD, NEW, sequence=4)],
            [bundle(OLD, NEW, sequence=None)],
            [bundle(NEW, sequence=5)],
            [TrustBundle(LOCAL, (), 6)],
            [bundle(FOREIGN, sequence=6)],
            [bundle(NEW, sequence=6), bundle(OLD, sequence=6)],
        ],
        ids=["sequence back", "no sequence", "same sequence, other roots", "empty", "not our own", "our own twice"],
    )
    def test_that_breaks_a_rule_is_refused_and_what_is_held_stays(self, offer: list[TrustBundle]) -> None:
        held = BundleSet((bundle(OLD, sequence=5),))
        with pytest.raises(BundleRefused):
            offered(held, offer, LOCAL)
        assert list(offered(held, [bundle(NEW, sequence=6)], LOCAL)) == [bundle(NEW, sequence=6)]

    @pytest.mark.parametrize("sequence", [4, 6, None])
    def test_of_the_same_authorities_is_taken_with_any_sequence(self, sequence: int | None) -> None:
        held = BundleSet((bundle(OLD, sequence=5),))
        assert list(offered(held, [bundle(OLD, sequence=sequence)], LOCAL)) == [bundle(OLD, sequence=sequence)]

    def test_of_what_is_held_changes_nothing(self) -> None:
        held = BundleSet((bundle(OLD, sequence=5),))
        assert offered(held, [bundle(OLD, sequence=5)], LOCAL) is held


class TestTrust:
    async def test_is_on_disk_before_anybody_hears_of_it(self) -> None:
        disk = Disk()
        trust = Trust(LOCAL, at_start(bundle(OLD), None), disk.keep)
        seen: list[object] = []
        trust.subscribe(lambda: seen.append(disk.content and disk.content.bundles))
        assert await trust.take([bundle(OLD, NEW, sequence=2)])
        assert seen == [trust.bundles]
        assert trust.own.sequence == 2

    async def test_that_can_not_be_kept_does_not_change(self) -> None:
        disk = Disk()
        disk.failure = NotReady("disk full")
        trust = Trust(LOCAL, at_start(bundle(OLD), None), disk.keep)
        with pytest.raises(NotReady):
            await trust.take([bundle(NEW, sequence=2)])
        assert trust.own == bundle(OLD)
        disk.failure = None
        assert await trust.take([bundle(NEW, sequence=2)])

    async def test_tells_nobody_of_what_is_no_change(self) -> None:
        trust = Trust(LOCAL, at_start(bundle(OLD), None), Disk().keep)
        trust.subscribe(lambda: pytest.fail("told"))
        assert not await trust.take([bundle(OLD)])
        assert not await trust.pin(bundle(OLD))

    async def test_follows_a_new_pin(self) -> None:
        disk = Disk()
        trust = Trust(LOCAL, at_start(bundle(OLD), None), disk.keep)
        assert await trust.pin(bundle(NEW, sequence=None))
        assert trust.own.x509_authorities == (NEW.certificate,)
        assert disk.content is not None
        assert disk.content.pin == fingerprint(bundle(NEW))


def test_what_is_kept_reads_back() -> None:
    what = kept(bundle(OLD), bundle(OLD, NEW, sequence=5), bundle(FOREIGN, sequence=2))
    assert KeptTrust.parse(what.to_json()) == what


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"trust_domains": {}}'])
def test_what_is_not_ours_does_not_read(text: bytes) -> None:
    with pytest.raises(InvalidBundle):
        KeptTrust.parse(text)
