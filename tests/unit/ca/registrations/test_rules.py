"""The registrations file: taken whole or not at all, and each mistake is told with its place."""

from __future__ import annotations

from datetime import timedelta
from typing import TypeAlias

import pytest

from ca.issuer import ReservedNames
from ca.registrations.rules import RegistrationRules, parse_registrations
from ca.registrations.table import RegistrationHistory, RegistrationTable
from ca.registry import Grant
from istio_auth.errors import ConfigurationError
from istio_auth.registration import Selector
from istio_auth.spiffe_id import SpiffeID, TrustDomain

DOMAIN = TrustDomain("cluster.local")
RULES = RegistrationRules(DOMAIN, timedelta(days=90), ReservedNames.of(DOMAIN, ["istio-ca.test"]).check)
WEB = SpiffeID.parse("spiffe://cluster.local/ns/default/sa/web")
Value: TypeAlias = str | int | bool | list[str] | list[int]
GOOD: dict[str, Value] = {
    "spiffe_id": str(WEB),
    "agents": ["node-1"],
    "selectors": ["unix:uid:1000"],
    "ttl": "1h",
    "dns_names": ["web.default.svc"],
    "hint": "frontend",
}


def toml(*entries: dict[str, Value]) -> bytes:
    lines: list[str] = []
    for entry in entries:
        lines.append("[[registration]]")
        lines += [f'"{key}" = {_value(value)}' for key, value in entry.items()]
    return "\n".join(lines).encode()


def _value(value: Value) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return '"' + "".join(f"\\u{ord(character):04x}" for character in value) + '"'
    return repr(value) if isinstance(value, int) else "[" + ", ".join(map(_value, value)) + "]"


def parse(*entries: dict[str, Value]) -> RegistrationTable:
    return parse_registrations(toml(*entries), RULES)


def test_a_registration_is_read_with_all_it_says() -> None:
    table = parse(GOOD)
    (registration,) = table.of_agent("node-1").values()
    assert registration.spiffe_id == WEB
    assert registration.selectors == {Selector("unix", "uid:1000")}
    assert (registration.ttl, registration.dns_names) == (timedelta(hours=1), ("web.default.svc",))
    assert registration.hint == "frontend"
    assert table.grant_of(WEB, agent="node-1") == Grant(WEB, timedelta(hours=1), ("web.default.svc",))


def test_what_is_optional_may_be_left_out() -> None:
    table = parse({key: GOOD[key] for key in ("spiffe_id", "agents", "selectors")})
    assert table.grant_of(WEB, agent="node-1") == Grant(WEB)


def test_an_empty_file_registers_nothing() -> None:
    assert len(parse_registrations(b"", RULES)) == 0
    assert parse_registrations(b"# nothing yet\n", RULES).grant_of(WEB) is None


def test_an_agent_has_its_own_registrations_and_no_others() -> None:
    table = parse(GOOD | {"agents": ["node-1", "node-2"]})
    assert table.of_agent("node-2") == table.of_agent("node-1")
    assert not table.of_agent("node-3")
    assert table.grant_of(WEB, agent="node-3") is None


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spiffe_id", "spiffe://other.test/ns/default/sa/web"),
        ("spiffe_id", "spiffe://cluster.local"),
        ("spiffe_id", "spiffe://cluster.local/ca"),
        ("spiffe_id", "spiffe://cluster.local/agent/node-2"),
        ("spiffe_id", "spiffe://cluster.local/agent/a/b"),
        ("spiffe_id", "spiffe://cluster.local/ns/default/sa/web\n"),
        ("spiffe_id", "spiffe://cluster.local/ns/def%61ult/sa/web"),
        ("spiffe_id", "spiffe://cluster.local/ns/../sa/web"),
        ("spiffe_id", "spiffe://cluster.local/ns/default/sa/wéb"),
        ("spiffe_id", "spiffe://cluster.local/" + "a" * 3000),
        ("spiffe_id", "web"),
        ("spiffe_id", ""),
        ("spiffe_id", 5),
        ("agents", []),
        ("agents", "node-1"),
        ("agents", ["node-1", "node-1"]),
        ("agents", ["../node-1"]),
        ("agents", [1]),
        ("agents", ["*"]),
        ("selectors", []),
        ("selectors", ["uid"]),
        ("selectors", ["unix:uid:1000", "unix:uid:1000"]),
        ("selectors", ["unix:uid 1000"]),
        ("selectors", [f"unix:uid:{n}" for n in range(33)]),
        ("ttl", "1 hour"),
        ("ttl", "0s"),
        ("ttl", "10ms"),
        ("ttl", "91d"),
        ("ttl", 3600),
        ("dns_names", ["Web"]),
        ("dns_names", ["*.web"]),
        ("dns_names", ["istio-ca.test"]),
        ("dns_names", [f"n{n}.test" for n in range(33)]),
        ("dns_names", "web"),
        ("hint", "a\nb"),
        ("hint", "a" * 256),
        ("hint", True),
        ("ttls", "1h"),
        ("spiffe-id", str(WEB)),
        ("a\nb", "x"),
    ],
)
def test_a_mistake_is_told_with_its_number_and_key(key: str, value: Value) -> None:
    other = GOOD | {"spiffe_id": "spiffe://cluster.local/ns/default/sa/other"}
    broken = GOOD | ({key: value} if "\n" not in key else {"a": "x"})
    with pytest.raises(ConfigurationError) as caught:
        parse(other, broken)
    assert str(caught.value).startswith("registration 2: ")
    assert key in str(caught.value) or "\n" in key
    assert "\n" not in str(caught.value)
    parse(other, GOOD)


@pytest.mark.parametrize("key", ["spiffe_id", "agents", "selectors"])
def test_what_is_needed_must_be_there(key: str) -> None:
    with pytest.raises(ConfigurationError, match=f"registration 1: '{key}'"):
        parse({name: value for name, value in GOOD.items() if name != key})


@pytest.mark.parametrize(
    "text",
    [
        b"registration = 1",
        b"registration = [1]",
        b"[registration]\nspiffe_id = 'x'",
        b"[[registrations]]",
        b"version = 1",
        b"[[registration]",
        b"\xff",
        b"a = " + b"[" * 5000,
    ],
)
def test_what_is_no_list_of_registrations_is_refused(text: bytes) -> None:
    with pytest.raises(ConfigurationError):
        parse_registrations(text, RULES)


def test_the_same_id_for_the_same_workload_twice_is_a_mistake() -> None:
    with pytest.raises(ConfigurationError, match="registration 2"):
        parse(GOOD, GOOD | {"hint": "other", "agents": ["node-2", "node-1"]})
    with pytest.raises(ConfigurationError, match="registration 2"):
        parse(GOOD | {"selectors": ["unix:uid:1", "unix:gid:2"]}, GOOD | {"selectors": ["unix:gid:2", "unix:uid:1"]})
    parse(GOOD, GOOD | {"agents": ["node-2"]})
    parse(GOOD, GOOD | {"selectors": ["unix:uid:1001"]})


@pytest.mark.parametrize(("key", "value"), [("ttl", "2h"), ("dns_names", ["other.default.svc"])])
def test_registrations_of_one_id_for_one_agent_must_agree(key: str, value: Value) -> None:
    other = GOOD | {"selectors": ["unix:uid:1001"]}
    with pytest.raises(ConfigurationError, match=f"registration 2: '{key}'"):
        parse(GOOD, other | {key: value})
    parse(GOOD, other)
    parse(GOOD, other | {key: value, "agents": ["node-2"]})


def test_what_all_agents_allow_is_the_least_of_it() -> None:
    table = parse(
        GOOD | {"dns_names": ["a.test", "b.test"]},
        GOOD | {"agents": ["node-2"], "ttl": "30m", "dns_names": ["b.test", "c.test"]},
    )
    assert table.grant_of(WEB) == Grant(WEB, timedelta(minutes=30), ("b.test",))


def test_a_registration_keeps_its_key_while_id_and_selectors_stay() -> None:
    (before,) = parse(GOOD).of_agent("node-1")
    assert list(parse(GOOD | {"ttl": "2h", "dns_names": [], "hint": ""}).of_agent("node-1")) == [before]
    assert list(parse(GOOD | {"selectors": ["unix:uid:1001"]}).of_agent("node-1")) != [before]


def test_an_agent_is_told_what_changed_since_its_revision() -> None:
    db: dict[str, Value] = GOOD | {"spiffe_id": "spiffe://cluster.local/ns/default/sa/db"}
    history = RegistrationHistory("e1", parse(GOOD))
    assert history.replace(parse(GOOD, db))
    assert history.replace(parse(db | {"ttl": "2h"}))
    assert not history.replace(parse(db | {"ttl": "2h"}))
    delta = history.delta("node-1", epoch="e1", revision=2)
    assert delta is not None
    assert (delta.from_revision, delta.to_revision) == (2, 3)
    assert [registration.ttl for registration in delta.put.values()] == [timedelta(hours=2)]
    assert delta.removed == tuple(parse(GOOD).of_agent("node-1"))
    assert history.delta("node-1", epoch="e1", revision=3) is None


def test_an_agent_whom_a_change_does_not_concern_is_told_nothing() -> None:
    history = RegistrationHistory("e1", parse(GOOD))
    history.replace(parse(GOOD, GOOD | {"agents": ["node-2"]}))
    assert history.delta("node-1", epoch="e1", revision=1) is None
    assert history.delta("node-2", epoch="e1", revision=1) is not None


@pytest.mark.parametrize(("epoch", "revision"), [("", 0), ("other", 2), ("e1", 0), ("e1", 99), ("e1", 1)])
def test_an_agent_of_another_epoch_or_from_long_ago_is_told_everything(epoch: str, revision: int) -> None:
    history = RegistrationHistory("e1", parse())
    for number in range(10):
        history.replace(parse(GOOD | {"ttl": f"{number + 1}h"}))
    delta = history.delta("node-1", epoch=epoch, revision=revision)
    assert delta is not None
    assert (delta.from_revision, delta.to_revision, len(delta.put)) == (0, 11, 1)


def test_an_agent_without_registrations_learns_that_it_has_none() -> None:
    delta = RegistrationHistory("e1", parse(GOOD)).delta("node-9", epoch="", revision=0)
    assert delta is not None
    assert (delta.from_revision, dict(delta.put), delta.removed) == (0, {}, ())
