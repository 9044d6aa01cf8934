"""The agent killed at every single write: the next start needs nobody, and nothing is half, lost or open to others."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from istio_auth.keys import public_key_der
from istio_auth.pem import read_private_key
from tests.integration.crashing_agent import ME

WRITTEN = ["node-key.pem", "boot-id", "spent-token", "svid.pem", "registrations.json", "bundles.json"]


def test_an_agent_killed_at_any_write_comes_back_by_itself_with_nothing_half_lost_or_open_to_others(
    tmp_path: Path,
) -> None:
    lives = all_lives(tmp_path)
    every_single_write_was_visited(lives)
    the_next_start_comes_back_by_itself(lives)
    the_key_that_the_ca_counts_on_is_the_one_that_is_kept(lives)
    a_token_that_was_spent_and_not_noted_costs_one_question(lives)
    what_was_kept_before_the_death_is_served_after_it(lives)
    nothing_is_open_to_others_or_left_lying_about(lives)


def all_lives(base: Path) -> list[Path]:
    """The folders of all lives, the one that nothing ended last. They cost ten seconds: one test looks at them all."""
    command = [sys.executable, "-m", "tests.integration.crashing_agent", str(base)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, (done.stdout + done.stderr)[-5000:]
    return sorted(base.iterdir(), key=lambda folder: int(folder.name))


def second(folder: Path) -> dict[str, Any]:
    """What the life after the death came to."""
    found: dict[str, Any] = json.loads((folder / "second").read_text())
    return found


def every_single_write_was_visited(lives: list[Path]) -> None:
    steps = (lives[-1] / "trace").read_text().splitlines()
    assert [int(folder.name) for folder in lives] == list(range(1, len(steps) + 2))
    assert [name for name in WRITTEN if f"rename to {name}" not in steps] == []
    assert any(step.startswith("remove ") and step.endswith(".pem") for step in steps)
    assert steps.index("rename to node-key.pem") < steps.index("rename to spent-token")


def the_next_start_comes_back_by_itself(lives: list[Path]) -> None:
    for folder in lives[:-1]:
        found = second(folder)
        assert (found["lives"], found["trouble"], found["sequence"]) == (True, None, 2), folder.name
        assert found["held"] == ["/web"], folder.name


def the_key_that_the_ca_counts_on_is_the_one_that_is_kept(lives: list[Path]) -> None:
    for folder in lives:
        key = read_private_key((folder / "state/node-key.pem").read_bytes())
        remembered = json.loads((folder / "ca").read_text())["keys"][str(ME)]
        assert remembered == hashlib.sha256(public_key_der(key.public_key())).hexdigest(), folder.name


def a_token_that_was_spent_and_not_noted_costs_one_question(lives: list[Path]) -> None:
    ways = {tuple(call for call in second(folder)["calls"] if call != "sign") for folder in lives[:-1]}
    recovered = ("challenge /agent/node-1", "recover")
    assert ways == {("enrol",), ("enrol", *recovered), recovered, ()}


def what_was_kept_before_the_death_is_served_after_it(lives: list[Path]) -> None:
    restored = [second(folder)["restored"] for folder in lives[:-1]]
    assert restored[-1] == ["/web"]
    assert ["/api", "/web"] in restored
    whole = restored.index(["/api", "/web"])
    assert all("/web" in found for found in restored[whole:])


def nothing_is_open_to_others_or_left_lying_about(lives: list[Path]) -> None:
    for folder in lives:
        for part in (folder / "state", folder / "workloads"):
            assert part.stat().st_mode & 0o777 == 0o700
            assert {path.stat().st_mode & 0o777 for path in part.iterdir()} == {0o600}, folder.name
            assert not list(part.glob(".*")), folder.name
