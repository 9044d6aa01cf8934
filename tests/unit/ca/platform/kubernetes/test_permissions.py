"""What must be allowed for which features, in words and as a question to the API server."""

from __future__ import annotations

import pytest

from ca.platform.kubernetes.api.resources import CERTIFICATE_SIGNING_REQUESTS, CLUSTER_TRUST_BUNDLES, PODS, SECRETS
from ca.platform.kubernetes.permissions import SIGNERS, Features, Permission, needed

FEATURES = Features("istio-system", "example.org/workload", offline=True)


@pytest.mark.parametrize(
    ("permission", "words"),
    [
        (Permission("create", SECRETS, "to live"), "create secrets in all namespaces: to live"),
        (
            Permission("get", SECRETS, "to live", namespace="istio-system", name="cacerts"),
            "get secrets cacerts in namespace istio-system: to live",
        ),
        (
            Permission("update", CERTIFICATE_SIGNING_REQUESTS, "to live", "status"),
            "update certificatesigningrequests.certificates.k8s.io/status: to live",
        ),
        (
            Permission("sign", SIGNERS, "to live", name="example.org/workload"),
            "sign signers.certificates.k8s.io example.org/workload: to live",
        ),
        (Permission("get", "/openid/v1/jwks", "to live"), "get /openid/v1/jwks: to live"),
    ],
)
def test_a_permission_is_named_in_words(permission: Permission, words: str) -> None:
    assert str(permission) == words


def test_a_review_asks_for_exactly_that() -> None:
    permission = Permission("list", SECRETS, "to live", namespace="istio-system", name="cacerts")
    assert permission.review() == {
        "spec": {
            "resourceAttributes": {
                "verb": "list",
                "version": "v1",
                "resource": "secrets",
                "namespace": "istio-system",
                "name": "cacerts",
            }
        }
    }
    path = Permission("get", "/openid/v1/jwks", "to live")
    assert path.review() == {"spec": {"nonResourceAttributes": {"verb": "get", "path": "/openid/v1/jwks"}}}


def test_nothing_is_needed_twice() -> None:
    found = [(each.verb, each.resource, each.subresource, each.namespace, each.name) for each in needed(FEATURES)]
    assert len(found) == len(set(found))


@pytest.mark.parametrize(
    ("less", "gone"),
    [
        (Features("ns", "a.b/c", secrets=False), lambda each: each.resource == SECRETS and not each.namespace),
        (Features("ns", "a.b/c", requests=False), lambda each: each.verb in ("sign", "approve")),
        (Features("ns", "a.b/c", requests=False), lambda each: each.resource == CERTIFICATE_SIGNING_REQUESTS),
        (Features("ns", "a.b/c", trust_bundle=""), lambda each: each.resource == CLUSTER_TRUST_BUNDLES),
        (Features("ns", "a.b/c", trust_bundle=""), lambda each: each.verb == "attest"),
        (Features("ns", "a.b/c", plugged=False), lambda each: each.name == "cacerts"),
        (Features("ns", "a.b/c", offline=False), lambda each: isinstance(each.resource, str)),
    ],
)
def test_what_no_feature_needs_is_not_asked_for(less: Features, gone: object) -> None:
    assert callable(gone)
    assert any(gone(each) for each in needed(FEATURES))
    assert not any(gone(each) for each in needed(less))


def test_secrets_are_changed_only_where_that_is_what_the_ca_is_for() -> None:
    without = needed(Features("istio-system", "example.org/workload", secrets=False))
    assert all(each.namespace == "istio-system" for each in without if each.resource == SECRETS)
    assert {each.verb for each in needed(FEATURES) if each.resource == PODS} == {"list", "watch"}
