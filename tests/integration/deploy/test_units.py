"""The systemd units of deploy/standalone: systemd knows every key, and the programs run as they are started there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections import defaultdict
from datetime import timedelta
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from istio_auth.clock import parse_duration
from istio_auth.daemon.folders import Folders
from istio_auth.daemon.lifecycle import STOP_WITHIN, Exit
from node_agent.limits import LimitsSettings
from tests.fakes.processes import program

SAMPLES = Path(__file__).parents[3] / "deploy" / "standalone"
UNITS = sorted(SAMPLES.glob("*.service"))
PROTECTED = {
    *("ProtectClock", "ProtectHostname", "ProtectControlGroups", "ProtectHome"),
    *("ProtectKernelLogs", "ProtectKernelModules", "ProtectKernelTunables"),
    *("NoNewPrivileges", "PrivateTmp", "PrivateDevices", "LockPersonality", "MemoryDenyWriteExecute"),
    *("RestrictNamespaces", "RestrictRealtime", "RestrictSUIDSGID"),
}
KNOWN = {
    "Unit": {"Description", "Wants", "After", "StartLimitIntervalSec", "StartLimitBurst"},
    "Service": {
        *("Type", "NotifyAccess", "ExecStart", "ExecReload", "User", "Group", "Environment", "UMask"),
        *("ConfigurationDirectory", "StateDirectory", "StateDirectoryMode"),
        *("RuntimeDirectory", "RuntimeDirectoryMode", "RuntimeDirectoryPreserve"),
        *("Restart", "RestartSec", "RestartPreventExitStatus", "WatchdogSec", "TimeoutStopSec"),
        *("LimitNOFILE", "LimitCORE", "MemorySwapMax", "CapabilityBoundingSet", "AmbientCapabilities"),
        *("ProtectSystem", "ProtectProc", "PrivateUsers", "RemoveIPC", "RestrictAddressFamilies", "KeyringMode"),
        *("SystemCallArchitectures", "SystemCallFilter", "SystemCallErrorNumber"),
        *PROTECTED,
    },
    "Install": {"WantedBy"},
}
MAY_BE_EMPTY = {"CapabilityBoundingSet", "AmbientCapabilities"}  # empty: none at all


def sections(unit: Path) -> dict[str, dict[str, list[str]]]:
    """Keys with their values, by section (systemd.syntax(7))."""
    found: dict[str, dict[str, list[str]]] = {}
    for line in unit.read_text().splitlines():
        if line.startswith("["):
            section = found.setdefault(line.strip("[]"), defaultdict(list))
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals, line
            section[key].append(value)
    return found


def service(unit: Path) -> dict[str, str]:
    """The keys of the service with one value each."""
    return {key: values[0] for key, values in sections(unit)["Service"].items() if len(values) == 1}


def environment(unit: Path) -> dict[str, str]:
    return dict(word.split("=", 1) for word in service(unit)["Environment"].split())


def command(unit: Path) -> list[str | Path]:
    """What the unit starts, as it is installed here."""
    path, *flags = service(unit)["ExecStart"].split()
    return [program(Path(path).name), *flags]


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
class TestEveryUnit:
    def test_has_known_keys_only_each_with_a_value(self, unit: Path) -> None:
        found = sections(unit)
        assert set(found) == set(KNOWN)
        for name, keys in found.items():
            assert set(keys) <= KNOWN[name]
            assert all(value for key, values in keys.items() if key not in MAY_BE_EMPTY for value in values)

    def test_is_what_systemd_takes_where_there_is_a_systemd_to_ask(self, unit: Path, tmp_path: Path) -> None:
        text = unit.read_text()
        assert text.count("\nExecStart=") == 1
        if verifier := shutil.which("systemd-analyze"):
            here = tmp_path / unit.name
            here.write_text(text.replace(service(unit)["ExecStart"], " ".join(map(str, command(unit)))))
            done = subprocess.run([verifier, "verify", here], capture_output=True, text=True, check=False)
            assert (done.returncode, done.stderr) == (0, "")

    def test_starts_a_program_of_ours_which_takes_its_flags(self, unit: Path) -> None:
        path, *flags = service(unit)["ExecStart"].split()
        assert Path(path).name in entry_points(group="console_scripts").names
        done = subprocess.run([*command(unit), "--help"], capture_output=True, text=True, check=False)
        assert done.returncode == 0, flags
        assert Path(path).name == unit.stem

    def test_gives_the_program_the_folders_that_are_its_defaults(self, unit: Path) -> None:
        assert Folders.of_user(1, environment(unit)) == Folders.of_user(0, {})
        path = {"PATH": os.environ["PATH"], "HOME": "/nowhere"}
        told = subprocess.run(
            [*command(unit), "check-config", "--output", "json"],
            env=environment(unit) | path,
            capture_output=True,
            text=True,
            check=False,
        )
        values = {row["name"]: row["value"] for row in json.loads(told.stdout)["settings"]}
        keys = service(unit)
        assert Path(values["state_folder"]) == Path("/var/lib") / keys["StateDirectory"]
        assert f"/etc/{keys['ConfigurationDirectory']}/" in values.get("trust_bundle", values["registrations"])
        if "run_folder" in values:
            assert Path(values["run_folder"]) == Path("/run") / keys["RuntimeDirectory"]

    def test_speaks_with_systemd_and_outlives_failures_but_not_mistakes(self, unit: Path) -> None:
        keys = service(unit)
        assert (keys["Type"], keys["Restart"]) == ("notify", "on-failure")
        assert keys["RestartPreventExitStatus"] == str(int(Exit.USAGE))
        assert parse_duration(keys["WatchdogSec"]) > timedelta()
        assert parse_duration(keys["TimeoutStopSec"]) > STOP_WITHIN
        assert "-HUP $MAINPID" in keys["ExecReload"]
        assert {"StartLimitIntervalSec", "StartLimitBurst"} <= sections(unit)["Unit"].keys()

    def test_is_closed(self, unit: Path) -> None:
        keys = service(unit)
        assert keys["ProtectSystem"] == "strict"
        assert keys["User"] not in {"", "root"}
        assert keys["CapabilityBoundingSet"] == ""
        assert {name: keys.get(name) for name in PROTECTED} == dict.fromkeys(PROTECTED, "yes")

    def test_runs_as_a_user_that_is_made(self, unit: Path) -> None:
        made = {line.split()[1] for line in (SAMPLES / "sysusers.conf").read_text().splitlines() if line[:2] == "u "}
        assert service(unit)["User"] in made


def test_the_agent_sees_the_processes_that_call_it() -> None:
    keys = service(SAMPLES / "node-agent.service")
    assert not {"PrivateUsers", "ProtectProc", "PrivatePIDs"} & keys.keys()


def test_the_agent_may_open_as_many_files_as_its_connections_take() -> None:
    limits = LimitsSettings()
    allowed = int(service(SAMPLES / "node-agent.service")["LimitNOFILE"])
    assert limits.at_the_door(allowed).connections == limits.connections
