"""Reads a file of Istio's policies: YAML, several documents, written by an operator and yet read with care.

Only plain data is made of it. A name that comes twice in one object is refused, for nobody knows which of the two
counts; so are anchors, with which a few lines can stand for gigabytes.
"""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path

import yaml

from istio_auth.errors import ConfigurationError, IstioAuthError
from istio_auth.files import read_bounded
from istio_auth.policy.request_authentication import RequestAuthentication, parse_request_authentication

_MAX_BYTES = 1 << 20


def read_request_authentications(path: Path) -> tuple[RequestAuthentication, ...]:
    """The policies in a file; at least one.

    Raises:
        ConfigurationError: it can not be read, or holds something else; the message names the file and the document.
    """
    policies: list[RequestAuthentication] = []
    for number, document in enumerate(_documents(path), 1):
        try:
            policies.append(parse_request_authentication(document))
        except ConfigurationError as error:
            raise ConfigurationError(f"{path}, document {number}: {error}") from error
    if not policies:
        raise ConfigurationError(f"{path}: no policy is in it")
    return tuple(policies)


def _documents(path: Path) -> list[object]:
    try:
        text = read_bounded(path, _MAX_BYTES)
    except IstioAuthError as error:
        raise ConfigurationError(str(error)) from error
    try:
        documents = list(yaml.load_all(text, Loader=_Loader))
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigurationError(f"{path}: no YAML: {error or type(error).__name__}") from error
    return [item for document in documents if document is not None for item in _items(document)]


def _items(document: object) -> list[object]:
    """What is in a list of Kubernetes (`kubectl get -o yaml` writes one); of anything else itself."""
    if isinstance(document, dict) and document.get("kind") == "List" and isinstance(document.get("items"), list):
        return list(document["items"])
    return [document]


class _Loader(yaml.SafeLoader):
    """Plain data, without anchors and repeated names."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]  # published so
        if getattr(event, "anchor", None) is not None:
            raise yaml.composer.ComposerError(None, None, "anchors are not taken: write it out", event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, object]:
        names = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        if len(set(names)) != len(names):
            repeated = next(name for name in names if names.count(name) > 1)
            raise yaml.constructor.ConstructorError(None, None, f"{repeated!r} comes twice", node.start_mark)
        made: dict[Hashable, object] = super().construct_mapping(node, deep)
        return made


# A date is a text here, as it is for Kubernetes; and '<<' is no way to take another object's fields.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":merge"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
