"""Generated code is what the .proto files say, byte for byte."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import istio_auth

ROOT = Path(istio_auth.__file__).parent.parent
PROTOS = sorted(path.relative_to(ROOT) for path in ROOT.glob("istio_auth/proto/*.proto"))


def test_there_are_protos() -> None:
    assert {path.name for path in PROTOS} >= {"istio_ca.proto", "node.proto"}


@pytest.mark.parametrize("proto", PROTOS, ids=lambda path: path.name)
def test_generated_modules_are_those_of_their_proto(proto: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "grpc_tools.protoc", "--proto_path=.", f"--python_out={tmp_path}"]
    subprocess.run([*command, f"--pyi_out={tmp_path}", str(proto)], cwd=ROOT, check=True, timeout=60)
    for suffix in ("_pb2.py", "_pb2.pyi"):
        generated = proto.with_name(proto.stem + suffix)
        assert (tmp_path / generated).read_bytes() == (ROOT / generated).read_bytes(), f"run `make protos`: {generated}"
