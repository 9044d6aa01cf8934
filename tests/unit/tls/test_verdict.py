"""Both ends judge each other: by SPIFFE's rules, the bundle of the peer's own trust domain, then the authorizer."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from datetime import timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa

from istio_auth.authorize import Authorizer, any_id, is_id, one_of
from istio_auth.bundle import BundleSet, TrustBundle
from istio_auth.errors import (
    Code,
    ConfigurationError,
    Fault,
    IstioAuthError,
    NotAuthenticated,
    NotAuthorized,
    VerificationError,
)
from istio_auth.keys import PrivateKey
from istio_auth.peer import PeerRefused
from istio_auth.pem import write_der
from istio_auth.sources.memory import MemorySource
from istio_auth.spiffe_id import SpiffeID
from istio_auth.tls import client_context, peer_chain, peer_id, server_context
from istio_auth.tls.contexts import FollowingContext
from istio_auth.x509_source import X509Context
from tests.fakes.authority import HOUR, FakeAuthority
from tests.fakes.clock import FakeClock
from tests.fakes.tls import End, begin, go_on, meet, stranger, talk
from tests.vectors.x509_svid import (
    ALL,
    BUNDLES,
    FEDERATED,
    KEY,
    LOCAL,
    NOW,
    STRANGER,
    Chain,
    Vector,
    sound_intermediate,
)

OURS = MemorySource.of(LOCAL.svid("/ours", not_after=NOW + 50 * HOUR), *BUNDLES)
WEB = SpiffeID.parse("spiffe://cluster.local/ns/default/sa/web")
VERSIONS = [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3]
KEYS = {LOCAL.certificate: LOCAL.key}

# Where OpenSSL refuses before us, by the kind of certificate; its words are in the message.
OPENSSL_FIRST = {
    ("no-digital-signature", "server"): Fault.EXTENDED_KEY_USAGE,
    ("root-as-leaf", "server"): Fault.EXTENDED_KEY_USAGE,
    ("root-as-leaf", "client"): Fault.EXTENDED_KEY_USAGE,
    ("rsa-1024-intermediate", "server"): Fault.WEAK_KEY,
    ("rsa-1024-intermediate", "client"): Fault.WEAK_KEY,
}
# Of these OpenSSL makes no server that gets so far: ours is never shown the certificate.
NO_SUCH_SERVER = {
    ("no-certificate", ssl.TLSVersion.TLSv1_2),
    ("no-certificate", ssl.TLSVersion.TLSv1_3),
    ("no-digital-signature", ssl.TLSVersion.TLSv1_2),
    ("root-as-leaf", ssl.TLSVersion.TLSv1_2),
}


def key_of(chain: Chain) -> PrivateKey:
    return KEYS.get(chain[0], KEY) if chain else KEY


def can_be_presented(vector: Vector) -> bool:
    """Whether we have the key, and OpenSSL takes the certificate at all."""
    public = key_of(vector.wrong).public_key()
    return vector.name != "unreadable-names" and (not vector.wrong or vector.wrong[0].public_key() == public)


PRESENTABLE = {name: vector for name, vector in ALL.items() if can_be_presented(vector)}


def judge(side: str, chain: Chain, *, key: PrivateKey = KEY, version: ssl.TLSVersion | None = None) -> tuple[End, End]:
    """Ours on this side, after it met a stranger that presents the chain; and that stranger."""
    other = stranger(server_side=side == "client", chain=chain, key=key)
    if version is not None:
        other.minimum_version = other.maximum_version = version
    if side == "client":
        return meet(client_context(OURS, any_id(), clock=FakeClock(NOW)), other)
    theirs, ours = meet(other, server_context(OURS, any_id(), clock=FakeClock(NOW)))
    return ours, theirs


def no_word_passes(ours: End, theirs: End) -> None:
    """Neither end gets a byte from the other once ours has refused."""
    for attempt in (ours.tls.read, lambda: ours.tls.write(b"secret"), ours.tls.unwrap):
        with pytest.raises(PeerRefused):
            attempt()
    assert heard_by(theirs) == b""


def heard_by(end: End) -> bytes:
    """What an end without rules gets to read; nothing if its connection is over."""
    try:
        return end.tls.read()
    except ssl.SSLError:
        return b""


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize("vector", PRESENTABLE.values(), ids=list(PRESENTABLE))
def test_a_peer_with_one_fault_is_refused_for_it_and_welcome_without(
    vector: Vector, side: str, version: ssl.TLSVersion
) -> None:
    if side == "client" and (vector.name, version) in NO_SUCH_SERVER:
        ours, _ = judge(side, vector.wrong, key=key_of(vector.wrong), version=version)
        assert ours.error is not None
        return
    ours, theirs = judge(side, vector.wrong, key=key_of(vector.wrong), version=version)
    assert isinstance(ours.refusal, VerificationError)
    assert ours.refusal.fault is OPENSSL_FIRST.get((vector.name, side), vector.fault)
    no_word_passes(ours, theirs)
    ours, theirs = judge(side, vector.mended, version=version)
    talk(ours, theirs) if side == "client" else talk(theirs, ours)
    assert peer_chain(ours.tls)[0] == vector.mended[0]


WEAK_KEYS: dict[str, Callable[[], object]] = {
    "rsa-1024": lambda: rsa.generate_private_key(65537, 1024),  # noqa: S505  # the fault
    "p-521": lambda: ec.generate_private_key(ec.SECP521R1()),
    "p-224": lambda: ec.generate_private_key(ec.SECP224R1()),
    "ed25519": ed25519.Ed25519PrivateKey.generate,
}


@pytest.mark.parametrize("kind", ["rsa-1024", "p-521"])
@pytest.mark.parametrize("side", ["client", "server"])
def test_a_key_of_a_kind_that_is_not_allowed_is_refused(side: str, kind: str) -> None:
    key: PrivateKey = WEAK_KEYS[kind]()  # type: ignore[assignment]  # also kinds that we refuse
    ours, theirs = judge(side, LOCAL.chain(key=key), key=key)
    assert isinstance(ours.refusal, VerificationError)
    assert ours.refusal.fault is Fault.WEAK_KEY
    no_word_passes(ours, theirs)


@pytest.mark.parametrize("kind", ["p-224", "ed25519"])
def test_a_key_that_our_ciphers_do_not_know_ends_in_no_connection(kind: str) -> None:
    key: PrivateKey = WEAK_KEYS[kind]()  # type: ignore[assignment]  # also kinds that we refuse
    chain = (LOCAL.sign(LOCAL.leaf(), key.public_key()),)
    for side in ("client", "server"):
        ours, theirs = judge(side, chain, key=key)
        assert not ours.done
        assert heard_by(theirs) == b""


@pytest.mark.parametrize("side", ["client", "server"])
@pytest.mark.parametrize(
    "key", [rsa.generate_private_key(65537, 2048), ec.generate_private_key(ec.SECP384R1())], ids=["rsa-2048", "p-384"]
)
@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_the_other_allowed_kinds_of_key_are_welcome(side: str, key: PrivateKey, version: ssl.TLSVersion) -> None:
    ours, theirs = judge(side, LOCAL.chain(key=key), key=key, version=version)
    talk(ours, theirs) if side == "client" else talk(theirs, ours)


def both_ways(version: ssl.TLSVersion, client: Authorizer, server: Authorizer) -> tuple[End, End]:
    """A client and a server of ours, of two trust domains that trust each other."""
    theirs = MemorySource.of(FEDERATED.svid("/theirs"), *BUNDLES)
    context = client_context(OURS, client)
    context.minimum_version = context.maximum_version = version
    return meet(context, server_context(theirs, server))


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_two_trust_domains_that_trust_each_other_know_each_other_by_name(version: ssl.TLSVersion) -> None:
    client, server = both_ways(version, any_id(), any_id())
    talk(client, server)
    assert client.tls.version() == {771: "TLSv1.2", 772: "TLSv1.3"}[version.value]
    assert str(peer_id(client.tls)) == "spiffe://partner.test/theirs"
    assert str(peer_id(server.tls)) == "spiffe://cluster.local/ours"
    assert peer_chain(server.tls)[0] == OURS.svid().leaf


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_each_side_refuses_a_proven_peer_that_is_not_welcome(version: ssl.TLSVersion) -> None:
    ours, theirs = SpiffeID.parse("spiffe://cluster.local/ours"), SpiffeID.parse("spiffe://partner.test/theirs")
    client, server = both_ways(version, is_id(ours), any_id())
    assert isinstance(client.refusal, NotAuthorized)
    assert "spiffe://partner.test/theirs is refused" in str(client.refusal)
    no_word_passes(client, server)
    client, server = both_ways(version, is_id(theirs), is_id(theirs))
    assert isinstance(server.refusal, NotAuthorized)
    no_word_passes(server, client)
    talk(*both_ways(version, is_id(theirs), is_id(ours)))


def test_an_authorizer_without_names_refuses_everybody() -> None:
    client, _ = both_ways(ssl.TLSVersion.TLSv1_3, one_of(), any_id())
    assert isinstance(client.refusal, NotAuthorized)


@pytest.mark.parametrize("raised", [ValueError("a bug"), NotAuthenticated("later"), ssl.SSLError("odd")])
def test_whatever_an_authorizer_raises_refuses(raised: Exception) -> None:
    def broken(_peer: SpiffeID) -> None:
        raise raised

    client, server = both_ways(ssl.TLSVersion.TLSv1_3, broken, any_id())
    assert client.refusal.code is (Code.NOT_AUTHENTICATED if isinstance(raised, IstioAuthError) else Code.INTERNAL)
    no_word_passes(client, server)


@pytest.mark.parametrize("mistaken", [lambda _peer: False, is_id], ids=["a predicate", "is_id, not called"])
def test_an_authorizer_that_answers_instead_of_deciding_lets_nobody_in(mistaken: Authorizer) -> None:
    client, server = both_ways(ssl.TLSVersion.TLSv1_3, mistaken, any_id())
    assert isinstance(client.refusal, NotAuthorized)
    no_word_passes(client, server)


@pytest.mark.parametrize("make", [client_context, server_context])
def test_a_context_without_an_authorizer_is_not_made(make: Callable[..., ssl.SSLContext]) -> None:
    with pytest.raises(ConfigurationError, match="needs an authorizer"):
        make(OURS, None)


@pytest.mark.parametrize("make", [client_context, server_context])
@pytest.mark.parametrize("mistaken", [None, "/etc/certs", MemorySource])
def test_a_context_without_a_source_is_not_made(make: Callable[..., ssl.SSLContext], mistaken: object) -> None:
    with pytest.raises(ConfigurationError, match="needs a source"):
        make(mistaken, any_id())


def test_a_verdict_that_was_interrupted_is_a_refusal() -> None:
    asked: list[SpiffeID] = []

    def interrupted(peer: SpiffeID) -> None:
        asked.append(peer)
        raise KeyboardInterrupt

    client, server = begin(client_context(OURS, interrupted), server_context(OURS, any_id()))
    with pytest.raises(KeyboardInterrupt):
        go_on(client, server)
    go_on(client, server)
    assert client.refusal.code is Code.INTERNAL
    no_word_passes(client, server)
    assert len(asked) == 1


@pytest.mark.parametrize("side", ["client", "server"])
def test_a_root_that_we_trust_for_another_domain_vouches_for_no_name_of_ours(side: str) -> None:
    """OpenSSL sees the union of all roots and would take the chain: only our own verdict stands in the way."""
    forged = FEDERATED.chain(FEDERATED.leaf(uris=[str(WEB)]), key=KEY)
    pooled = stranger(server_side=side == "server", chain=LOCAL.chain(key=KEY), key=KEY)
    for root in (LOCAL, FEDERATED):
        pooled.load_verify_locations(cadata=write_der(root.certificate))
    pooled.verify_mode = ssl.CERT_REQUIRED
    other = stranger(server_side=side == "client", chain=forged, key=KEY)
    fooled = meet(pooled, other)[0] if side == "client" else meet(other, pooled)[1]
    assert fooled.done

    ours, theirs = judge(side, forged)
    assert isinstance(ours.refusal, VerificationError)
    assert ours.refusal.fault is Fault.UNTRUSTED
    assert "no path to the bundle of cluster.local" in str(ours.refusal)
    no_word_passes(ours, theirs)
    ours, _ = judge(side, LOCAL.chain(LOCAL.leaf(uris=[str(WEB)]), key=KEY))
    assert peer_id(ours.tls) == WEB


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_a_client_without_certificate_is_refused_where_one_is_required(version: ssl.TLSVersion) -> None:
    ours, theirs = judge("server", (), version=version)
    assert isinstance(ours.refusal, VerificationError)
    assert ours.refusal.fault is Fault.EMPTY
    no_word_passes(ours, theirs)


@pytest.mark.parametrize("version", VERSIONS, ids=lambda version: version.name)
def test_where_a_certificate_is_optional_none_is_welcome_and_a_bad_one_is_not(version: ssl.TLSVersion) -> None:
    seen: list[SpiffeID] = []
    server = server_context(OURS, seen.append, require_client_certificate=False, clock=FakeClock(NOW))

    def client(*chain: x509.Certificate) -> ssl.SSLContext:
        context = stranger(server_side=False, chain=chain, key=KEY)
        context.minimum_version = context.maximum_version = version
        return context

    nobody, ours = meet(client(), server)
    talk(nobody, ours)
    assert peer_chain(ours.tls) == ()
    with pytest.raises(NotAuthenticated):
        peer_id(ours.tls)
    assert not seen  # there is no SPIFFE ID to decide on

    for bad in ("expired", "two-uri-names", "stranger-with-the-right-names", "local-name-signed-by-federated-ca"):
        theirs, ours = meet(client(*ALL[bad].wrong), server)
        assert isinstance(ours.refusal, VerificationError)
        assert ours.refusal.fault is ALL[bad].fault
        no_word_passes(ours, theirs)
    assert not seen

    somebody, ours = meet(client(*LOCAL.chain(key=KEY)), server)
    talk(somebody, ours)
    assert seen == [peer_id(ours.tls)] == [WEB]


@pytest.mark.parametrize("side", ["client", "server"])
def test_our_clock_says_when_a_chain_is_valid(side: str) -> None:
    clock = FakeClock(NOW)
    chain = LOCAL.chain(LOCAL.leaf(not_before=NOW + 10 * HOUR, not_after=NOW + 11 * HOUR), key=KEY)
    other = stranger(server_side=side == "client", chain=chain, key=KEY)
    ours = (client_context if side == "client" else server_context)(OURS, any_id(), clock=clock)

    def judged() -> End:
        return meet(ours, other)[0] if side == "client" else meet(other, ours)[1]

    assert "not yet valid" in str(judged().refusal)
    clock.advance(10 * HOUR)
    assert judged().done
    clock.advance(HOUR)
    assert judged().done  # the last instant belongs to it
    clock.advance(timedelta(seconds=1))
    assert "expired" in str(judged().refusal)


def test_a_connection_that_is_judged_stays_judged() -> None:
    """The verdict belongs to the handshake: what comes later is for whoever limits the age of connections."""
    clock = FakeClock(NOW)
    client, server = meet(client_context(OURS, any_id(), clock=clock), server_context(OURS, any_id(), clock=clock))
    clock.advance(1000 * HOUR)
    talk(client, server)


@pytest.mark.parametrize("side", ["client", "server"])
def test_intermediates_that_the_peer_sends_are_used_and_kept(side: str) -> None:
    issuer = FakeAuthority(parent=sound_intermediate(), now=NOW)
    chain = issuer.chain(key=KEY)
    ours, _ = judge(side, chain)
    assert peer_chain(ours.tls) == chain
    assert len(chain) == 3
    ours, _ = judge(side, chain[:2])
    assert "unable to get local issuer certificate" in str(ours.refusal)


@pytest.mark.parametrize("side", ["client", "server"])
def test_an_intermediate_in_the_bundle_is_an_authority_like_any_other(side: str) -> None:
    between = sound_intermediate()
    trusting = MemorySource.of(LOCAL.svid("/ours"), TrustBundle(LOCAL.trust_domain, (between.certificate,)))
    chain = between.chain(key=KEY)[:1]
    other = stranger(server_side=side == "client", chain=chain, key=KEY)
    if side == "client":
        client, server = meet(client_context(trusting, any_id()), other)
    else:
        client, server = meet(other, server_context(trusting, any_id()))
    talk(client, server)


@pytest.mark.parametrize("make", [client_context, server_context])
def test_no_certificate_is_no_identity_even_if_openssl_let_it_pass(make: Callable[..., ssl.SSLContext]) -> None:
    context = make(OURS, any_id())
    assert isinstance(context, FollowingContext)
    with pytest.raises(VerificationError) as caught:
        context.current().judge([])
    assert caught.value.fault is Fault.EMPTY


def test_an_end_without_identity_may_be_a_client_but_no_server() -> None:
    nobody = MemorySource(X509Context((), BUNDLES))
    client, server = meet(
        client_context(nobody, any_id()), server_context(OURS, any_id(), require_client_certificate=False)
    )
    talk(client, server)
    client, server = meet(client_context(OURS, any_id()), server_context(nobody, any_id()))
    assert server.refusal.code is Code.NOT_READY
    assert not client.done


@pytest.mark.parametrize("side", ["client", "server"])
def test_without_bundles_nobody_is_trusted(side: str) -> None:
    alone = MemorySource(X509Context((LOCAL.svid("/ours"),), BundleSet()))
    other = MemorySource.of(LOCAL.svid("/other"), *BUNDLES)
    pair = (alone, other) if side == "client" else (other, alone)
    client, server = meet(client_context(pair[0], any_id()), server_context(pair[1], any_id()))
    ours = client if side == "client" else server
    assert isinstance(ours.refusal, VerificationError)
    assert ours.refusal.fault is Fault.UNTRUSTED
    alone.replace(X509Context(alone.x509_context().svids, BUNDLES))
    talk(*meet(client_context(pair[0], any_id()), server_context(pair[1], any_id())))


def test_a_stranger_of_our_name_is_refused_with_its_certificate_as_the_cause() -> None:
    ours, _ = judge("server", STRANGER.chain(key=KEY))
    assert isinstance(ours.error, ssl.SSLCertVerificationError)  # libraries know it for what it is
    assert isinstance(ours.error.__cause__, ssl.SSLError)  # what OpenSSL said
