"""Pod certificates: who gets one, for how long by whose clock, who never, and what waits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID

from ca.authority.authority import open_authority
from ca.authority.state import AuthorityState, IssuerState
from ca.issuer import Issuer, ReservedNames
from ca.platform.kubernetes.api.objects import Object
from ca.platform.kubernetes.requests.pod_certificates import (
    decide,
    denied_status,
    issued_status,
    refused_by_server,
)
from ca.platform.kubernetes.requests.signer import Deny, Ignore, Sign, Signer, Wait
from ca.profile import IssuanceProfile, Validity
from istio_auth.pem import read_certificates
from istio_auth.rotation import renewal_due
from istio_auth.spiffe_id import SpiffeID
from istio_auth.strict_json import JSON
from istio_auth.verify import verify_chain
from tests.fakes.authority import FakeAuthority
from tests.fakes.authority_store import MemoryAuthorityStore
from tests.fakes.certificate_requests import (
    KEY,
    SIGNER,
    WEB,
    AnyKey,
    changed,
    complaints,
    csr,
    pod_certificate_request,
    stub,
    time_complaints,
    without,
)
from tests.fakes.clock import FakeClock
from tests.fakes.issuance_log import MemoryIssuanceLog

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
SECOND, MINUTE, HOUR, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)
CHAIN = Validity(NOW - DAY, NOW + 3650 * DAY)
GOOD = pod_certificate_request(NOW)


def decision(
    request: Object = GOOD,
    *,
    signer: Signer = SIGNER,
    now: datetime = NOW,
    within: Validity = CHAIN,
    server_now: datetime | None = None,
) -> Sign | Deny | Wait | Ignore:
    return decide(request, signer, now, within=within, server_now=server_now)


def validity(
    request: Object = GOOD, *, signer: Signer = SIGNER, now: datetime = NOW, server_now: datetime | None = None
) -> Validity:
    made = decision(request, signer=signer, now=now, server_now=server_now)
    assert isinstance(made, Sign), made
    assert made.order.validity is not None
    return made.order.validity


def profile(**values: timedelta) -> Signer:
    return replace(SIGNER, profile=replace(IssuanceProfile(), **values))  # type: ignore[arg-type]  # by name


def waits(made: object) -> str:
    assert isinstance(made, Wait), made
    return made.reason


def denied(request: Object) -> Deny:
    made = decision(request)
    assert isinstance(made, Deny), made
    assert complaints(request, denied_status(request, made, NOW), NOW) == []
    assert isinstance(decision(), Sign)  # the same without the fault
    return made


def test_a_pod_gets_the_identity_of_its_service_account_for_the_key_of_the_kubelet() -> None:
    made = decision()
    assert isinstance(made, Sign)
    order = made.order
    assert str(order.grant.spiffe_id) == WEB
    assert order.grant.dns_names == ()
    assert order.public_key == KEY.public_key()
    assert order.request_id == "0a3f8c52-1111-4c6b-8f6e-000000000001"
    assert order.attested.spiffe_id == order.grant.spiffe_id
    assert order.attested.method == "pod-certificate-request"
    assert order.attested.details["pod"] == "shop/web-0"
    assert (order.attested.details["node"], order.attested.details["request"]) == ("node-1", "req-7xk2p")


@pytest.mark.parametrize("asked", [3600, 3601, 7200, 86400, 90 * 86400])
def test_a_certificate_lives_exactly_as_long_as_asked_for_its_backdate_included(asked: int) -> None:
    found = validity(changed(GOOD, "spec.maxExpirationSeconds", asked))
    assert found == Validity(NOW - 2 * MINUTE, NOW - 2 * MINUTE + asked * SECOND)


def test_the_profile_bounds_what_a_pod_may_ask_for() -> None:
    found = validity(changed(GOOD, "spec.maxExpirationSeconds", 91 * 86400))
    assert found.not_after == NOW + 90 * DAY
    assert validity(signer=profile(max_ttl=2 * HOUR, default_ttl=HOUR)).not_after == NOW + 2 * HOUR


def test_a_backdate_of_the_operator_is_cut_to_what_the_api_server_takes() -> None:
    found = validity(signer=profile(backdate=30 * MINUTE))
    assert time_complaints(found.not_before, found.not_after, 86400, NOW) == []
    assert validity(signer=profile(backdate=timedelta())).not_before == NOW


SKEWS = [-300, -299, -180, -150, -60, 0, 60, 180, 299, 300]  # of our clock, in seconds


@pytest.mark.parametrize("skew", SKEWS)
def test_clocks_may_be_five_minutes_apart(skew: int) -> None:
    for asked in (3600, 86400):
        request = changed(GOOD, "spec.maxExpirationSeconds", asked)
        found = validity(request, now=NOW + skew * SECOND)
        for taken in (0, 45):  # seconds until the answer is written
            assert time_complaints(found.not_before, found.not_after, asked, NOW + taken * SECOND) == []
        assert found.not_before <= NOW + MINUTE  # nor does the pod wait for its validity


@pytest.mark.parametrize("skew", SKEWS)
@pytest.mark.parametrize("age", [0, 1, 4, 7, 14])
def test_a_known_clock_of_the_api_server_serves_requests_of_any_age(skew: int, age: int) -> None:
    server_now = NOW + age * MINUTE
    found = validity(now=server_now + skew * SECOND, server_now=server_now)
    assert found == Validity(server_now - 2 * MINUTE, server_now - 2 * MINUTE + DAY)


@pytest.mark.parametrize("age", [0, 1, 2, 3, 4, 5, 9, 14])
def test_a_request_that_has_waited_is_served_where_the_clocks_agree(age: int) -> None:
    now = NOW + age * MINUTE
    found = validity(now=now)
    assert time_complaints(found.not_before, found.not_after, 86400, now + 45 * SECOND) == []
    assert found.not_after - found.not_before == DAY


def test_a_clock_that_is_wrong_by_more_is_named_and_nothing_is_signed_in_vain() -> None:
    wrong = 5 * MINUTE + SECOND
    assert "clock of this CA is 5 minutes 1 second behind" in waits(decision(now=NOW - wrong))
    assert "clock of this CA is 5 minutes 1 second ahead" in waits(decision(now=NOW + wrong, server_now=NOW))
    assert isinstance(decision(now=NOW - 5 * MINUTE), Sign)
    assert isinstance(decision(now=NOW + 5 * MINUTE, server_now=NOW), Sign)


@pytest.mark.parametrize("odd", ["", "yesterday", 5, None, "2030-01-01T12:04:00", "0001-01-01T00:00:00+23:00"])
def test_a_request_without_a_time_tells_nothing_of_clocks(odd: JSON) -> None:
    request = changed(GOOD, "metadata.creationTimestamp", odd)
    assert validity(request) == validity()


def test_a_refusal_of_the_api_server_is_told_with_what_the_clocks_say() -> None:
    wait = refused_by_server(GOOD, "must be set to within 5 minutes", NOW + 9 * MINUTE)
    assert "within 5 minutes" in wait.reason
    assert "9 minutes old" in wait.reason
    assert "in the future" in refused_by_server(GOOD, "no", NOW - MINUTE).reason
    assert refused_by_server({}, "no", NOW).reason.endswith(": no")


def test_an_authority_that_ends_within_the_hour_leaves_requests_pending() -> None:
    end = NOW + 58 * MINUTE  # an hour from two minutes ago
    assert isinstance(decision(within=replace(CHAIN, not_after=end)), Sign)
    reason = waits(decision(within=replace(CHAIN, not_after=end - SECOND)))
    assert "chain of this CA ends 2030-01-01 12:57:59 UTC" in reason
    assert "ended" in waits(decision(within=replace(CHAIN, not_after=NOW)))
    assert "valid from" in waits(decision(within=replace(CHAIN, not_before=NOW + HOUR)))


def test_an_authority_that_ends_before_the_pod_wants_shortens_the_certificate() -> None:
    made = decision(within=replace(CHAIN, not_after=NOW + 3 * HOUR))
    assert isinstance(made, Sign)
    assert made.order.validity == Validity(NOW - 2 * MINUTE, NOW + 3 * HOUR)


def test_a_profile_below_an_hour_leaves_requests_pending_and_is_named() -> None:
    short = profile(max_ttl=30 * MINUTE, default_ttl=30 * MINUTE)
    assert "30 minutes here at most" in waits(decision(signer=short))


@pytest.mark.parametrize(
    "key",
    [KEY, ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 3072)],
    ids=["ECDSAP256", "ECDSAP384", "RSA3072"],
)
def test_the_kubelets_key_types_that_we_sign(key: AnyKey) -> None:
    made = decision(pod_certificate_request(NOW, request=csr(key)))
    assert isinstance(made, Sign)
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert made.order.public_key.public_bytes(*form) == key.public_key().public_bytes(*form)


@pytest.mark.parametrize(
    "key", [ec.generate_private_key(ec.SECP521R1()), ed25519.Ed25519PrivateKey.generate()], ids=["P-521", "Ed25519"]
)
def test_a_key_type_that_we_do_not_sign_is_denied_with_one_that_works(key: AnyKey) -> None:
    deny = denied(pod_certificate_request(NOW, request=csr(key)))
    assert deny.reason == "UnsupportedKeyType"
    assert "ECDSAP256" in deny.message


def test_annotations_that_nobody_knows_are_denied_by_name() -> None:
    deny = denied(changed(GOOD, "spec.unverifiedUserAnnotations", {"example.com/dns": "x", "a\n": "y"}))
    assert deny.reason == "InvalidUnverifiedUserAnnotations"
    assert "'example.com/dns'" in deny.message
    assert "\n" not in deny.message
    many = denied(changed(GOOD, "spec.unverifiedUserAnnotations", {f"e.com/{'k' * 200}{n}": "" for n in range(500)}))
    assert len(many.message) < 1000
    assert isinstance(decision(changed(GOOD, "spec.unverifiedUserAnnotations", {})), Sign)
    assert isinstance(decision(changed(GOOD, "spec.unverifiedUserAnnotations", None)), Sign)


@pytest.mark.parametrize(
    "request_",
    [
        csr(KEY, x509.UniformResourceIdentifier(WEB)),
        csr(KEY, x509.DNSName("web.shop.svc")),
        csr(subject=x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "web")])),
        csr(extra=x509.BasicConstraints(ca=True, path_length=None)),
    ],
    ids=["URI", "DNS", "subject", "CA"],
)
def test_a_stub_that_names_something_is_denied(request_: x509.CertificateSigningRequest) -> None:
    assert denied(changed(GOOD, "spec.stubPKCS10Request", stub(request_))).reason == "InvalidStubPKCS10Request"


def test_a_request_in_the_older_form_waits_for_a_newer_kubelet() -> None:
    for request in (without(GOOD, "spec.stubPKCS10Request"), changed(GOOD, "spec.stubPKCS10Request", "")):
        assert "older than Kubernetes 1.36" in waits(decision(request))


@pytest.mark.parametrize(
    ("path", "wrong"),
    [
        ("metadata.namespace", ""),
        ("metadata.namespace", "../kube-system"),
        ("metadata.name", None),
        ("metadata.uid", 7),
        ("metadata.resourceVersion", None),
        ("metadata.ownerReferences", [{"kind": "Pod", "name": "other", "uid": "pod-uid-2"}]),
        ("spec.serviceAccountName", "a/b"),
        ("spec.serviceAccountName", ["web"]),
        ("spec.serviceAccountUID", ""),
        ("spec.podUID", None),
        ("spec.podName", {}),
        ("spec.nodeName", "node 1"),
        ("spec.nodeUID", ""),
        ("spec.maxExpirationSeconds", None),
        ("spec.maxExpirationSeconds", True),
        ("spec.maxExpirationSeconds", 3599),
        ("spec.maxExpirationSeconds", 3600.0),
        ("spec.maxExpirationSeconds", 7862401),
        ("spec.maxExpirationSeconds", 10**40),
        ("spec.stubPKCS10Request", "%%%"),
        ("spec.stubPKCS10Request", "é"),
        ("spec.stubPKCS10Request", "!" + stub(csr())),
        ("spec.stubPKCS10Request", 5),
        ("spec.unverifiedUserAnnotations", []),
    ],
)
def test_what_the_api_server_never_keeps_is_left_alone_and_told(path: str, wrong: JSON) -> None:
    assert "no such requests" in waits(decision(changed(GOOD, path, wrong)))
    assert isinstance(decision(GOOD), Sign)


@pytest.mark.parametrize("references", [None, [], [{"kind": "Node", "uid": "x"}]])
def test_a_request_need_not_belong_to_its_pod(references: JSON) -> None:
    assert isinstance(decision(changed(GOOD, "metadata.ownerReferences", references)), Sign)


@pytest.mark.parametrize(
    "request_",
    [
        changed(GOOD, "spec.signerName", "example.com/other"),
        without(GOOD, "spec"),
        {},
        changed(GOOD, "metadata.deletionTimestamp", "2030-01-01T12:00:00Z"),
        changed(GOOD, "status.certificateChain", "-----BEGIN CERTIFICATE-----"),
        *(
            changed(GOOD, "status.conditions", [{"type": type_, "status": "True"}])
            for type_ in ("Issued", "Denied", "Failed")
        ),
    ],
    ids=["another signer's", "no spec", "empty", "deleted", "chain", "issued", "denied", "failed"],
)
def test_what_is_not_ours_or_has_its_answer_is_left_alone(request_: Object) -> None:
    assert isinstance(decision(request_), Ignore)


def test_a_request_that_is_denied_already_is_left_alone_whatever_else_is_wrong() -> None:
    answered = changed(GOOD, "status.conditions", [{"type": "Denied", "status": "True"}])
    assert isinstance(decision(changed(answered, "spec.podUID", None)), Ignore)


class TestIssued:
    """With an issuer, whose intermediate is on the way to the root."""

    @pytest.fixture
    async def issuer(self, clock: FakeClock) -> AsyncIterator[tuple[Issuer, FakeAuthority]]:
        root = FakeAuthority(now=clock.now(), lifetime=3650 * DAY)
        middle = FakeAuthority(parent=root, now=clock.now(), lifetime=100 * DAY)
        state = AuthorityState(root.trust_domain, IssuerState(middle.certificate, root.certificate, key=middle.key))
        authority = open_authority(MemoryAuthorityStore(state), root.trust_domain, clock)
        reserved = ReservedNames.of(root.trust_domain)
        issuer = Issuer(authority, SIGNER.profile, MemoryIssuanceLog(), clock, reserved, threads=1)
        yield issuer, root
        await issuer.close()

    @pytest.mark.parametrize("asked", [3600, 86400, 7862400])
    @pytest.mark.parametrize("skew", [-300, -90, 0, 300])
    @pytest.mark.parametrize("draw", [0.0, 0.5, 0.999])
    async def test_what_is_issued_passes_the_api_server(
        self, issuer: tuple[Issuer, FakeAuthority], clock: FakeClock, *, asked: int, skew: int, draw: float
    ) -> None:
        signer, root = issuer
        server_now = clock.now() + timedelta(milliseconds=700)
        clock.advance(skew * SECOND + timedelta(milliseconds=250))
        request = changed(pod_certificate_request(server_now), "spec.maxExpirationSeconds", asked)
        within = Validity(server_now - HOUR, server_now + 100 * DAY - 10 * MINUTE)
        made = decide(request, SIGNER, clock.now(), within=within)
        assert isinstance(made, Sign)
        signer.check(made.order)
        svid = await signer.issue(made.order)
        body = issued_status(request, svid, clock.now(), draw=draw)
        assert complaints(request, body, server_now + SECOND) == []
        assert {**body, "status": {}} == request  # the rest of the object goes back as it came
        status = body["status"]
        assert isinstance(status, dict)
        chain = read_certificates(str(status["certificateChain"]).encode())
        assert len(chain) == 2
        assert verify_chain(chain, root.bundle(), server_now + MINUTE) == SpiffeID.parse(WEB)

    async def test_kubelets_are_told_to_renew_when_everybody_here_renews(
        self, issuer: tuple[Issuer, FakeAuthority], clock: FakeClock
    ) -> None:
        made = decide(GOOD, SIGNER, clock.now(), within=CHAIN)
        assert isinstance(made, Sign)
        svid = await issuer[0].issue(made.order)
        due = {draw: issued_status(GOOD, svid, NOW, draw=draw)["status"] for draw in (0.0, 0.9)}
        for draw, status in due.items():
            assert isinstance(status, dict)
            expected = renewal_due(svid.not_before, svid.not_after, draw=draw)
            assert abs(datetime.fromisoformat(str(status["beginRefreshAt"])) - expected) < SECOND
        assert due[0.0] != due[0.9]

    async def test_the_issued_life_is_what_was_decided(
        self, issuer: tuple[Issuer, FakeAuthority], clock: FakeClock
    ) -> None:
        made = decide(changed(GOOD, "spec.maxExpirationSeconds", 3600), SIGNER, clock.now(), within=CHAIN)
        assert isinstance(made, Sign)
        svid = await issuer[0].issue(made.order)
        assert made.order.validity == Validity(svid.not_before, svid.not_after)
        assert svid.not_after - svid.not_before == HOUR
