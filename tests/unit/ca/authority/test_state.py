"""The state of an authority on paper: nothing is lost in it, and nothing doubtful is taken from it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric import rsa

from ca.authority.state import AuthorityState, IssuerState, KeyReference
from istio_auth.errors import ConfigurationError
from istio_auth.pem import write_private_key
from istio_auth.spiffe_id import TrustDomain
from tests.fakes.authority import FakeAuthority

LOCAL = TrustDomain("cluster.local")
ROOT, NEXT, OLD = FakeAuthority(), FakeAuthority(), FakeAuthority()
INTERMEDIATE = FakeAuthority(parent=ROOT)
DEADLINE = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)

SELF_SIGNED = IssuerState(ROOT.certificate, ROOT.certificate, key=ROOT.key)
PLUGGED = IssuerState(
    INTERMEDIATE.certificate,
    ROOT.certificate,
    other_roots=(NEXT.certificate,),
    key=KeyReference("a plugged-in CA in /etc/cacerts"),
)
FULL = AuthorityState(
    LOCAL,
    SELF_SIGNED,
    prepared=IssuerState(NEXT.certificate, NEXT.certificate, key=NEXT.key),
    retired=(IssuerState(OLD.certificate, OLD.certificate),),
    sequence=7,
    refresh_hint=timedelta(seconds=60),
    deadlines={"retire": DEADLINE},
)


@pytest.mark.parametrize("state", [AuthorityState(LOCAL, SELF_SIGNED), AuthorityState(LOCAL, PLUGGED), FULL])
def test_a_state_comes_back_as_it_was_written(state: AuthorityState) -> None:
    written = state.to_json()
    read = AuthorityState.from_json(written)
    assert read == state
    assert read.to_json() == written
    for before, after in zip(state.issuers, read.issuers, strict=True):
        if isinstance(before.key, KeyReference) or before.key is None:
            assert after.key == before.key
        else:
            assert after.key is not None
            assert not isinstance(after.key, KeyReference)
            assert after.key.public_key() == before.key.public_key()


def test_the_bundle_holds_every_root_once_with_the_sequence() -> None:
    bundle = FULL.bundle()
    assert set(bundle.x509_authorities) == {ROOT.certificate, NEXT.certificate, OLD.certificate}
    assert len(bundle.x509_authorities) == 3
    assert (bundle.trust_domain, bundle.sequence, bundle.refresh_hint) == (LOCAL, 7, timedelta(seconds=60))
    assert set(AuthorityState(LOCAL, PLUGGED).bundle().x509_authorities) == {ROOT.certificate, NEXT.certificate}


def test_the_bytes_of_the_bundle_stay_when_an_issuer_changes_its_place() -> None:
    assert FULL.prepared is not None
    switched = AuthorityState(LOCAL, FULL.prepared, retired=(*FULL.retired, FULL.active), sequence=7)
    assert switched.bundle().to_pem() == FULL.bundle().to_pem()


def test_a_chain_is_what_stands_between_a_leaf_and_the_root() -> None:
    assert SELF_SIGNED.chain == ()
    assert PLUGGED.chain == (INTERMEDIATE.certificate,)


def test_a_key_of_another_certificate_is_refused() -> None:
    with pytest.raises(ConfigurationError):
        IssuerState(ROOT.certificate, ROOT.certificate, key=NEXT.key)


def test_no_key_is_printed() -> None:
    printed = repr(FULL) + str(FULL)
    assert "PRIVATE" not in printed
    assert "Key" not in printed.replace("KeyReference", "")


def changed(change: Callable[[dict[str, object]], object]) -> bytes:
    document = json.loads(FULL.to_json())
    change(document)
    return json.dumps(document).encode()


def set_(*path: str, to: object) -> Callable[[dict[str, object]], object]:
    def change(document: dict[str, object]) -> None:
        place = document
        for name in path[:-1]:
            inner = place[name]
            assert isinstance(inner, dict)
            place = inner
        place[path[-1]] = to

    return change


WEAK_BITS = 1024
PEM = NEXT.bundle().to_pem().decode()
DAMAGES: dict[str, Callable[[dict[str, object]], object]] = {
    "another version": set_("version", to=2),
    "a version that is no number": set_("version", to="1"),
    "no version": lambda document: document.pop("version"),
    "a member missing": lambda document: document.pop("retired"),
    "an unknown member": set_("new", to=1),
    "an unknown member of an issuer": set_("active", "new", to=1),
    "no trust domain": set_("trust_domain", to="Cluster.Local"),
    "sequence zero": set_("sequence", to=0),
    "sequence as truth": set_("sequence", to=True),
    "endless refresh hint": set_("refresh_hint", to=10**30),
    "a root that is none": set_("active", "root", to="garbage"),
    "two certificates for one": set_("active", "certificate", to=PEM * 2),
    "another's certificate": set_("active", "certificate", to=PEM),
    "no key": set_("active", "key", to=None),
    "a damaged key": set_(
        "active", "key", to={"pem": "-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"}
    ),
    "another's key": set_("active", "key", to={"pem": write_private_key(NEXT.key).decode()}),
    "a weak key": set_(
        "active", "key", to={"pem": write_private_key(rsa.generate_private_key(65537, WEAK_BITS)).decode()}
    ),
    "a key of an unknown form": set_("active", "key", to={"pem": "", "reference": ""}),
    "a deadline that is none": set_("deadlines", "retire", to="soon"),
    "an issuer that is none": set_("prepared", to=[]),
    "a number for a text": set_("active", "root", to=5),
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_state_is_refused_and_no_key_is_in_the_message(damage: Callable[[dict[str, object]], object]) -> None:
    text = changed(damage)
    with pytest.raises(ConfigurationError) as caught:
        AuthorityState.from_json(text)
    error: BaseException | None = caught.value
    while error is not None:
        assert "PRIVATE" not in str(error)
        error = error.__cause__
    assert AuthorityState.from_json(changed(set_("version", to=1))) == FULL


@pytest.mark.parametrize("size", range(0, 2000, 97))
def test_a_truncated_state_is_refused(size: int) -> None:
    text = FULL.to_json()
    with pytest.raises(ConfigurationError):
        AuthorityState.from_json(text[: min(size, len(text) - 3)])


@pytest.mark.parametrize("garbage", [b"", b"\0" * 100, b"[]", b"null", b"[" * 100_000, b"\xff\xfe"])
def test_garbage_is_refused(garbage: bytes) -> None:
    with pytest.raises(ConfigurationError):
        AuthorityState.from_json(garbage)
