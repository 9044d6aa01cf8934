"""The manner of the house: what a reader may rely on in every module."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import istio_auth

ROOT = Path(istio_auth.__file__).parent.parent
MAX_LINES = 400
MAX_FUNCTION_LINES = 60
LONGER: dict[str, str] = {}  # a longer module, and why it is one
VAGUE = {"utils", "util", "manager", "helper", "helpers", "common", "data", "info", "misc", "ports"}

MODULES = [
    path
    for package in ("istio_auth", "ca", "node_agent")
    for path in sorted((ROOT / package).rglob("*.py"))
    if not path.name.endswith("_pb2.py")
]
TEST_FOLDERS = [path for path in (ROOT / "tests").rglob("*") if path.is_dir() and path.name != "__pycache__"]


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("path", MODULES, ids=named)
class TestEveryModule:
    def test_is_short_or_says_why_not(self, path: Path) -> None:
        lines = len(path.read_text().splitlines())
        assert lines <= MAX_LINES or named(path) in LONGER, f"{lines} lines"

    def test_has_functions_that_fit_on_a_screen(self, path: Path) -> None:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < MAX_FUNCTION_LINES, node.name

    def test_is_named_for_what_it_does(self, path: Path) -> None:
        assert not {path.stem, path.parent.name} & VAGUE

    def test_begins_with_its_one_job(self, path: Path) -> None:
        assert ast.get_docstring(ast.parse(path.read_text()))

    def test_leaves_nothing_for_later(self, path: Path) -> None:
        text = path.read_text()
        assert not [word for word in ("TODO", "FIXME", "XXX", "NotImplementedError") if word in text]


def test_no_exception_to_the_length_outlives_its_reason() -> None:
    for name, reason in LONGER.items():
        assert len((ROOT / name).read_text().splitlines()) > MAX_LINES
        assert reason


def test_every_test_folder_is_a_package() -> None:
    # Else two modules of one name in different folders would be one to pytest, and `ca` here the `ca` of the product.
    assert not [named(path) for path in TEST_FOLDERS if any(path.glob("*.py")) and not (path / "__init__.py").exists()]
