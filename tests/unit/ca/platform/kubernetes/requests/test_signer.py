"""Who a signer is: names that Kubernetes takes, and none of its own."""

from __future__ import annotations

from dataclasses import replace

import pytest

from ca.platform.kubernetes.requests.signer import DEFAULT_SIGNER_NAME
from istio_auth.errors import ConfigurationError
from tests.fakes.certificate_requests import SIGNER


@pytest.mark.parametrize(
    "name",
    [DEFAULT_SIGNER_NAME, "example.com/a", "a.b/c.d.e", f"{'a' * 63}.example.com/{'b' * 63}", "ca-1.example/x-1"],
)
def test_a_domain_and_a_path_name_a_signer(name: str) -> None:
    assert replace(SIGNER, name=name).name == name


@pytest.mark.parametrize(
    "name",
    [
        *("", "workload", "example/workload", "example.com/", "/workload", "example.com/a/b", "Example.com/a"),
        *("example.com/A", "-a.example.com/a", "example..com/a", "example.com/a.", "example.com/a\n", "é.example/a"),
        f"{'a' * 64}.example.com/a",
        f"{'a.' * 127}com/a",
        "example.com/" + ".".join(["b" * 60] * 10),
        "kubernetes.io/workload",
        "apps.kubernetes.io/workload",
    ],
)
def test_what_kubernetes_would_not_take_from_us_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError):
        replace(SIGNER, name=name)
