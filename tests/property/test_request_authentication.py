"""Whatever stands in a document or a file of policies, it is a policy or a mistake that is told: never a crash."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from istio_auth.errors import ConfigurationError
from istio_auth.policy.request_authentication import parse_request_authentication
from node_agent.sidecar.policy_file import read_request_authentications

NAMES = [
    "issuer",
    "audiences",
    "jwksUri",
    "jwks_uri",
    "jwks",
    "fromHeaders",
    "fromParams",
    "fromCookies",
    "forwardOriginalToken",
    "name",
    "prefix",
    "header",
    "claim",
    "outputPayloadToHeader",
    "outputClaimToHeaders",
    "spaceDelimitedClaims",
    "timeout",
    "selector",
    "matchLabels",
    "targetRef",
    "targetRefs",
    "kind",
    "group",
    "namespace",
    "jwtRules",
]
TEXTS = st.sampled_from(
    ["", "https://a.test", "http://[::1]:1/", "http://[", "https://a:b/", '{"keys": [{}]}', "Bearer ", "5s", "x-a"]
) | st.text(max_size=20)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | TEXTS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(NAMES) | st.text(max_size=5), inner, max_size=5)
        | st.dictionaries(st.integers(), inner, max_size=2)
    ),
    max_leaves=12,
)
RULES = st.fixed_dictionaries({}, optional={name: VALUES | TEXTS | st.lists(TEXTS, max_size=2) for name in NAMES})


@given(st.lists(RULES, max_size=3) | VALUES, VALUES)
def test_any_document_is_a_policy_or_is_refused(rules: object, selector: object) -> None:
    document = {
        "apiVersion": "security.istio.io/v1",
        "kind": "RequestAuthentication",
        "spec": {"jwtRules": rules, "selector": selector},
    }
    assert told(lambda: parse_request_authentication(document))


def told(read: Callable[[], object]) -> str:
    """What comes of reading: any other error fails the test."""
    try:
        return repr(read())
    except ConfigurationError as error:
        return str(error)


_PIECES = [
    "a: b",
    "\n",
    " ",
    "- ",
    "? ",
    "&a ",
    "*a",
    "<<: ",
    "!!python/object:os.system ",
    "|",
    ">",
    "{",
    "}",
    "[",
    "]",
]
_PIECES += ['"', "'", "#", "---", "...", "%YAML 1.1", "\t", "\0", "é", "0x1f", "1:2", "2024-01-01", "~", ":"]


@given(st.lists(st.sampled_from(_PIECES) | st.text(max_size=3), max_size=30).map("".join))
def test_any_file_holds_policies_or_is_refused(text: str) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "policies.yaml"
        path.write_text(text, errors="replace")
        assert told(lambda: read_request_authentications(path))
