"""What the documents name exists: paths, tests, make targets, commands with their options, and metrics."""

from __future__ import annotations

import ast
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from ca.app import PROGRAM as ISTIO_CA
from ca.cli.program import app as ca_cli
from istio_auth.daemon.command import _app
from node_agent.cli import PROGRAM as NODE_AGENT

ROOT = Path(__file__).parents[2]
# Decisions are left out: they tell what was thought of, and how things were.
DOCUMENTS = sorted(
    path
    for pattern in ("*.md", "docs/*.md", "docs/guides/*.md", "deploy/**/*.md", "docs/adr/README.md")
    for path in ROOT.glob(pattern)
)
COMMANDS = {
    "ca-cli": get_command(ca_cli),
    "istio-ca": get_command(_app(ISTIO_CA)),
    "node-agent": get_command(_app(NODE_AGENT)),
}
TESTS = sorted(set(re.findall(r"`(tests/\S+\.py(?:::\w+)+)`", (ROOT / "SECURITY.md").read_text())))
METRICS = {name for path in DOCUMENTS for name in re.findall(r"\b(?:istio_auth|citadel)_\w+_\w+\b", path.read_text())}
SOURCES = "".join(
    path.read_text() for package in ("istio_auth", "ca", "node_agent") for path in (ROOT / package).rglob("*.py")
)
_FENCED = re.compile(r"^```\w*\n.*?^```", re.DOTALL | re.MULTILINE)
_SHELL = re.compile(r"^```sh\n(.*?)^```", re.DOTALL | re.MULTILINE)
_INLINE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)")
_PATH = re.compile(r"(?:\.ci|bench|ca|deploy|docs|istio_auth|node_agent|tests)/[\w./-]*|[A-Z]+\.md|Makefile")
_MAKE = re.compile(r"^make +([a-z][\w-]*)", re.MULTILINE)
_USE = re.compile(r"(?:^|[\s;(])(ca-cli|istio-ca|node-agent)((?: +(?![|>&;#])\S+)*)", re.MULTILINE)


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def test_the_security_document_names_tests() -> None:
    assert len(TESTS) > 50


@pytest.mark.parametrize("name", TESTS)
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


def test_each_named_metric_is_exported() -> None:
    assert {name for name in METRICS if not is_exported(name.removesuffix("_total"))} == set()
    assert not is_exported("istio_auth_agent_no_such_metric")


def is_exported(name: str) -> bool:
    short = re.sub("^(istio_auth_agent|citadel_server)_", "", name)  # which the code puts before all of their kind
    return any(f'"{word}"' in SOURCES for word in (name, short))


@pytest.mark.parametrize("document", DOCUMENTS, ids=named)
class TestEveryDocument:
    def test_names_paths_that_exist(self, document: Path) -> None:
        text = document.read_text()
        links = [document.parent / target for target in _LINK.findall(text)]
        paths = [ROOT / word for word in _INLINE.findall(_FENCED.sub("", text)) if _PATH.fullmatch(word)]
        assert [named(path) for path in (*links, *paths) if not path.exists()] == []

    def test_names_make_targets_that_exist(self, document: Path) -> None:
        targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
        named = {word for code in pieces_of_code(document.read_text()) for word in _MAKE.findall(code)}
        assert named - targets == set()

    def test_shows_commands_that_exist_with_options_that_they_have(self, document: Path) -> None:
        assert list(unknown_words(document.read_text())) == []

    def test_quotes_lines_of_the_log_as_they_are(self, document: Path) -> None:
        quoted = [code for code in _INLINE.findall(_FENCED.sub("", document.read_text())) if code.startswith('"')]
        assert [line for line in quoted if line not in SOURCES] == []


def test_a_command_that_does_not_exist_is_found() -> None:
    text = "```sh\nca-cli sign\nca-cli token create --forever x | grep\nnode-agent --naem x \\\n --name y\n```\n"
    assert list(unknown_words(text + "`istio-ca check-config --nothing`")) == [
        "ca-cli sign",
        "ca-cli token create --forever",
        "node-agent --naem",
        "istio-ca check-config --nothing",
    ]


def unknown_words(text: str) -> Iterator[str]:
    """Subcommands and options that our programs do not have, in every piece of code that begins with one of them."""
    for code in pieces_of_code(text):
        for name, rest in _USE.findall(code.replace("\\\n", " ")):
            yield from _unknown(name, shlex.split(rest, comments=True) if "'" in rest or '"' in rest else rest.split())


def pieces_of_code(text: str) -> Iterator[str]:
    """What stands in a shell's block, in an indented line, or between backticks."""
    yield from _SHELL.findall(text)
    rest = _FENCED.sub("", text)
    yield from _INLINE.findall(rest)
    yield from re.findall(r"^ {4}(.*)$", rest, re.MULTILINE)


def _unknown(name: str, words: list[str]) -> Iterator[str]:
    command = COMMANDS[name]
    for word in words:
        below = getattr(command, "commands", {})
        if word == "--":  # it was the name of a user
            return
        if word.startswith("--"):
            known = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
            if word.partition("=")[0] not in known | {"--help"}:
                yield f"{name} {word}"
        elif word in below:
            command, name = below[word], f"{name} {word}"
        elif below and command is COMMANDS["ca-cli"]:  # the others may be given a value here
            yield f"{name} {word}"
            return
