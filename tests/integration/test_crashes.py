"""The CA killed at every single write, and its plug pulled: the next start works, with the same root and no gap."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from ca.authority.state import AuthorityState
from ca.authority.store import FileAuthorityStore
from ca.certificate.build import key_identifier
from istio_auth.keys import public_key_der, public_key_of

# In this order, whatever stands between them: content before name, name before folder.
DURABLE = ["create temporary", "set mode temporary", "write temporary", "write the rest temporary", "sync temporary"]
DURABLE += ["rename to authority.json", "sync ca"]
RECORDED = ["write issuance.log", "write the rest issuance.log", "sync data issuance.log"]


@pytest.fixture(scope="module", params=["killed", "unplugged"])
def lives(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folders of all lives, the one that nothing ended last."""
    base = tmp_path_factory.mktemp("lives")
    command = [sys.executable, "-m", "tests.integration.crashing_ca", str(base), request.param]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    return sorted(base.iterdir(), key=lambda folder: int(folder.name))


def said(folder: Path, life: str, what: str) -> list[str]:
    if not (folder / life).exists():
        return []
    words = [line.partition(" ") for line in (folder / life).read_text().splitlines()]
    return [value for word, _, value in words if word == what]


def identifiers(state: AuthorityState) -> set[str]:
    """What identifies the keys of all roots in a state."""
    roots = state.bundle().x509_authorities
    return {key_identifier(public_key_der(public_key_of(root))).hex() for root in roots}


def test_a_whole_life_writes_what_it_should_in_the_order_that_lasts(lives: list[Path]) -> None:
    trace = (lives[-1] / "trace").read_text().splitlines()
    first = trace.index("create temporary")
    assert trace[first : first + len(DURABLE)] == DURABLE
    counts = Counter(trace)
    assert {counts[step] for step in DURABLE} == {2}  # the first start and the renewal
    assert {counts[step] for step in RECORDED} == {3}  # one order, a batch, one order after the renewal
    assert trace.index("sync ca") < trace.index("write issuance.log")


def test_every_single_write_was_visited(lives: list[Path]) -> None:
    steps = (lives[-1] / "trace").read_text().splitlines()
    assert [int(folder.name) for folder in lives] == list(range(1, len(steps) + 2))
    for folder in lives[:-1]:
        assert said(folder, "first", "done") == []
        assert said(folder, "second", "done") == [""]
    assert said(lives[-1], "first", "done") == [""]


def test_the_next_start_has_the_root_that_was_there_and_there_is_never_another(lives: list[Path]) -> None:
    found = 0
    for folder in lives[:-1]:
        roots = {*said(folder, "first", "root"), *said(folder, "second", "root")}
        if (folder / "stored").exists():
            roots |= identifiers(AuthorityState.from_json((folder / "stored").read_bytes()))
            found += 1
        last = FileAuthorityStore(folder / "ca").load()
        assert last is not None
        assert roots | identifiers(last.value) == roots
        assert len(roots) == 1, folder.name
    assert found >= len(RECORDED) * 3


def test_no_certificate_that_left_is_missing_from_the_record(lives: list[Path]) -> None:
    for folder in lives:
        released = [*said(folder, "first", "issued"), *said(folder, "second", "issued")]
        lines = [json.loads(line) for line in (folder / "issuance.log").read_text().splitlines()]
        assert set(released) <= {line["serial"] for line in lines}, folder.name
        assert [line["sequence"] for line in lines] == list(range(1, len(lines) + 1))
        assert len({line["serial"] for line in lines}) == len(lines)


def test_the_sequence_of_the_bundle_never_goes_back(lives: list[Path]) -> None:
    for folder in lives[:-1]:
        last = FileAuthorityStore(folder / "ca").load()
        assert last is not None
        if (folder / "stored").exists():
            assert last.value.sequence > AuthorityState.from_json((folder / "stored").read_bytes()).sequence


def test_nothing_is_left_lying_about(lives: list[Path]) -> None:
    for folder in lives:
        assert {path.name for path in (folder / "ca").iterdir()} == {"authority.json", "authority.lock"}
