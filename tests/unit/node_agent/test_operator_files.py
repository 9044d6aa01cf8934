"""The files that an operator writes for the agent."""

from __future__ import annotations

from pathlib import Path

import pytest

from istio_auth.errors import ConfigurationError
from istio_auth.spiffe_id import TrustDomain
from node_agent.operator_files import OperatorFile, local_registrations, trust_bundle
from tests.fakes.authority import FakeAuthority

LOCAL = TrustDomain("cluster.local")


def test_the_pinned_bundle_is_read(tmp_path: Path, authority: FakeAuthority) -> None:
    (tmp_path / "pin").write_bytes(authority.bundle().to_json())
    assert trust_bundle(tmp_path / "pin", LOCAL).read() == authority.bundle()


@pytest.mark.parametrize("content", [None, b"", b"garbage"])
def test_a_pinned_bundle_that_can_not_be_used_is_named(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "pin"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError) as refused:
        trust_bundle(path, LOCAL).read()
    assert str(path) in str(refused.value)


def test_registrations_are_read(tmp_path: Path) -> None:
    (tmp_path / "r").write_text('[[registration]]\nspiffe_id = "spiffe://cluster.local/a"\nselectors = ["unix:uid:1"]')
    (found,) = local_registrations(tmp_path / "r", LOCAL).read()
    assert found.spiffe_id.path == "/a"


def test_a_change_is_seen_once_and_a_mistake_told_once(tmp_path: Path) -> None:
    path = tmp_path / "number"
    path.write_text("1")
    file = OperatorFile(path, parse_number)
    assert file.read() == 1
    assert file.read_change() is None
    path.write_text("2")
    assert file.read_change() == 2
    path.write_text("two")
    with pytest.raises(ConfigurationError):
        file.read_change()
    assert file.read_change() is None
    path.unlink()
    with pytest.raises(ConfigurationError):
        file.read_change()
    assert file.read_change() is None
    path.write_text("3")
    assert file.read_change() == 3


def parse_number(text: bytes) -> int:
    if not text.isdigit():
        raise ConfigurationError("no number")
    return int(text)
