"""Whatever is plugged in, withdrawn and published when: nothing is signed that somebody could not verify, ever."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st

from ca.authority.state import AuthorityState, IssuerState, KeyReference
from ca.authority.takeover import Pace, next_step, pruned
from istio_auth.spiffe_id import TrustDomain
from tests.fakes.authority import FakeAuthority

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
PACE = Pace(5 * MINUTE, 2 * DAY)
WHERE = KeyReference("a plugged-in CA in memory")


def _issuers() -> list[IssuerState | None]:
    roots = [FakeAuthority(now=NOW, lifetime=3650 * DAY) for _ in range(3)]
    below = FakeAuthority(parent=roots[0], now=NOW, lifetime=3000 * DAY)
    certificates = [root.certificate for root in roots]
    plain: list[IssuerState | None] = [IssuerState(root, root, key=WHERE) for root in certificates]
    both = IssuerState(certificates[1], certificates[1], (), (certificates[0],), WHERE)
    return [*plain, IssuerState(below.certificate, certificates[0], key=WHERE), both, None]


ISSUERS = _issuers()
SHORT = FakeAuthority(now=NOW, lifetime=DAY)
FIRST = [
    IssuerState(root.certificate, root.certificate, key=root.key)
    for root in (FakeAuthority(now=NOW, lifetime=3650 * DAY), SHORT)
]


@dataclass
class World:
    """A CA, what it signed, and the reader of its bundles who is the slowest of all."""

    first: IssuerState
    state: AuthorityState
    now: datetime = NOW
    published: int = 1
    arriving: list[tuple[datetime, frozenset[x509.Certificate]]] = field(default_factory=list)
    leaves: dict[x509.Certificate, datetime] = field(default_factory=dict)  # by root: when the last one ends
    offered: IssuerState | None = None

    def publish(self) -> None:
        self.published = self.state.sequence
        self.arriving.append((self.now + PACE.settling, roots(self.state)))

    def known(self) -> frozenset[x509.Certificate]:
        """The roots that the slowest reader trusts now; the first one it knew from the beginning."""
        return [frozenset({self.first.root}), *(held for at, held in self.arriving if at <= self.now)][-1]

    def sign(self, ttl: timedelta) -> None:
        issuer = self.state.active
        if self.now < issuer.not_after:
            assert issuer.root in self.known()
            end = min(self.now + ttl, issuer.not_after)
            self.leaves[issuer.root] = max(end, self.leaves.get(issuer.root, end))

    def look(self) -> bool:
        """Take what step there is; whether there was one."""
        published = self.published >= self.state.sequence
        step = next_step(self.state, self.offered, self.now, published=published, pace=PACE)
        new = step if isinstance(step, AuthorityState) else pruned(self.state, self.now)
        changed = roots(new) != roots(self.state)
        assert new.sequence == self.state.sequence + changed
        assert AuthorityState.from_json(new.to_json()) == new
        moved, self.state = new is not self.state, new
        self.check()
        return moved

    def check(self) -> None:
        """Whoever has the bundle of now can verify everything that is alive."""
        trusted = roots(self.state)
        assert self.state.active.root in trusted
        for root, end in self.leaves.items():
            assert root in trusted or self.now >= end

    def do(self, action: str, value: float) -> None:
        match action:
            case "offer":
                self.offered = ISSUERS[int(value)]
            case "look":
                self.look()
            case "publish":
                self.publish()
            case "wait":
                self.now += value * MINUTE
            case "sign":
                self.sign(value * MINUTE)


def roots(state: AuthorityState) -> frozenset[x509.Certificate]:
    return frozenset(state.bundle().x509_authorities)


def lived(first: IssuerState, actions: list[tuple[str, float]]) -> World:
    world = World(first, AuthorityState(TrustDomain("cluster.local"), first))
    world.look()
    for action, value in actions:
        world.do(action, value)
    return world


firsts = st.sampled_from(FIRST)
lives = st.lists(
    st.one_of(
        st.tuples(st.just("offer"), st.sampled_from(range(len(ISSUERS)))),
        st.tuples(st.just("look"), st.just(0)),
        st.tuples(st.just("publish"), st.just(0)),
        st.tuples(st.just("wait"), st.sampled_from([0.5, 4, 5, 6, 60, 1440, 2 * 1440, 3 * 1440])),
        st.tuples(st.just("sign"), st.sampled_from([1, 1440, 2 * 1440])),
    ),
    max_size=80,
)


@given(firsts, lives)
def test_a_root_is_known_before_it_signs_and_trusted_as_long_as_it_matters(
    first: IssuerState, life: list[tuple[str, float]]
) -> None:
    lived(first, life)


@given(firsts, lives, st.sampled_from([issuer for issuer in ISSUERS if issuer is not None]))
def test_what_is_offered_for_good_signs_in_the_end_and_what_was_before_is_forgotten(
    first: IssuerState, life: list[tuple[str, float]], last: IssuerState
) -> None:
    world = lived(first, life)
    world.offered = last
    for _ in range(4):  # the last choice stays for a while, then there are three steps
        world.sign(PACE.longest_ttl)
        while world.look():
            world.sign(PACE.longest_ttl)
        world.publish()
        world.now += PACE.settling
    assert world.state.active == last
    assert world.state.prepared is None
    world.sign(PACE.longest_ttl)
    world.now += 3 * DAY
    while world.look():
        pass
    assert world.state.retired == ()
    assert roots(world.state) == {last.root, *last.other_roots}
    assert not [name for name in world.state.deadlines if name.startswith("drop")]
