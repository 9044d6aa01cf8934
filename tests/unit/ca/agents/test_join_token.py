"""Join tokens: printed once, good once, for a while, for one agent."""

from __future__ import annotations

import json
import multiprocessing
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from ca.agents.join_token import DEFAULT_TTL, MAX_TTL, JoinToken, JoinTokenFolder, hash_of
from istio_auth.errors import ConfigurationError, ConflictError, MissingError, NotAuthenticated
from tests.fakes.clock import FakeClock

MINUTE = timedelta(minutes=1)


@pytest.fixture
def tokens(tmp_path: Path) -> JoinTokenFolder:
    return JoinTokenFolder(tmp_path / "tokens")


def test_a_token_is_found_by_its_hash_and_names_its_agent(tokens: JoinTokenFolder, clock: FakeClock) -> None:
    text, token = tokens.create("node-1", clock.now())
    found = tokens.find(hash_of(text))
    assert found == token
    assert (found.agent, found.expires_at - found.created_at) == ("node-1", DEFAULT_TTL)
    found.check_time(clock.now())


def test_a_token_holds_256_bits_of_chance(tokens: JoinTokenFolder, clock: FakeClock) -> None:
    texts = {tokens.create("node-1", clock.now())[0] for _ in range(20)}
    assert len(texts) == 20
    assert all(re.fullmatch(r"join-[A-Za-z0-9_-]{43}", text) for text in texts)


def test_nothing_on_disk_tells_the_token_and_only_its_owner_may_look(tokens: JoinTokenFolder, tmp_path: Path) -> None:
    text, token = tokens.create("node-1", FakeClock().now())
    files = [path for path in (tmp_path / "tokens").rglob("*") if path.is_file()]
    assert [path.name for path in files] == [f"{token.hash}.json"]
    assert text.removeprefix("join-") not in files[0].read_text()
    assert files[0].stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "tokens").stat().st_mode & 0o777 == 0o700
    assert text not in repr(token)


def test_a_token_is_used_up_once(tokens: JoinTokenFolder, clock: FakeClock) -> None:
    text, token = tokens.create("node-1", clock.now())
    tokens.use_up(token)
    with pytest.raises(NotAuthenticated, match="used"):
        tokens.find(hash_of(text))
    with pytest.raises(NotAuthenticated):
        tokens.use_up(token)
    again, _ = tokens.create("node-1", clock.now())
    tokens.use_up(tokens.find(hash_of(again)))


def test_of_many_threads_exactly_one_uses_a_token(tokens: JoinTokenFolder, clock: FakeClock) -> None:
    for _ in range(20):
        _, token = tokens.create("node-1", clock.now())
        with ThreadPoolExecutor(8) as pool:
            assert sum(pool.map(lambda _, token=token: _won(tokens, token), range(8))) == 1


def test_of_several_processes_exactly_one_uses_each_token(tmp_path: Path, clock: FakeClock) -> None:
    tokens = JoinTokenFolder(tmp_path / "tokens")
    made = [tokens.create("node-1", clock.now())[1] for _ in range(50)]
    spawn = multiprocessing.get_context("spawn")
    barrier, results = spawn.Barrier(3), spawn.SimpleQueue()
    processes = [spawn.Process(target=_use_all, args=(tmp_path / "tokens", made, barrier, results)) for _ in range(3)]
    for process in processes:
        process.start()
    won = [results.get() for _ in processes]
    for process in processes:
        process.join(30)
    assert [sum(wins) for wins in zip(*won, strict=True)] == [1] * len(made)


def _use_all(
    folder: Path, made: list[JoinToken], barrier: Barrier, results: multiprocessing.SimpleQueue[list[int]]
) -> None:
    tokens, wins = JoinTokenFolder(folder), []
    for token in made:
        barrier.wait(110)  # until the slowest has begun
        wins.append(_won(tokens, token))
    results.put(wins)


def _won(tokens: JoinTokenFolder, token: JoinToken) -> int:
    try:
        tokens.use_up(token)
    except NotAuthenticated:
        return 0
    return 1


def test_a_token_ends(tokens: JoinTokenFolder, clock: FakeClock) -> None:
    _, token = tokens.create("node-1", clock.now(), ttl=MINUTE)
    token.check_time(clock.now() + MINUTE - timedelta(seconds=1))
    with pytest.raises(NotAuthenticated):
        token.check_time(clock.now() + MINUTE)


def test_a_clock_set_back_does_not_lengthen_a_tokens_life(tokens: JoinTokenFolder, clock: FakeClock) -> None:
    _, token = tokens.create("node-1", clock.now())
    token.check_time(clock.now() - MINUTE)
    with pytest.raises(NotAuthenticated):
        token.check_time(clock.now() - 3 * MINUTE)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "join-",
        "join-" + "A" * 42,
        "join-" + "A" * 44,
        "JOIN-" + "A" * 43,
        "join-" + "A" * 42 + "\n",
        "join-" + "A" * 43 + "\n",
        "join-" + "A" * 42 + "é",
        "../../etc/passwd",
        "a" * 3000,
        "\0",
    ],
)
def test_what_is_no_join_token_is_refused_unseen(text: str) -> None:
    with pytest.raises(NotAuthenticated) as caught:
        hash_of(text)
    assert text not in str(caught.value) or not text
    assert len(hash_of("join-" + "A" * 43)) == 64


def test_an_unknown_token_is_refused(tokens: JoinTokenFolder) -> None:
    with pytest.raises(NotAuthenticated):
        tokens.find(hash_of("join-" + "A" * 43))


@pytest.mark.parametrize(
    "name", ["", ".", "..", ".hidden", "-rf", "a/b", "a\nb", "a b", "%41", "näme", "a" * 129, "a\0b", "../x"]
)
def test_a_token_can_not_be_made_for_what_is_no_agents_name(
    tokens: JoinTokenFolder, clock: FakeClock, name: str
) -> None:
    with pytest.raises(ConfigurationError):
        tokens.create(name, clock.now())
    tokens.create("a" * 128, clock.now())


@pytest.mark.parametrize("ttl", [timedelta(), -MINUTE, MAX_TTL + timedelta(seconds=1)])
def test_a_token_can_not_live_for_ever_or_not_at_all(tokens: JoinTokenFolder, clock: FakeClock, ttl: timedelta) -> None:
    with pytest.raises(ConfigurationError):
        tokens.create("node-1", clock.now(), ttl=ttl)
    tokens.create("node-1", clock.now(), ttl=MAX_TTL)


def test_the_list_has_the_unused_tokens_by_their_end(tokens: JoinTokenFolder, clock: FakeClock) -> None:
    _, late = tokens.create("late", clock.now(), ttl=3 * MINUTE)
    _, soon = tokens.create("soon", clock.now(), ttl=MINUTE)
    _, used = tokens.create("used", clock.now(), ttl=2 * MINUTE)
    tokens.use_up(used)
    assert tokens.list() == [soon, late]


def test_a_token_is_revoked_by_the_start_of_its_id(tokens: JoinTokenFolder, clock: FakeClock) -> None:
    text, token = tokens.create("node-1", clock.now())
    _, other = tokens.create("node-1", clock.now())
    assert tokens.revoke(token.id[:10]) == token
    assert tokens.list() == [other]
    with pytest.raises(NotAuthenticated):
        tokens.find(hash_of(text))
    with pytest.raises(MissingError):
        tokens.revoke(token.id)


def test_an_id_that_is_too_short_or_not_unique_revokes_nothing(
    tokens: JoinTokenFolder, clock: FakeClock, tmp_path: Path
) -> None:
    _, token = tokens.create("node-1", clock.now())
    twin = token.hash[:20] + token.hash[20:][::-1]
    (tmp_path / "tokens" / f"{twin}.json").write_text((tmp_path / "tokens" / f"{token.hash}.json").read_text())
    with pytest.raises(ConfigurationError):
        tokens.revoke(token.hash[:7])
    with pytest.raises(ConflictError):
        tokens.revoke(token.id)
    assert len(tokens.list()) == 2
    assert tokens.revoke(token.hash) == token


def test_all_tokens_of_an_agent_are_revoked_together(tokens: JoinTokenFolder, clock: FakeClock) -> None:
    for agent in ("node-1", "node-1", "node-2"):
        tokens.create(agent, clock.now())
    assert tokens.revoke_all("node-1") == 2
    assert [token.agent for token in tokens.list()] == ["node-2"]


def test_what_is_long_over_is_swept_away(tokens: JoinTokenFolder, clock: FakeClock, tmp_path: Path) -> None:
    _, ended = tokens.create("ended", clock.now(), ttl=MINUTE)
    _, used = tokens.create("used", clock.now(), ttl=MINUTE)
    tokens.use_up(used)
    clock.advance(timedelta(hours=23))
    tokens.sweep(clock.now())
    assert tokens.list() == [ended]
    clock.advance(timedelta(hours=2))
    tokens.create("new", clock.now())
    names = [path.stem for path in (tmp_path / "tokens").rglob("*.json")]
    assert not {ended.hash, used.hash} & set(names)


@pytest.mark.parametrize(
    "damage",
    [
        "",
        "{",
        "[]",
        "null",
        '{"version": 1}',
        '{"version": 2, "agent": "node-1"}',
        "\xff",
        '{"version":1,"agent":"../x"}',
    ],
)
def test_a_damaged_file_enrols_nobody_and_hides_no_other(
    tokens: JoinTokenFolder, clock: FakeClock, tmp_path: Path, damage: str
) -> None:
    text, token = tokens.create("node-1", clock.now())
    _, other = tokens.create("node-2", clock.now())
    path = tmp_path / "tokens" / f"{token.hash}.json"
    whole = path.read_text()
    path.write_text(damage, encoding="latin-1")
    with pytest.raises(NotAuthenticated):
        tokens.find(hash_of(text))
    assert tokens.list() == [other]
    path.write_text(whole)
    assert tokens.find(hash_of(text)) == token


def test_an_instant_without_zone_is_no_instant(tokens: JoinTokenFolder, clock: FakeClock, tmp_path: Path) -> None:
    text, token = tokens.create("node-1", clock.now())
    path = tmp_path / "tokens" / f"{token.hash}.json"
    document = json.loads(path.read_text())
    document["expires_at"] = "2100-01-01T00:00:00"
    path.write_text(json.dumps(document))
    with pytest.raises(NotAuthenticated):
        tokens.find(hash_of(text))
