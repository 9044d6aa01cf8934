"""Which unit and control group a caller runs in, and which it only claims to."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from istio_auth.door import UnixCaller
from istio_auth.errors import ConfigurationError
from istio_auth.registration import Selector
from node_agent.attest.systemd import SystemdAttestor


def seen(folder: Path, text: str) -> set[str]:
    (folder / "7").mkdir(exist_ok=True)
    (folder / "7/cgroup").write_bytes(text.encode())
    return set(map(str, asyncio.run(SystemdAttestor(folder).attest(UnixCaller(1, 1, 7, "main")))))


@pytest.mark.parametrize(
    ("path", "unit"),
    [
        ("/system.slice/web.service", "web.service"),
        ("/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service"),
        ("/shop.slice/web.service/workers", "web.service"),
        ("/system.slice/docker-0a1b.scope", "docker-0a1b.scope"),
        ("/init.scope", "init.scope"),
    ],
)
def test_the_unit_is_the_first_part_below_the_slices(tmp_path: Path, path: str, unit: str) -> None:
    assert seen(tmp_path, f"0::{path}\n") == {f"cgroup:path:{path}", f"systemd:unit:{unit}"}


@pytest.mark.parametrize(
    "path",
    [
        "/system.slice/evil.service/web.service",
        "/user.slice/user-1000.slice/user@1000.service/app.slice/web.service",
        "/kubepods/pod1/web.service",
        "/web.service.d",
    ],
)
def test_a_name_further_down_is_nobodys_unit(tmp_path: Path, path: str) -> None:
    assert "systemd:unit:web.service" not in seen(tmp_path, f"0::{path}\n")
    assert f"cgroup:path:{path}" in seen(tmp_path, f"0::{path}\n")


def test_systemds_own_hierarchy_is_read_where_there_is_no_unified_one(tmp_path: Path) -> None:
    text = "8:pids:/other.slice\n1:name=systemd:/system.slice/web.service\n0::/\n"
    assert seen(tmp_path, text) == {"cgroup:path:/system.slice/web.service", "systemd:unit:web.service"}


@pytest.mark.parametrize("text", ["", "0::/\n", "0::/../outside\n", "8:pids:/system.slice/web.service\n"])
def test_a_process_of_no_unit_has_none(tmp_path: Path, text: str) -> None:
    assert seen(tmp_path, text) == set()


def test_a_process_that_is_gone_has_none(tmp_path: Path) -> None:
    assert asyncio.run(SystemdAttestor(tmp_path).attest(UnixCaller(1, 1, 8, "main"))) == frozenset()


@pytest.mark.parametrize("end", ["\r", "\x0b", "\x0c", "\x1c", "\x85", "\u2028"])
def test_a_user_can_not_call_a_group_of_his_so_that_it_reads_as_another_line(tmp_path: Path, end: str) -> None:
    own = "/user.slice/user-1000.slice/user@1000.service/x"
    text = f"1:name=systemd:{own}{end}0::/system.slice/web.service\n0::/user.slice/user-1000.slice\n"
    assert seen(tmp_path, text) == {"cgroup:path:/user.slice/user-1000.slice"}


def test_a_registration_can_ask_for_it_and_is_told_when_it_is_spelled_wrong() -> None:
    for text in ("systemd:unit:web.service", "cgroup:path:/system.slice/web.service"):
        assert str(Selector.parse(text)) == text
    for text in ("systemd:web.service", "systemd:unit:web", "cgroup:/system.slice"):
        with pytest.raises(ConfigurationError, match="fits nobody: write"):
            Selector.parse(text)
