"""Nonces: ours, for one agent, once, for a minute; and asking for them costs the server nothing."""

from __future__ import annotations

from datetime import timedelta

import pytest

from ca.agents.challenge import LIFETIME, Challenges
from istio_auth.errors import Exhausted, NotAuthenticated
from istio_auth.recovery import NONCE_BYTES
from istio_auth.spiffe_id import SpiffeID
from tests.fakes.clock import FakeClock
from tests.fakes.standalone import DOMAIN, NODE

OTHER = SpiffeID.for_agent(DOMAIN, "node-2")


def test_a_nonce_is_good_once(clock: FakeClock) -> None:
    challenges = Challenges()
    nonce = challenges.nonce(NODE, clock.now())
    assert len(nonce) == NONCE_BYTES
    challenges.check(nonce, NODE, clock.now())
    challenges.use_up(nonce, NODE, clock.now())
    with pytest.raises(NotAuthenticated):
        challenges.use_up(nonce, NODE, clock.now())
    challenges.use_up(challenges.nonce(NODE, clock.now()), NODE, clock.now())


def test_a_nonce_is_good_for_one_agent(clock: FakeClock) -> None:
    challenges = Challenges()
    nonce = challenges.nonce(NODE, clock.now())
    with pytest.raises(NotAuthenticated):
        challenges.use_up(nonce, OTHER, clock.now())
    challenges.use_up(nonce, NODE, clock.now())


@pytest.mark.parametrize("late", [LIFETIME, timedelta(days=1), -timedelta(seconds=1)])
def test_a_nonce_is_good_for_a_minute(clock: FakeClock, late: timedelta) -> None:
    challenges = Challenges()
    nonce = challenges.nonce(NODE, clock.now())
    with pytest.raises(NotAuthenticated):
        challenges.check(nonce, NODE, clock.now() + late)
    challenges.check(nonce, NODE, clock.now() + LIFETIME - timedelta(milliseconds=1))


def test_a_nonce_with_any_bit_changed_is_not_ours(clock: FakeClock) -> None:
    challenges = Challenges()
    nonce = challenges.nonce(NODE, clock.now())
    for position in range(NONCE_BYTES):
        forged = nonce[:position] + bytes([nonce[position] ^ 1]) + nonce[position + 1 :]
        with pytest.raises(NotAuthenticated):
            challenges.check(forged, NODE, clock.now())
    for other in (b"", nonce[:-1], nonce + b"\0", Challenges().nonce(NODE, clock.now())):
        with pytest.raises(NotAuthenticated):
            challenges.check(other, NODE, clock.now())
    challenges.check(nonce, NODE, clock.now())


def test_a_used_nonce_stays_used_until_it_is_over(clock: FakeClock) -> None:
    challenges = Challenges()
    nonce = challenges.nonce(NODE, clock.now())
    challenges.use_up(nonce, NODE, clock.now())
    clock.advance(LIFETIME - timedelta(seconds=1))
    challenges.use_up(challenges.nonce(NODE, clock.now()), NODE, clock.now())
    with pytest.raises(NotAuthenticated):
        challenges.use_up(nonce, NODE, clock.now())


def test_the_memory_for_used_nonces_is_bounded(clock: FakeClock) -> None:
    challenges = Challenges()
    for _ in range(10_000):
        challenges.use_up(challenges.nonce(NODE, clock.now()), NODE, clock.now())
    with pytest.raises(Exhausted):
        challenges.use_up(challenges.nonce(NODE, clock.now()), NODE, clock.now())
    clock.advance(LIFETIME)
    challenges.use_up(challenges.nonce(NODE, clock.now()), NODE, clock.now())
