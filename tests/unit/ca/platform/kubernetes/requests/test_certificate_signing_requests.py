"""CertificateSigningRequests: everybody gets their own identity, nobody another's, and every request an answer."""

from __future__ import annotations

import base64
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from ca.authority.authority import open_authority
from ca.issuer import Issuer, ReservedNames
from ca.platform.kubernetes.api.objects import Object, member, object_of
from ca.platform.kubernetes.requests.certificate_signing_requests import (
    Approve,
    Fail,
    approval_update,
    decide,
    failed_status,
    issued_status,
    not_issued,
)
from ca.platform.kubernetes.requests.signer import Deny, Ignore, Sign, Wait
from ca.profile import IssuanceProfile
from istio_auth.errors import Exhausted, IstioAuthError, KeyRejected, NotAuthorized, NotReady
from istio_auth.pem import read_certificates
from istio_auth.spiffe_id import SpiffeID
from istio_auth.strict_json import JSON
from istio_auth.verify import verify_chain
from tests.fakes.authority_store import MemoryAuthorityStore
from tests.fakes.certificate_requests import KEY, SIGNER, WEB, changed, csr, in_pem, signing_request, without
from tests.fakes.clock import FakeClock
from tests.fakes.issuance_log import MemoryIssuanceLog

URI = x509.UniformResourceIdentifier
GOOD, APPROVED = signing_request(), signing_request(approved=True)
HOUR = timedelta(hours=1)


def denied(request: Object) -> Deny:
    """What is denied, is failed if somebody has approved it; and without the fault it is approved and signed."""
    made = decide(request, SIGNER)
    assert isinstance(made, Deny), made
    after_all = decide(changed(request, "status", APPROVED["status"]), SIGNER)
    assert isinstance(after_all, Fail), after_all
    assert after_all.reason == made.reason
    assert made.message in after_all.message
    assert isinstance(decide(GOOD, SIGNER), Approve)
    assert isinstance(decide(APPROVED, SIGNER), Sign)
    return made


def conditions(body: Object) -> list[JSON]:
    found = member(body, "status", "conditions")
    assert isinstance(found, list)
    return found


def test_a_service_account_that_asks_for_itself_is_approved_and_then_signed() -> None:
    approve = decide(GOOD, SIGNER)
    assert isinstance(approve, Approve)
    assert WEB in approve.message
    body = approval_update(GOOD, approve)
    sign = decide(body, SIGNER)
    assert isinstance(sign, Sign)
    order = sign.order
    assert (str(order.grant.spiffe_id), order.public_key, order.ttl) == (WEB, KEY.public_key(), None)
    assert (order.attested.method, order.request_id) == ("certificate-signing-request", "csr-uid-1")
    assert order.attested.details["request"] == "web-csr"
    assert (order.attested.details["pod"], order.attested.details["pod_uid"]) == ("shop/web-0", "pod-uid-1")


def test_an_approval_by_somebody_else_is_as_good() -> None:
    assert isinstance(decide(APPROVED, SIGNER), Sign)


@pytest.mark.parametrize("condition", [{"type": "Approved", "status": "False"}, {"type": "Other", "status": "True"}, 5])
def test_what_is_no_approval_is_none(condition: JSON) -> None:
    assert isinstance(decide(changed(GOOD, "status.conditions", [condition]), SIGNER), Approve)


@pytest.mark.parametrize(
    "uri",
    [
        "spiffe://cluster.local/ns/shop/sa/db",
        "spiffe://cluster.local/ns/other/sa/web",
        "spiffe://other.example/ns/shop/sa/web",
        "SPIFFE://cluster.local/ns/shop/sa/web",
        "https://example.com/",
        WEB + "/",
    ],
)
def test_nobody_gets_another_identity(uri: str) -> None:
    deny = denied(signing_request(URI(uri)))
    assert deny.reason == "ForeignIdentity"
    assert uri in deny.message
    assert WEB in deny.message


@pytest.mark.parametrize(
    "names",
    [
        (URI(WEB), URI(WEB)),
        (URI(WEB), x509.DNSName("web.shop.svc")),
        (x509.IPAddress(ip_address("10.0.0.1")), URI(WEB)),
        (URI(WEB), x509.RFC822Name("web@example.com")),
        (URI(WEB), x509.DirectoryName(x509.Name([]))),
        (x509.DNSName("web.shop.svc"),),
    ],
    ids=["two URIs", "DNS", "IP", "email", "directory", "no URI"],
)
def test_another_name_beside_the_uri_is_denied_and_the_right_one_is_told(names: tuple[x509.GeneralName, ...]) -> None:
    deny = denied(signing_request(*names))
    assert deny.reason == "UnacceptableNames"
    assert WEB in deny.message


def test_a_csr_without_any_name_is_denied() -> None:
    assert denied(signing_request(request=csr())).reason == "UnacceptableNames"


def test_a_subject_says_nothing() -> None:
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "admin")])
    assert isinstance(decide(signing_request(request=csr(KEY, URI(WEB), subject=subject)), SIGNER), Approve)


@pytest.mark.parametrize(
    "username",
    ["admin", "system:node:node-1", "system:serviceaccount:shop", "system:serviceaccount:shop:we/b", None, 5],
)
def test_who_is_no_service_account_is_denied_and_told_what_to_do(username: JSON) -> None:
    deny = denied(changed(GOOD, "spec.username", username))
    assert deny.reason == "NotAServiceAccount"
    assert "make the request as the service account itself" in deny.message


def test_a_user_who_is_only_called_like_a_service_account_is_denied() -> None:
    assert denied(changed(GOOD, "spec.groups", ["system:authenticated"])).reason == "NotAServiceAccount"


@pytest.mark.parametrize("usage", ["cert sign", "any", "code signing", "", None, {}, "x" * 9999])
def test_a_usage_that_our_certificates_are_not_for_is_denied_by_name(usage: JSON) -> None:
    deny = denied(changed(GOOD, "spec.usages", ["client auth", usage]))
    assert deny.reason == "UnacceptableUsages"
    assert str(usage)[:50] in deny.message
    assert len(deny.message) < 500


@pytest.mark.parametrize("usages", [["client auth"], ["key encipherment", "server auth"]])
def test_any_part_of_what_our_certificates_are_for_may_be_asked_for(usages: list[JSON]) -> None:
    assert isinstance(decide(changed(GOOD, "spec.usages", usages), SIGNER), Approve)


@pytest.mark.parametrize(
    ("request_", "reason"),
    [
        (csr(ec.generate_private_key(ec.SECP521R1()), URI(WEB)), "UnsupportedKeyType"),
        (csr(rsa.generate_private_key(65537, 1024), URI(WEB)), "UnsupportedKeyType"),  # noqa: S505  # that is its fault
        (csr(KEY, URI(WEB), extra=x509.BasicConstraints(ca=True, path_length=None)), "InvalidRequest"),
    ],
    ids=["P-521", "RSA-1024", "CA"],
)
def test_a_csr_that_nobody_would_sign_is_denied(request_: x509.CertificateSigningRequest, reason: str) -> None:
    assert denied(signing_request(request=request_)).reason == reason


@pytest.mark.parametrize("request_", ["", "AAAA", "%", None, 5, in_pem(csr(KEY, URI(WEB)))[:-40]])
def test_what_is_no_csr_is_denied(request_: JSON) -> None:
    assert denied(changed(GOOD, "spec.request", request_)).reason == "InvalidRequest"


@pytest.mark.parametrize(
    ("seconds", "ttl"),
    [
        (600, timedelta(minutes=10)),
        (3600, HOUR),
        (90 * 86400, timedelta(days=90)),
        ((1 << 31) - 1, timedelta(days=90)),
        (None, None),
    ],
)
def test_the_expiration_is_honoured_within_the_profile(seconds: JSON, ttl: timedelta | None) -> None:
    made = decide(changed(APPROVED, "spec.expirationSeconds", seconds), SIGNER)
    assert isinstance(made, Sign)
    assert made.order.ttl == ttl


@pytest.mark.parametrize("seconds", [599, 0, -1, True, 600.5, "600", 1 << 31, [600]])
def test_an_expiration_that_is_none_is_denied(seconds: JSON) -> None:
    assert denied(changed(GOOD, "spec.expirationSeconds", seconds)).reason == "InvalidExpiration"


@pytest.mark.parametrize(
    "request_",
    [
        {},
        changed(GOOD, "spec.signerName", "kubernetes.io/kubelet-serving"),
        changed(GOOD, "status.certificate", "AAAA"),
        changed(GOOD, "status.conditions", [{"type": "Denied", "status": "True"}]),
        changed(APPROVED, "status.conditions", [*conditions(APPROVED), {"type": "Failed", "status": "True"}]),
        changed(GOOD, "metadata.deletionTimestamp", "2030-01-01T00:00:00Z"),
    ],
    ids=["empty", "another signer's", "issued", "denied", "failed", "deleted"],
)
def test_what_is_not_ours_or_has_its_answer_is_left_alone(request_: Object) -> None:
    assert isinstance(decide(request_, SIGNER), Ignore)


@pytest.mark.parametrize("path", ["metadata.name", "metadata.uid", "metadata.resourceVersion", "metadata"])
def test_a_request_that_can_not_be_answered_is_told(path: str) -> None:
    assert isinstance(decide(without(GOOD, path), SIGNER), Wait)


@pytest.mark.parametrize("name", ["csr:web", "a name", "é", "x" * 300])
def test_a_request_is_answered_whatever_it_is_called(name: str) -> None:
    assert isinstance(decide(changed(GOOD, "metadata.name", name), SIGNER), Approve)


def test_answers_keep_what_others_wrote_into_the_object() -> None:
    other: Object = {"type": "example.com/Reviewed", "status": "True"}
    request = changed(GOOD, "status.conditions", [other])
    approved = approval_update(request, Approve("OwnIdentity", "yes"))
    assert approved["metadata"] == request["metadata"]
    assert approved["spec"] == request["spec"]
    # Without times: the API server puts its own.
    added = {"type": "Approved", "status": "True", "reason": "OwnIdentity", "message": "yes"}
    assert conditions(approved) == [other, added]
    assert conditions(approval_update(request, Deny("No", "no")))[1] == added | {
        "type": "Denied",
        "reason": "No",
        "message": "no",
    }
    assert [object_of(each)["type"] for each in conditions(failed_status(approved, Fail("No", "no")))] == [
        "example.com/Reviewed",
        "Approved",
        "Failed",
    ]
    assert conditions(request) == [other]


@pytest.mark.parametrize("error", [NotReady("the disk is full"), Exhausted("busy"), IstioAuthError("a fault of ours")])
def test_trouble_that_may_pass_is_waited_for(error: IstioAuthError) -> None:
    assert isinstance(not_issued(error), Wait)


@pytest.mark.parametrize("error", [NotAuthorized("is the CA itself"), KeyRejected("weak")])
def test_what_the_issuer_never_signs_fails_without_our_secrets(error: IstioAuthError) -> None:
    fail = not_issued(error)
    assert isinstance(fail, Fail)
    assert fail.message == error.public


class TestIssued:
    @pytest.fixture
    async def issuer(self, clock: FakeClock) -> AsyncIterator[Issuer]:
        domain = SIGNER.trust_domain
        self.authority = open_authority(MemoryAuthorityStore(), domain, clock)
        reserved = ReservedNames.of(domain)
        issuer = Issuer(self.authority, IssuanceProfile(), MemoryIssuanceLog(), clock, reserved, threads=1)
        yield issuer
        await issuer.close()

    @pytest.mark.parametrize(("seconds", "life"), [(600, timedelta(minutes=10)), (None, timedelta(days=1))])
    async def test_the_certificate_stands_in_the_status(
        self, issuer: Issuer, clock: FakeClock, *, seconds: JSON, life: timedelta
    ) -> None:
        request = changed(APPROVED, "spec.expirationSeconds", seconds)
        made = decide(request, SIGNER)
        assert isinstance(made, Sign)
        body = issued_status(request, await issuer.issue(made.order))
        assert conditions(body) == conditions(request)
        chain = read_certificates(base64.b64decode(str(member(body, "status", "certificate"))))
        assert verify_chain(chain, self.authority.bundle, clock.now()) == SpiffeID.parse(WEB)
        assert chain[0].not_valid_after_utc == clock.now() + life
        assert isinstance(decide(body, SIGNER), Ignore)

    async def test_a_profile_that_gives_less_is_what_counts(self, issuer: Issuer) -> None:
        short = replace(SIGNER, profile=IssuanceProfile(default_ttl=HOUR, max_ttl=HOUR))
        made = decide(changed(APPROVED, "spec.expirationSeconds", 86400), short)
        assert isinstance(made, Sign)
        issued = await issuer.issue(made.order)
        assert issued.not_after - issued.not_before == HOUR + timedelta(minutes=2)
