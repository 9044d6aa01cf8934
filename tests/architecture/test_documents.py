"""What the documents name exists: every test that SECURITY.md stands on."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NAMED = sorted(set(re.findall(r"`(tests/\S+\.py(?:::\w+)+)`", (ROOT / "SECURITY.md").read_text())))


def test_the_security_document_names_tests() -> None:
    assert len(NAMED) > 50


@pytest.mark.parametrize("name", NAMED)
def test_each_named_test_exists(name: str) -> None:
    path, *parts = name.split("::")
    body = ast.parse((ROOT / path).read_text()).body
    for part in parts:
        found = [
            node
            for node in body
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and node.name == part
        ]
        assert found, f"{path} has no {part}"
        body = found[0].body
