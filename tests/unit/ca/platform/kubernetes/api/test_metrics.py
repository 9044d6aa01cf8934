"""What the API server is asked is counted, each try by itself, and shown."""

from __future__ import annotations

from prometheus_client import CollectorRegistry

from ca.platform.kubernetes.api.client import KubernetesAPI
from ca.platform.kubernetes.api.metrics import APICalls
from ca.platform.kubernetes.api.resources import CERTIFICATE_SIGNING_REQUESTS, SECRETS
from tests.fakes.api_server import FakeAPIServer


async def test_each_request_counts_by_verb_and_resource_and_one_that_is_repeated_counts_again(
    server: FakeAPIServer, api: KubernetesAPI
) -> None:
    registry = CollectorRegistry()
    APICalls(registry, api.calls)

    def shown(verb: str, resource: str) -> float | None:
        return registry.get_sample_value("istio_auth_ca_api_calls_total", {"verb": verb, "resource": resource})

    assert shown("create", "secrets") is None
    server.answer(429, headers={"Retry-After": "0"})
    await api.create(SECRETS, {"metadata": {"name": "istio.web", "namespace": "shop"}}, namespace="shop")
    assert shown("create", "secrets") == 2
    request = server.put(CERTIFICATE_SIGNING_REQUESTS, "web")
    await api.replace(CERTIFICATE_SIGNING_REQUESTS, request, subresource="status")
    assert shown("update", "certificatesigningrequests.certificates.k8s.io/status") == 1
