"""No field of a certificate can be wrong and leave: each is corrupted in turn, in the result and in the builder."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from ca.certificate import build as builder
from ca.certificate.build import Leaf, LeafTemplate, Names
from ca.certificate.check import CertificateCheck, WrongCertificate
from ca.profile import Validity
from istio_auth.errors import Code
from istio_auth.keys import PrivateKey, public_key_der, sign
from istio_auth.spiffe_id import SpiffeID
from tests.fakes.authority import FakeAuthority

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
KEYS: dict[str, PrivateKey] = {
    "P-256": ec.generate_private_key(ec.SECP256R1()),
    "P-384": ec.generate_private_key(ec.SECP384R1()),
    "RSA-2048": rsa.generate_private_key(65537, 2048),
}
LATE = datetime(2060, 1, 1, 12, tzinfo=UTC)  # the year 2050 changes the form of instants
ISSUERS = {name: FakeAuthority(now=NOW, key=key) for name, key in KEYS.items()}
ISSUERS["late"] = FakeAuthority(now=LATE, key=KEYS["P-256"])
WEB = SpiffeID.parse("spiffe://cluster.local/ns/default/sa/web")


def leaf_of(kind: str, *, now: datetime = NOW) -> Leaf:
    return Leaf(
        Names(WEB, ("web.default.svc", "web"), (ip_address("10.1.2.3"), ip_address("fd00::1"))),
        0x0123456789ABCDEF0123456789ABCDEF,
        Validity(now - timedelta(minutes=2), now + HOUR),
        public_key_der(KEYS[kind].public_key()),
        kind.startswith("RSA"),
    )


def build(issuer: str, leaf: Leaf) -> bytes:
    """What the builder makes, as `ca.issuer` does it."""
    template = LeafTemplate(ISSUERS[issuer].certificate)
    to_be_signed = template.to_be_signed(leaf)
    return template.signed(to_be_signed, sign(KEYS[issuer], to_be_signed))


def check_of(issuer: str, *, check_signature: bool = False) -> CertificateCheck:
    return CertificateCheck(ISSUERS[issuer].certificate, check_signature=check_signature)


SHAPES = [("P-256", "P-256"), ("P-384", "P-384"), ("RSA-2048", "RSA-2048"), ("P-256", "RSA-2048")]
SHAPE_NAMES = [f"{leaf} leaf of {issuer} issuer" for issuer, leaf in SHAPES]


@pytest.mark.parametrize(("issuer", "kind"), SHAPES, ids=SHAPE_NAMES)
@pytest.mark.parametrize("check_signature", [False, True])
def test_what_the_builder_makes_passes(issuer: str, kind: str, *, check_signature: bool) -> None:
    leaf = leaf_of(kind)
    found = check_of(issuer, check_signature=check_signature).check(build(issuer, leaf), leaf)
    assert found.serial_number == leaf.serial


@pytest.mark.parametrize(("issuer", "kind"), SHAPES[:2] + SHAPES[3:], ids=SHAPE_NAMES[:2] + SHAPE_NAMES[3:])
def test_every_flipped_bit_before_the_signature_is_caught(issuer: str, kind: str) -> None:
    leaf, check = leaf_of(kind), check_of(issuer)
    der = build(issuer, leaf)
    check.check(der, leaf)
    end = len(der) - len(x509.load_der_x509_certificate(der).signature)
    missed = [(at, bit) for at in range(end) for bit in range(8) if passes(check, flipped(der, at, bit), leaf)]
    assert missed == []


def test_the_late_shape_passes_too() -> None:
    leaf, der = unsigned("late", "P-256")
    assert check_of("late").check(der, leaf).not_valid_after_utc == LATE + HOUR


def test_every_flipped_bit_of_a_signature_from_elsewhere_is_caught() -> None:
    leaf, check = leaf_of("P-256"), check_of("P-256", check_signature=True)
    der = build("P-256", leaf)
    check.check(der, leaf)
    start = len(der) - len(x509.load_der_x509_certificate(der).signature)
    missed = [
        (at, bit) for at in range(start, len(der)) for bit in range(8) if passes(check, flipped(der, at, bit), leaf)
    ]
    assert missed == []


def test_something_behind_a_certificate_and_half_of_one_are_caught() -> None:
    leaf, check = leaf_of("P-256"), check_of("P-256")
    der = build("P-256", leaf)
    assert not passes(check, der + b"\0", leaf)
    assert not any(passes(check, der[:size], leaf) for size in range(len(der)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"serial": 5},
        {"serial": 0},
        {"serial": 1 << 160},
        {"names": Names(SpiffeID.parse("spiffe://cluster.local/ns/default/sa/other"))},
        {"names": Names(WEB, ("web.default.svc", "web"))},
        {"names": Names(WEB, ("web", "web.default.svc"), (ip_address("10.1.2.3"), ip_address("fd00::1")))},
        {"validity": Validity(NOW - timedelta(minutes=3), NOW + HOUR)},
        {"validity": Validity(NOW - timedelta(minutes=2), NOW + 2 * HOUR)},
        {"key_der": public_key_der(ec.generate_private_key(ec.SECP256R1()).public_key())},
        {"rsa": True},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_a_leaf_that_says_something_else_is_caught(wrong: dict[str, object]) -> None:
    leaf, check = leaf_of("P-256"), check_of("P-256")
    assert passes(check, build("P-256", leaf), leaf)
    assert not passes(check, build("P-256", replace(leaf, **wrong)), leaf)  # type: ignore[arg-type]  # by name


def test_another_issuers_leaf_is_caught() -> None:
    leaf = leaf_of("P-256")
    other = FakeAuthority(now=NOW)
    assert not passes(CertificateCheck(other.certificate), build("P-256", leaf), leaf)


@pytest.mark.parametrize("serial", [0, -1, 1 << 159])
def test_a_serial_number_that_none_may_have_is_caught_even_if_it_was_meant(serial: int) -> None:
    leaf = replace(leaf_of("P-256"), serial=serial)
    try:
        der = build("P-256", leaf)
    except OverflowError:
        return  # the builder can not even write it
    assert not passes(check_of("P-256"), der, leaf)


def test_a_name_without_path_is_caught_even_if_it_was_meant() -> None:
    leaf = replace(leaf_of("P-256"), names=Names(WEB.trust_domain.id))
    assert not passes(check_of("P-256"), build("P-256", leaf), leaf)


@pytest.mark.parametrize("outside", ["before", "after", "turned round", "too long"])
def test_a_validity_that_none_may_have_is_caught_even_if_it_was_meant(outside: str) -> None:
    issuer = ISSUERS["P-256"].certificate
    start, end = issuer.not_valid_before_utc, issuer.not_valid_after_utc
    validity = {
        "before": Validity(start - HOUR, NOW),
        "after": Validity(NOW, end + HOUR),
        "turned round": Validity(NOW + HOUR, NOW),
        "too long": Validity(NOW, NOW + timedelta(hours=3)),
    }[outside]
    leaf = replace(leaf_of("P-256"), validity=validity)
    check = CertificateCheck(issuer, longest=timedelta(hours=2))
    assert passes(check, build("P-256", leaf_of("P-256")), leaf_of("P-256"))
    assert not passes(check, build("P-256", leaf), leaf)


def test_a_leaf_that_outlives_its_root_is_caught() -> None:
    leaf = leaf_of("P-256")
    short = FakeAuthority(now=NOW, lifetime=timedelta(minutes=30))
    check = CertificateCheck(ISSUERS["P-256"].certificate, (short.certificate,))
    assert not passes(check, build("P-256", leaf), leaf)


def corruptions_of_bytes(value: bytes) -> Iterator[bytes]:
    """Every byte changed in turn, one taken away, one too many, all of it gone, all of it twice."""
    for at in range(len(value)):
        yield flipped(value, at, 0)
    yield from (value[:-1], value + b"\0", b"", value * 2)


ELEMENTS = 50  # that all shapes together have, at least
CONSTANTS = [name for name, value in vars(builder).items() if isinstance(value, bytes) and name.startswith("_")]
TAGS = [
    name
    for name, value in vars(builder).items()
    if isinstance(value, int) and name.startswith("_") and not name.startswith(("__", "_MAX"))
]
FUNCTIONS = ["key_identifier", "_algorithm", "_identifier", "_raw_subject", "_general_names", "_time", "_integer"]


def test_the_parts_of_the_builder_are_the_ones_that_are_corrupted() -> None:
    assert len(CONSTANTS) >= 10
    assert len(TAGS) >= 8


@pytest.mark.parametrize("constant", CONSTANTS)
def test_every_corrupted_constant_of_the_builder_is_caught(monkeypatch: pytest.MonkeyPatch, constant: str) -> None:
    original = getattr(builder, constant)
    seen = 0
    for corrupted in corruptions_of_bytes(original):
        monkeypatch.setattr(builder, constant, corrupted)
        seen += caught_in_every_shape()
    assert seen, f"{constant} is in no certificate"


@pytest.mark.parametrize("tag", TAGS)
def test_every_wrong_tag_of_the_builder_is_caught(monkeypatch: pytest.MonkeyPatch, tag: str) -> None:
    seen = 0
    original = getattr(builder, tag)
    for bit in range(8):
        monkeypatch.setattr(builder, tag, original ^ (1 << bit))
        seen += caught_in_every_shape()
    assert seen, f"{tag} is in no certificate"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_every_corrupted_result_in_the_builder_is_caught(monkeypatch: pytest.MonkeyPatch, function: str) -> None:
    original: Callable[..., bytes] = getattr(builder, function)
    seen = 0
    for number in itertools.count():
        exhausted = True

        def corrupted(*arguments: object, number: int = number) -> bytes:
            nonlocal exhausted
            corruptions = list(corruptions_of_bytes(original(*arguments)))
            exhausted &= number >= len(corruptions)
            return corruptions[min(number, len(corruptions) - 1)]

        monkeypatch.setattr(builder, function, corrupted)
        seen += caught_in_every_shape()
        if exhausted:
            break
    assert seen


def test_every_corrupted_element_of_the_builder_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    original = builder._tlv
    calls = 0

    def corrupt(target: int, number: int) -> Callable[[int, bytes], bytes]:
        def corrupted(tag: int, content: bytes) -> bytes:
            nonlocal calls
            calls += 1
            element = original(tag, content)
            tag_and_length = (flipped(element, 0, 0), flipped(element, 1, 0))
            wrong = (*tag_and_length, element[:-1], element + b"\0", b"", element * 2)
            return wrong[number] if calls == target else element

        return corrupted

    for target, number in itertools.product(range(1, ELEMENTS + 1), range(6)):
        calls = 0
        monkeypatch.setattr(builder, "_tlv", corrupt(target, number))
        assert caught_in_every_shape()
        assert calls >= target


def caught_in_every_shape() -> int:
    """In how many shapes the corrupted builder makes something else, having seen each of them caught."""
    seen = 0
    for (issuer, kind), good in GOOD.items():
        leaf, der = unsigned(issuer, kind)
        if der != good:
            assert not passes(check_of(issuer), der, leaf), f"{kind} leaf of {issuer} issuer: {der.hex()}"
            seen += 1
    return seen


def unsigned(issuer: str, kind: str) -> tuple[Leaf, bytes]:
    """A certificate with something in the place of the signature, which is not looked at here."""
    leaf = leaf_of(kind, now=LATE if issuer == "late" else NOW)
    if isinstance(builder._time, functools._lru_cache_wrapper):
        builder._time.cache_clear()
    template = LeafTemplate(ISSUERS[issuer].certificate)
    return leaf, template.signed(template.to_be_signed(leaf), b"signature")


GOOD = {shape: unsigned(*shape)[1] for shape in [*SHAPES, ("late", "P-256")]}


def test_what_is_wrong_is_no_business_of_the_caller() -> None:
    leaf = leaf_of("P-256")
    with pytest.raises(WrongCertificate) as caught:
        check_of("P-256").check(build("P-256", replace(leaf, serial=5)), leaf)
    assert caught.value.code is Code.INTERNAL
    assert caught.value.field == "serial"
    assert caught.value.public == Code.INTERNAL.value


def passes(check: CertificateCheck, der: bytes, leaf: Leaf) -> bool:
    try:
        check.check(der, leaf)
    except WrongCertificate:
        return False
    return True


def flipped(content: bytes, at: int, bit: int) -> bytes:
    return content[:at] + bytes([content[at] ^ (1 << bit)]) + content[at + 1 :]
