"""No address and no answer of a Workload API crashes its reader."""

from __future__ import annotations

from contextlib import suppress

from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from istio_auth.errors import ConfigurationError, IstioAuthError
from istio_auth.proto import workload_api_pb2 as messages
from istio_auth.workload_api import decode
from istio_auth.workload_api.address import grpc_target
from istio_auth.workload_api.decode import InvalidResponse
from tests.fakes import workload_api as api
from tests.fakes.token_issuer import TokenIssuer
from tests.vectors.x509_svid import FEDERATED, LOCAL

GOOD = api.x509(api.entry(LOCAL.svid(), LOCAL.bundle(), hint="web"), federated=[FEDERATED.bundle()])
ENTRY = GOOD.svids[0]

near_addresses = st.builds(
    "".join,
    st.lists(st.sampled_from(["unix:", "tcp:", "//", "/", "a", "127.0.0.1", "[::1]", ":", "80", "%", "?", "#"])),
)
changed_bytes = st.builds(
    lambda good, place, value, cut: (good[:place] + bytes([value]) + good[place + 1 :])[: len(good) - cut],
    st.sampled_from([ENTRY.x509_svid, ENTRY.x509_svid_key, ENTRY.bundle]),
    st.integers(0, 200),
    st.integers(0, 255),
    st.integers(0, 3),
)
some_bytes = st.binary(max_size=100) | changed_bytes
names = st.sampled_from(["spiffe://cluster.local", ENTRY.spiffe_id, "spiffe://partner.test", ""]) | st.text()
bundles = st.dictionaries(names, some_bytes, max_size=3)
entries = st.builds(
    messages.X509SVID,
    spiffe_id=names,
    x509_svid=some_bytes,
    x509_svid_key=some_bytes,
    bundle=some_bytes,
    hint=st.text(max_size=10),
)
token_issuer = TokenIssuer()
key_sets = st.sampled_from([token_issuer.jwks(), "{}", '{"keys": []}', "[]"]).map(str.encode) | some_bytes


@given(near_addresses | st.text())
def test_any_text_is_an_address_or_is_refused(text: str) -> None:
    with suppress(ConfigurationError):
        assert grpc_target(text).startswith(("unix:///", "ipv4:", "ipv6:["))


@given(st.lists(entries | st.just(ENTRY), max_size=3), bundles)
def test_any_answer_with_svids_is_taken_or_refused(svids: list[messages.X509SVID], federated: dict[str, bytes]) -> None:
    with suppress(InvalidResponse):
        decoded = decode.x509_context(messages.X509SVIDResponse(svids=svids, federated_bundles=federated))
        assert decoded.value.svid.id == decode.x509_context(GOOD).value.svid.id


@given(bundles)
def test_any_answer_with_bundles_is_taken_or_refused(said: dict[str, bytes]) -> None:
    with suppress(InvalidResponse):
        decode.x509_bundles(messages.X509BundlesResponse(bundles=said))


@given(st.dictionaries(names, key_sets, max_size=3))
def test_any_answer_with_key_sets_is_taken_or_refused(said: dict[str, bytes]) -> None:
    with suppress(InvalidResponse):
        decode.jwt_bundles(messages.JWTBundlesResponse(bundles=said))


@given(names, st.text() | st.from_regex(r"[\w-]{1,20}\.[\w-]{1,20}\.[\w-]{1,20}"), st.text(max_size=2000))
def test_any_answer_with_tokens_is_taken_or_refused(spiffe_id: str, token: str, hint: str) -> None:
    response = messages.JWTSVIDResponse(svids=[messages.JWTSVID(spiffe_id=spiffe_id, svid=token, hint=hint)])
    with suppress(InvalidResponse):
        decode.jwt_svids(response, audience=["a"], spiffe_id=None)


@given(st.binary(max_size=300))
def test_any_bytes_are_taken_or_refused(data: bytes) -> None:
    with suppress(DecodeError, InvalidResponse):
        decode.x509_context(messages.X509SVIDResponse.FromString(data))
    with suppress(DecodeError, IstioAuthError):
        decode.validated(messages.ValidateJWTSVIDResponse.FromString(data))
