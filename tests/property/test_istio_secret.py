"""Every state comes back from the secret as it was put there, byte for byte: the version of a state is its digest."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from hypothesis import given
from hypothesis import strategies as st

from ca.authority.istio_secret import read_state, write_state
from ca.authority.state import AuthorityState, IssuerState, KeyReference
from istio_auth.spiffe_id import TrustDomain
from tests.fakes.authority import FakeAuthority

LOCAL = TrustDomain("cluster.local")
AUTHORITIES = [
    FakeAuthority(),
    FakeAuthority(key=ec.generate_private_key(ec.SECP384R1())),
    FakeAuthority(key=rsa.generate_private_key(65537, 2048)),
    FakeAuthority(parent=FakeAuthority()),
    FakeAuthority(parent=FakeAuthority(parent=FakeAuthority())),
]
ROOTS = [authority.certificate for authority in AUTHORITIES if authority.parent is None]


@st.composite
def issuers(draw: st.DrawFn, *, active: bool = False) -> IssuerState:
    authority = draw(st.sampled_from(AUTHORITIES))
    others = draw(st.lists(st.sampled_from(ROOTS), unique=True))
    keys = [authority.key, KeyReference(draw(st.text(max_size=20))), *(() if active else (None,))]
    return IssuerState(
        authority.certificate,
        authority.root,
        authority.intermediates[1:],
        tuple(other for other in others if other != authority.root),
        draw(st.sampled_from(keys)),
    )


instants = st.datetimes(datetime(2000, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001  # see zones
seconds = st.integers(1, 10**9).map(lambda count: timedelta(seconds=count))
states = st.builds(
    AuthorityState,
    st.just(LOCAL),
    issuers(active=True),
    prepared=st.none() | issuers(),
    retired=st.lists(issuers(), max_size=3).map(tuple),
    sequence=st.integers(1, 10**12),
    refresh_hint=seconds,
    deadlines=st.dictionaries(st.text(max_size=20), instants, max_size=3),
    longest_ttl=seconds,
)


@given(states)
def test_a_state_comes_back_byte_for_byte(state: AuthorityState) -> None:
    read = read_state(write_state(state), LOCAL)
    assert read == state
    assert read.to_json() == state.to_json()


@given(states, states)
def test_a_state_comes_back_from_over_another(before: AuthorityState, after: AuthorityState) -> None:
    assert read_state(write_state(before) | write_state(after), LOCAL).to_json() == after.to_json()
