"""The file of policies: several documents, plain data only, and nothing in it that could mean two things."""

from __future__ import annotations

from pathlib import Path

import pytest

from istio_auth.errors import ConfigurationError
from node_agent.sidecar.policy_file import read_request_authentications

POLICY = """
apiVersion: security.istio.io/v1
kind: RequestAuthentication
metadata:
  name: {name}
  creationTimestamp: 2026-01-01T00:00:00Z
spec:
  jwtRules:
  - issuer: https://issuer.test
    audiences: [{audience}]
"""


def policy(name: str = "tokens", audience: str = "web") -> str:
    return POLICY.format(name=name, audience=audience)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "policies.yaml"


def test_a_file_holds_several_documents_some_of_which_are_empty(file: Path) -> None:
    file.write_text(f"---\n{policy('a')}\n---\n# nothing\n---\n{policy('b')}\n...\n")
    assert [one.name for one in read_request_authentications(file)] == ["a", "b"]


def test_a_list_as_kubectl_writes_it_is_its_items(file: Path) -> None:
    indented = ["\n  ".join(policy(name).strip().splitlines()) for name in "ab"]
    items = "".join(f"- {one}\n" for one in indented)
    file.write_text(f"apiVersion: v1\nkind: List\nmetadata: {{resourceVersion: ''}}\nitems:\n{items}---\n{policy('c')}")
    assert [one.name for one in read_request_authentications(file)] == ["a", "b", "c"]


def test_a_date_is_a_text(file: Path) -> None:
    file.write_text(policy("2026-01-01", "2026-01-01"))
    (read,) = read_request_authentications(file)
    assert (read.name, read.jwt_rules[0].audiences) == ("2026-01-01", ("2026-01-01",))


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no policy"),
        ("---\n---\n", "no policy"),
        (policy() + "  selector: {}\n  selector: {}\n", "'selector' comes twice"),
        ("a: {b: 1, b: 2}", "'b' comes twice"),
        ("a: &one [1]\nb: *one", "anchors are not taken"),
        ("a: &one\nb: 2", "anchors are not taken"),
        ("<<: {a: 1}", "kind: expected"),
        ("a: !!python/object/apply:os.getcwd []", "could not determine a constructor"),
        ("a: [", "line 1"),
        ("[" * 2000, "recursion"),
        ("a: \0", "not allowed"),
        (policy() + "---\n- 1\n", "document 2: "),
        (policy() + "---\nkind: AuthorizationPolicy\n", "document 2: kind: "),
        ("#" * ((1 << 20) + 1), "larger than"),
    ],
)
def test_what_is_unclear_is_refused_with_its_file_and_place(text: str, told: str, file: Path) -> None:
    file.write_text(text)
    with pytest.raises(ConfigurationError) as caught:
        read_request_authentications(file)
    assert str(file) in str(caught.value)
    assert told in str(caught.value)


def test_doubling_anchors_cost_nothing(file: Path) -> None:
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [*a{n - 1}, *a{n - 1}]" for n in range(1, 60)]
    file.write_text("\n".join(lines))
    with pytest.raises(ConfigurationError, match="anchors"):
        read_request_authentications(file)


def test_a_file_that_is_not_there_is_told(file: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"policies\.yaml"):
        read_request_authentications(file)
