"""Enrolled agents: what is kept of them, and what an eviction does."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from ca.agents.agent import AgentRecord, agent_name, in_agents_room
from ca.agents.folder import AgentFolder
from istio_auth.errors import ConfigurationError, MissingError, NotAuthorized, NotReady
from istio_auth.spiffe_id import SpiffeID
from tests.fakes.clock import FakeClock

HOUR = timedelta(hours=1)
WEB = SpiffeID.parse("spiffe://cluster.local/ns/default/sa/web")
DB = SpiffeID.parse("spiffe://cluster.local/ns/default/sa/db")


@pytest.fixture
def agents(tmp_path: Path) -> AgentFolder:
    return AgentFolder(tmp_path / "agents")


def enrolled(agents: AgentFolder, clock: FakeClock, name: str = "node-1", key: str = "k1") -> AgentRecord:
    return agents.enrol(name, key, invited_at=clock.now(), now=clock.now())


def test_what_is_kept_of_an_agent_is_there_for_the_next_process(
    agents: AgentFolder, clock: FakeClock, tmp_path: Path
) -> None:
    enrolled(agents, clock)
    agents.note_svid("node-1", clock.now() + HOUR)
    agents.note_identities("node-1", [WEB])
    agents.note_identities("node-1", [DB, WEB])
    record = AgentRecord("node-1", "k1", clock.now(), clock.now() + HOUR, frozenset({WEB, DB}))
    assert AgentFolder(tmp_path / "agents").find("node-1") == record
    assert AgentFolder(tmp_path / "agents").list() == [record]
    assert (tmp_path / "agents" / "node-1.json").stat().st_mode & 0o777 == 0o600


def test_an_earlier_end_does_not_replace_a_later_one(agents: AgentFolder, clock: FakeClock) -> None:
    enrolled(agents, clock)
    agents.note_svid("node-1", clock.now() + 2 * HOUR)
    agents.note_svid("node-1", clock.now() + HOUR)
    assert agents.find("node-1").svid_end == clock.now() + 2 * HOUR


def test_enrolling_again_replaces_the_node_key_and_keeps_the_rest(agents: AgentFolder, clock: FakeClock) -> None:
    enrolled(agents, clock)
    agents.note_svid("node-1", clock.now() + HOUR)
    agents.note_identities("node-1", [WEB])
    clock.advance(HOUR)
    enrolled(agents, clock, key="k2")
    record = agents.find("node-1")
    assert (record.node_key, record.enrolled_at) == ("k2", clock.now())
    assert (record.svid_end, record.identities) == (clock.now(), frozenset({WEB}))


def test_who_never_enrolled_is_not_welcome(agents: AgentFolder, clock: FakeClock) -> None:
    with pytest.raises(MissingError):
        agents.find("node-1")
    for check in (
        lambda: agents.check_welcome("node-1"),
        lambda: agents.note_svid("node-1", clock.now()),
        lambda: agents.note_identities("node-1", [WEB]),
    ):
        with pytest.raises(NotAuthorized):
            check()
    with pytest.raises(MissingError):
        agents.evict("node-1", clock.now())
    enrolled(agents, clock)
    agents.check_welcome("node-1")


def test_an_eviction_by_another_process_counts_at_once(agents: AgentFolder, clock: FakeClock, tmp_path: Path) -> None:
    enrolled(agents, clock)
    enrolled(agents, clock, "node-2")
    agents.note_identities("node-1", [WEB])
    agents.check_welcome("node-1")
    other = AgentFolder(tmp_path / "agents")
    assert other.evict("node-1", clock.now()).evicted_at == clock.now()
    for refused in (
        lambda: agents.check_welcome("node-1"),
        lambda: agents.note_svid("node-1", clock.now()),
        lambda: agents.note_identities("node-1", [DB]),
    ):
        with pytest.raises(NotAuthorized):
            refused()
    agents.check_welcome("node-2")
    assert agents.evictions().identities == {WEB: agents.evictions().since["node-1"]}
    assert agents.find("node-1").identities == {WEB}
    other.evict("node-2", clock.now())
    with pytest.raises(NotAuthorized):
        agents.check_welcome("node-2")


def test_an_eviction_in_the_same_tick_of_the_file_systems_clock_is_seen(
    agents: AgentFolder, clock: FakeClock, tmp_path: Path
) -> None:
    enrolled(agents, clock)
    enrolled(agents, clock, "node-2")
    folder, other = tmp_path / "agents" / "evicted", AgentFolder(tmp_path / "agents")
    other.evict("node-1", clock.now())
    assert set(agents.evictions().since) == {"node-1"}
    before = folder.stat()
    other.evict("node-2", clock.now())
    os.utime(folder, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert set(agents.evictions().since) == {"node-1", "node-2"}


def test_a_record_that_changes_in_the_same_tick_of_the_file_systems_clock_is_seen(
    agents: AgentFolder, clock: FakeClock, tmp_path: Path
) -> None:
    enrolled(agents, clock)
    record, path = agents.check_welcome("node-1"), tmp_path / "agents" / "node-1.json"
    before = path.stat()
    path.write_bytes(replace(record, identities=frozenset({WEB})).to_json())  # as a new file with its old number
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert agents.find("node-1").identities == {WEB}


def test_evicting_twice_keeps_the_first_time(agents: AgentFolder, clock: FakeClock) -> None:
    enrolled(agents, clock)
    first = agents.evict("node-1", clock.now())
    clock.advance(HOUR)
    assert agents.evict("node-1", clock.now()) == first


def test_recording_a_renewal_does_not_undo_an_eviction(agents: AgentFolder, clock: FakeClock, tmp_path: Path) -> None:
    record = enrolled(agents, clock)
    AgentFolder(tmp_path / "agents").evict("node-1", clock.now())
    (tmp_path / "agents" / "node-1.json").write_bytes(record.to_json())  # as a writer that knew nothing would
    with pytest.raises(NotAuthorized):
        agents.check_welcome("node-1")


def test_an_evicted_agent_comes_back_by_a_newer_token_once_its_svid_has_ended(
    agents: AgentFolder, clock: FakeClock
) -> None:
    enrolled(agents, clock)
    agents.note_svid("node-1", clock.now() + HOUR)
    older = clock.now()
    clock.advance(timedelta(minutes=1))
    agents.evict("node-1", clock.now())
    newer = clock.now() + timedelta(minutes=1)
    clock.advance(timedelta(minutes=2))
    with pytest.raises(NotAuthorized):
        agents.enrol("node-1", "k2", invited_at=newer, now=clock.now())  # its last SVID is still good
    clock.advance(HOUR)
    with pytest.raises(NotAuthorized):
        agents.enrol("node-1", "k2", invited_at=older, now=clock.now())  # the token was made before the eviction
    agents.enrol("node-1", "k2", invited_at=newer, now=clock.now())
    assert agents.check_welcome("node-1").node_key == "k2"
    assert not agents.evictions().since


def test_an_eviction_outlives_the_record(agents: AgentFolder, clock: FakeClock, tmp_path: Path) -> None:
    enrolled(agents, clock)
    agents.evict("node-1", clock.now())
    (tmp_path / "agents" / "node-1.json").unlink()
    with pytest.raises(NotAuthorized):
        agents.enrol("node-1", "k2", invited_at=clock.now(), now=clock.now())
    clock.advance(HOUR)
    enrolled(agents, clock)


def test_subscribers_hear_of_evictions_until_they_end(agents: AgentFolder, clock: FakeClock) -> None:
    enrolled(agents, clock)
    enrolled(agents, clock, "node-2")
    heard: list[int] = []
    end = agents.subscribe(lambda: heard.append(len(agents.evictions().since)))
    agents.evict("node-1", clock.now())
    agents.evictions()
    agents.evictions()
    assert heard == [1]
    end()
    agents.evict("node-2", clock.now())
    agents.evictions()
    assert heard == [1]


def test_an_eviction_that_does_not_say_when_evicts_all_the_same(
    agents: AgentFolder, clock: FakeClock, tmp_path: Path
) -> None:
    enrolled(agents, clock)
    (tmp_path / "agents" / "evicted" / "node-1.json").write_text("")
    with pytest.raises(NotAuthorized):
        agents.check_welcome("node-1")


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b'{"version": 2}', b'{"version": 1, "name": "node-1"}', b"\xff"])
def test_a_damaged_record_shuts_out_and_is_told(
    agents: AgentFolder, clock: FakeClock, tmp_path: Path, damage: bytes
) -> None:
    enrolled(agents, clock)
    path = tmp_path / "agents" / "node-1.json"
    whole = path.read_bytes()
    path.write_bytes(damage)
    with pytest.raises(ConfigurationError, match=str(path)):
        agents.find("node-1")
    with pytest.raises(NotAuthorized):
        agents.check_welcome("node-1")
    path.write_bytes(whole)
    os.utime(path, ns=(1, 1))
    agents.check_welcome("node-1")


def test_the_record_of_another_agent_is_no_record(agents: AgentFolder, clock: FakeClock, tmp_path: Path) -> None:
    enrolled(agents, clock)
    (tmp_path / "agents" / "node-2.json").write_bytes((tmp_path / "agents" / "node-1.json").read_bytes())
    with pytest.raises(NotAuthorized):
        agents.check_welcome("node-2")


def test_when_evictions_can_not_be_looked_at_nobody_is_welcome(
    agents: AgentFolder, clock: FakeClock, tmp_path: Path
) -> None:
    enrolled(agents, clock)
    (tmp_path / "agents" / "evicted").rename(tmp_path / "away")
    with pytest.raises(NotReady):
        agents.check_welcome("node-1")
    (tmp_path / "away").rename(tmp_path / "agents" / "evicted")
    agents.check_welcome("node-1")


@pytest.mark.parametrize(
    ("path", "name", "inside"),
    [
        ("/agent/node-1", "node-1", True),
        ("/agent/a/b", None, True),
        ("/agent", None, True),
        ("/agents/node-1", None, False),
        ("/ns/agent/sa/x", None, False),
        ("", None, False),
    ],
)
def test_agents_have_a_room_of_their_own_in_the_trust_domain(path: str, name: str | None, inside: bool) -> None:
    spiffe_id = SpiffeID.parse(f"spiffe://cluster.local{path}")
    assert agent_name(spiffe_id) == name
    assert in_agents_room(spiffe_id) is inside


def test_an_agent_is_known_that_ever_enrolled_or_was_evicted(
    agents: AgentFolder, clock: FakeClock, tmp_path: Path
) -> None:
    assert not agents.is_known("node-1")
    enrolled(agents, clock)
    enrolled(agents, clock, "node-2")
    assert agents.is_known("node-1")
    assert not agents.is_known("n" * 200)  # no agent with a record has such a name
    agents.evict("node-1", clock.now())
    (tmp_path / "agents" / "node-1.json").unlink()
    assert agents.is_known("node-1")
    (tmp_path / "agents" / "node-2.json").write_text("{")
    assert agents.is_known("node-2")
    with pytest.raises(NotAuthorized, match="damaged"):
        agents.unnoted("node-2", [])


def test_what_is_on_record_need_not_be_noted_again(agents: AgentFolder, clock: FakeClock) -> None:
    enrolled(agents, clock)
    assert agents.unnoted("node-1", [WEB, DB]) == {WEB, DB}
    agents.note_identities("node-1", [WEB])
    assert agents.unnoted("node-1", [WEB, DB]) == {DB}
