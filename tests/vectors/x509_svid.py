"""Chains that are wrong in exactly one way, each named after its fault and made anew at each run.

`mended` is the same chain without the fault: a refusal proves something only if that one passes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import timedelta

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID, ObjectIdentifier

from istio_auth.bundle import BundleSet
from istio_auth.errors import Fault
from istio_auth.keys import new_private_key
from tests.fakes.authority import HOUR, FakeAuthority, Leaf
from tests.fakes.der import sha1_signed, with_bytes

Chain = tuple[x509.Certificate, ...]

LOCAL = FakeAuthority("cluster.local")
FEDERATED = FakeAuthority("partner.test", now=LOCAL.now)
STRANGER = FakeAuthority("cluster.local", now=LOCAL.now)  # of the right name, and in no bundle
BUNDLES = BundleSet((LOCAL.bundle(), FEDERATED.bundle()))
NOW = LOCAL.now
UNKNOWN = x509.UnrecognizedExtension(ObjectIdentifier("1.3.6.1.4.1.55555.1"), b"\x05\x00")
KEY = new_private_key()
_WEB = "spiffe://cluster.local/ns/default/sa/web"


@dataclass(frozen=True)
class Vector:
    """One chain, its one fault, and the chain without it."""

    name: str
    fault: Fault
    wrong: Chain
    mended: Chain


def vectors() -> Iterator[Vector]:
    """Every vector."""
    for name, fault, changes in _LEAVES:
        leaf = replace(LOCAL.leaf(), **changes)  # type: ignore[arg-type]  # the fields of Leaf, by name
        yield Vector(name, fault, _chain(LOCAL, leaf), _chain(LOCAL, LOCAL.leaf()))
    for name, fault, key in _KEYS:
        yield Vector(name, fault, (_with_key(LOCAL, key()),), _chain(LOCAL, LOCAL.leaf()))
    for name, issuer, mended in _ISSUERS:
        leaf = LOCAL.leaf()
        yield Vector(name, Fault.UNTRUSTED, _chain(issuer, leaf), _chain(mended, leaf))
    yield from _odd_ones()


def sound_intermediate(**changes: object) -> FakeAuthority:
    """An intermediate of the local root, faultless unless changed."""
    return FakeAuthority(parent=LOCAL, now=NOW, **changes)  # type: ignore[arg-type]  # FakeAuthority's own, by name


def _chain(issuer: FakeAuthority, leaf: Leaf) -> Chain:
    return issuer.chain(leaf, key=KEY)


def _with_key(issuer: FakeAuthority, key: object) -> x509.Certificate:
    return issuer.sign(issuer.leaf(), key)  # type: ignore[arg-type]  # also kinds that we refuse


def _rsa(bits: int) -> Callable[[], rsa.RSAPublicKey]:
    return lambda: rsa.RSAPublicNumbers(65537, (1 << (bits - 1)) + 1).public_key()


def _deep(root: FakeAuthority, **of_the_lower: object) -> FakeAuthority:
    upper = FakeAuthority(parent=root, now=NOW, path_length=0)
    return FakeAuthority(parent=upper, now=NOW, **of_the_lower)  # type: ignore[arg-type]  # FakeAuthority's own


def _odd_ones() -> Iterator[Vector]:
    good = _chain(LOCAL, LOCAL.leaf())
    between = sound_intermediate()
    long = _chain(between, LOCAL.leaf())
    yield Vector("no-certificate", Fault.EMPTY, (), good)
    yield Vector("a-hundred-certificates", Fault.TOO_LONG, good * 100, good)
    yield Vector("missing-intermediate", Fault.UNTRUSTED, long[:1], long)
    yield Vector("intermediate-before-leaf", Fault.NO_PATH, (long[1], long[0]), long)
    yield Vector("root-as-leaf", Fault.NO_PATH, (LOCAL.certificate,), good)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web")])
    itself = FakeAuthority(key=KEY, name=name, now=NOW)
    yield Vector("self-issued", Fault.UNTRUSTED, _chain(itself, itself.leaf(subject=name)), good)
    yield Vector("sha1-signature", Fault.UNTRUSTED, (sha1_signed(good[0], _ec(LOCAL)),), good)
    yield Vector("broken-signature", Fault.UNTRUSTED, (_renamed(good[0]),), good)
    # A DNS name (tag 82) becomes an x400Address (tag 83), which nobody can read.
    named = _chain(LOCAL, LOCAL.leaf(dns_names=["web"]))
    unread = with_bytes(named[0], "8203776562", "8303776562")
    yield Vector("unreadable-names", Fault.UNPARSABLE, (unread,), named)
    # Each of the two trusted domains may vouch for its own names only.
    ours, theirs = LOCAL.leaf(), FEDERATED.leaf()
    unknown = FEDERATED.leaf(uris=["spiffe://elsewhere.test/x"])
    local_by_federated = _chain(FEDERATED, FEDERATED.leaf(uris=ours.uris))
    yield Vector("local-name-signed-by-federated-ca", Fault.UNTRUSTED, local_by_federated, good)
    federated_by_local = _chain(LOCAL, LOCAL.leaf(uris=theirs.uris))
    yield Vector("federated-name-signed-by-local-ca", Fault.UNTRUSTED, federated_by_local, _chain(FEDERATED, theirs))
    yield Vector("unknown-trust-domain", Fault.FOREIGN_TRUST_DOMAIN, _chain(FEDERATED, unknown), good)


def _ec(authority: FakeAuthority) -> ec.EllipticCurvePrivateKey:
    assert isinstance(authority.key, ec.EllipticCurvePrivateKey)
    return authority.key


def _renamed(leaf: x509.Certificate) -> x509.Certificate:
    return with_bytes(leaf, b"/sa/web".hex(), b"/sa/bew".hex())


_LEAVES: tuple[tuple[str, Fault, dict[str, object]], ...] = (
    ("expired", Fault.EXPIRED, {"not_before": NOW - HOUR, "not_after": NOW - timedelta(seconds=1)}),
    ("not-yet-valid", Fault.NOT_YET_VALID, {"not_before": NOW + timedelta(seconds=1)}),
    ("no-uri-name", Fault.NO_URI, {"uris": [], "dns_names": ["web"]}),
    ("no-names-at-all", Fault.NO_URI, {"uris": []}),
    ("two-uri-names", Fault.SEVERAL_URIS, {"uris": [_WEB, "spiffe://cluster.local/ns/default/sa/db"]}),
    ("uri-beside-the-spiffe-id", Fault.SEVERAL_URIS, {"uris": [_WEB, "https://web.example"]}),
    ("the-same-uri-twice", Fault.SEVERAL_URIS, {"uris": [_WEB, _WEB]}),
    ("https-uri", Fault.BAD_ID, {"uris": ["https://cluster.local/ns/default/sa/web"]}),
    ("upper-case-trust-domain", Fault.BAD_ID, {"uris": ["spiffe://CLUSTER.local/ns/default/sa/web"]}),
    ("upper-case-scheme", Fault.BAD_ID, {"uris": ["SPIFFE://cluster.local/ns/default/sa/web"]}),
    ("newline-in-id", Fault.BAD_ID, {"uris": [_WEB + "\n"]}),
    ("percent-in-id", Fault.BAD_ID, {"uris": ["spiffe://cluster.local/%6es"]}),
    ("dot-segment-in-id", Fault.BAD_ID, {"uris": ["spiffe://cluster.local/a/../b"]}),
    ("id-of-3-kB", Fault.BAD_ID, {"uris": ["spiffe://cluster.local/" + "a" * 3000]}),
    ("id-without-path", Fault.NO_PATH, {"uris": ["spiffe://cluster.local"]}),
    ("leaf-is-a-ca", Fault.IS_CA, {"ca": True}),
    ("no-key-usage", Fault.KEY_USAGE, {"usage_present": False}),
    ("key-usage-not-critical", Fault.KEY_USAGE, {"usage_critical": False}),
    ("no-digital-signature", Fault.KEY_USAGE, {"digital_signature": False, "key_encipherment": True}),
    ("leaf-signs-certificates", Fault.KEY_USAGE, {"key_cert_sign": True}),
    ("leaf-signs-crls", Fault.KEY_USAGE, {"crl_sign": True}),
    ("client-use-only", Fault.EXTENDED_KEY_USAGE, {"uses": [ExtendedKeyUsageOID.CLIENT_AUTH]}),
    ("server-use-only", Fault.EXTENDED_KEY_USAGE, {"uses": [ExtendedKeyUsageOID.SERVER_AUTH]}),
    ("other-use", Fault.EXTENDED_KEY_USAGE, {"uses": [ExtendedKeyUsageOID.CODE_SIGNING]}),
    ("any-use", Fault.EXTENDED_KEY_USAGE, {"uses": [ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]}),
    ("empty-subject-and-names-not-critical", Fault.NOT_CRITICAL, {"san_critical": False}),
    ("unknown-critical-extension", Fault.UNTRUSTED, {"extra": [(UNKNOWN, True)]}),
)

_KEYS: tuple[tuple[str, Fault, Callable[[], object]], ...] = (
    ("rsa-1024-leaf", Fault.WEAK_KEY, _rsa(1024)),
    ("rsa-2047-leaf", Fault.WEAK_KEY, _rsa(2047)),
    ("rsa-16384-leaf", Fault.WEAK_KEY, _rsa(16384)),
    ("p-224-leaf", Fault.WEAK_KEY, lambda: ec.generate_private_key(ec.SECP224R1()).public_key()),
    ("p-521-leaf", Fault.WEAK_KEY, lambda: ec.generate_private_key(ec.SECP521R1()).public_key()),
    ("ed25519-leaf", Fault.WEAK_KEY, lambda: ed25519.Ed25519PrivateKey.generate().public_key()),
)

_OTHER_NAMES = x509.NameConstraints([x509.UniformResourceIdentifier("elsewhere.test")], None)

_RSA_1024 = rsa.generate_private_key(65537, 1024)  # noqa: S505  # the fault of a vector

_ISSUERS: tuple[tuple[str, FakeAuthority, FakeAuthority], ...] = (
    ("stranger-with-the-right-names", STRANGER, LOCAL),
    ("intermediate-of-a-stranger", FakeAuthority(parent=STRANGER, now=NOW), sound_intermediate()),
    ("expired-intermediate", sound_intermediate(lifetime=timedelta(seconds=-1)), sound_intermediate()),
    ("intermediate-without-key-cert-sign", sound_intermediate(key_cert_sign=False), sound_intermediate()),
    ("intermediate-without-key-usage", sound_intermediate(usage_present=False), sound_intermediate()),
    ("intermediate-that-is-no-ca", sound_intermediate(ca=False), sound_intermediate()),
    ("path-longer-than-allowed", _deep(LOCAL), sound_intermediate()),
    ("intermediate-with-unknown-critical-extension", sound_intermediate(extra=[(UNKNOWN, True)]), sound_intermediate()),
    ("intermediate-constrained-to-other-names", sound_intermediate(extra=[(_OTHER_NAMES, True)]), sound_intermediate()),
    ("rsa-1024-intermediate", sound_intermediate(key=_RSA_1024), sound_intermediate()),
)

ALL = {vector.name: vector for vector in vectors()}
