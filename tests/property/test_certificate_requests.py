"""Whatever stands in a request: a decision comes out, and what is signed keeps to what was asked for."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

from hypothesis import given
from hypothesis import strategies as st

from ca.platform.kubernetes.api.objects import Object
from ca.platform.kubernetes.requests import certificate_signing_requests, pod_certificates
from ca.platform.kubernetes.requests.certificate_signing_requests import Approve, Fail
from ca.platform.kubernetes.requests.signer import Deny, Ignore, Sign, Signer, Wait
from ca.profile import IssuanceProfile, Validity
from istio_auth.strict_json import JSON
from tests.fakes.certificate_requests import (
    NAME,
    SIGNER,
    WEB,
    pod_certificate_request,
    signing_request,
    time_complaints,
)

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
SECOND, MINUTE, DAY = timedelta(seconds=1), timedelta(minutes=1), timedelta(days=1)
CHAIN = Validity(NOW - DAY, NOW + 3650 * DAY)
POD, CSR = pod_certificate_request(NOW), signing_request(approved=True)

scalars: st.SearchStrategy[JSON] = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20)
telling: st.SearchStrategy[JSON] = st.sampled_from(
    ["True", "Approved", "Denied", "Issued", "Pod", NAME, WEB, "AAAA", "2030-01-01T12:04:00Z", 3600, 600, [], {}, "a/b"]
)
values: st.SearchStrategy[JSON] = st.recursive(
    scalars | telling,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "status", "kind", "uid", "reason", "example.com/x"]) | st.text(max_size=5),
            inner,
            max_size=3,
        )
    ),
    max_leaves=6,
)


def paths(value: JSON, *above: str | int) -> list[tuple[str | int, ...]]:
    """Where something stands in a JSON value."""
    inner: list[tuple[str | int, JSON]] = []
    if isinstance(value, dict):
        inner = [*value.items()]
    elif isinstance(value, list):
        inner = [*enumerate(value)]
    found = [(*above, name) for name, _ in inner]
    return found + [path for name, each in inner for path in paths(each, *above, name)]


@st.composite
def mutated(draw: st.DrawFn, request: Object) -> Object:
    """A request with a few members that are something else, or missing, or new."""
    changed: Object = json.loads(json.dumps(request))
    for _ in range(draw(st.integers(1, 3))):
        *above, last = draw(st.sampled_from(paths(changed) or [("spec",)]))
        place: JSON = changed
        for name in above:
            place = place[name]  # type: ignore[index]  # the path was found there
        if draw(st.booleans()) and isinstance(place, dict):
            place.pop(str(last))
            place[draw(st.sampled_from(["conditions", "certificate", "deletionTimestamp"]) | st.text(max_size=5))] = (
                draw(values)
            )
        else:
            place[last] = draw(values)  # type: ignore[index]  # as above
    return changed


objects = st.dictionaries(st.sampled_from(["metadata", "spec", "status"]) | st.text(max_size=5), values, max_size=4)
instants = st.integers(-20 * 60, 20 * 60).map(lambda seconds: NOW + seconds * SECOND)


@given(mutated(POD) | objects, instants, st.none() | instants)
def test_no_pod_certificate_request_raises(request: Object, now: datetime, server_now: datetime | None) -> None:
    made = pod_certificates.decide(request, SIGNER, now, within=CHAIN, server_now=server_now)
    assert isinstance(made, Sign | Deny | Wait | Ignore)
    if isinstance(made, Sign):
        assert str(made.order.grant.spiffe_id).startswith("spiffe://cluster.local/ns/")
    if isinstance(made, Deny):
        assert made.reason in {"UnsupportedKeyType", "InvalidUnverifiedUserAnnotations", "InvalidStubPKCS10Request"}
    assert pod_certificates.refused_by_server(request, "no", now).reason


@given(mutated(CSR) | mutated(signing_request()) | objects)
def test_no_certificate_signing_request_raises(request: Object) -> None:
    made = certificate_signing_requests.decide(request, SIGNER)
    assert isinstance(made, Approve | Sign | Deny | Fail | Wait | Ignore)
    if isinstance(made, Sign | Approve):  # the key's owner asked for WEB, and nobody else may have it
        spec = request["spec"]
        assert isinstance(spec, dict)
        assert spec["username"] == "system:serviceaccount:shop:web"
    if isinstance(made, Deny | Fail):
        json.dumps(certificate_signing_requests.approval_update(request, Deny(made.reason, made.message)))


lives = st.integers(3600, 7862400)
profiles = st.builds(
    lambda longest, backdate, share: IssuanceProfile(min(DAY, longest), longest, backdate, share),
    st.timedeltas(timedelta(minutes=1), 400 * DAY),
    st.timedeltas(timedelta(), timedelta(hours=3)),
    st.floats(0, 0.499),
)


@given(
    asked=lives,
    profile=profiles,
    skew=st.timedeltas(-5 * MINUTE, 5 * MINUTE),
    age=st.timedeltas(timedelta(), 14 * MINUTE),
    left=st.timedeltas(MINUTE, 400 * DAY),
    known=st.booleans(),
)
def test_what_is_signed_is_what_the_api_server_takes(
    *, asked: int, profile: IssuanceProfile, skew: timedelta, age: timedelta, left: timedelta, known: bool
) -> None:
    request = pod_certificate_request(NOW)
    spec = request["spec"]
    assert isinstance(spec, dict)
    spec["maxExpirationSeconds"] = asked
    within = Validity(NOW - DAY, (NOW + left).replace(microsecond=0))
    signer = Signer(NAME, SIGNER.trust_domain, profile)
    server_now = NOW + age
    now = server_now + skew
    made = pod_certificates.decide(
        request, signer, now, within=within, server_now=server_now.replace(microsecond=0) if known else None
    )
    if not isinstance(made, Sign):
        assert isinstance(made, Wait)
        assert (
            left < timedelta(hours=1) + 15 * MINUTE
            or profile.max_ttl < timedelta(hours=1) + 15 * MINUTE
            or (known and abs(skew) > 5 * MINUTE - SECOND)
        )
        return
    ends = made.order.validity
    assert ends is not None
    faults = time_complaints(ends.not_before, ends.not_after, asked, server_now + 30 * SECOND)
    if known or age <= MINUTE or skew == timedelta():  # else nobody could know what the API server's clock shows
        assert faults == []
    assert all("5 minutes" in fault for fault in faults)
    assert profile.allowed(ends, now, within=within) == ends
