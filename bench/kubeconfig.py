"""The way of the bare clients to the API server: a kubeconfig as `tests.cluster` writes it, read by nothing of ours."""

from __future__ import annotations

import base64
import json
import ssl
import tempfile
from pathlib import Path
from typing import Any

JSON = dict[str, Any]


def address(kubeconfig: str) -> str:
    """Where the API server is."""
    url: str = _part(kubeconfig, "cluster")["server"]
    return url


def tls_context(kubeconfig: str) -> ssl.SSLContext:
    """What trusts the API server, and shows the certificate of the user."""
    cluster, user = _part(kubeconfig, "cluster"), _part(kubeconfig, "user")
    context = ssl.create_default_context(cadata=_decoded(cluster["certificate-authority-data"]))
    with tempfile.NamedTemporaryFile("w") as file:  # a context loads keys from files alone
        file.write(_decoded(user["client-certificate-data"]) + _decoded(user["client-key-data"]))
        file.flush()
        context.load_cert_chain(file.name)
    return context


def _part(kubeconfig: str, kind: str) -> JSON:
    (entry,) = json.loads(Path(kubeconfig).read_text())[f"{kind}s"]
    part: JSON = entry[kind]
    return part


def _decoded(text: str) -> str:
    return base64.b64decode(text).decode()
