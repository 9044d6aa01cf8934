"""ServiceAccountCaller: one value for one token, by review and by claims; what is missing or ambiguous is refused."""

from __future__ import annotations

import copy
import re
import traceback
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest

from ca.attest import Attested, agreed
from ca.platform.kubernetes.callers.service_account import (
    ServiceAccountCaller,
    caller_of_claims,
    caller_of_review,
    valid_account,
)
from istio_auth.errors import NotAuthenticated
from istio_auth.registration import Selector
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.strict_json import JSON
from istio_auth.tokens import verify_token
from tests.fakes.token_issuer import AUDIENCE, CLUSTER, TokenIssuer, bound

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
DOMAIN = TrustDomain("cluster.local")
WEB = SpiffeID.parse("spiffe://cluster.local/ns/default/sa/web")
ISSUER = TokenIssuer()
# What an API server of Kubernetes 1.37 answers about the token that `ISSUER.token(NOW)` is.
REVIEWED: dict[str, Any] = {
    "authenticated": True,
    "user": {
        "username": "system:serviceaccount:default:web",
        "uid": "sa-1",
        "groups": ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"],
        "extra": {
            "authentication.kubernetes.io/credential-id": ["JTI=5a0d3f6e-0000-4000-8000-000000000001"],
            "authentication.kubernetes.io/node-name": ["node-1"],
            "authentication.kubernetes.io/node-uid": ["node-uid-1"],
            "authentication.kubernetes.io/pod-name": ["web-0"],
            "authentication.kubernetes.io/pod-uid": ["pod-1"],
        },
    },
    "audiences": [AUDIENCE],
}
CALLER = ServiceAccountCaller(
    "default",
    "web",
    "sa-1",
    pod_name="web-0",
    pod_uid="pod-1",
    node_name="node-1",
    node_uid="node-uid-1",
    credential_id="JTI=5a0d3f6e-0000-4000-8000-000000000001",
)
NOTHING = object()


def changed(value: object, *path: str) -> dict[str, Any]:
    """The answer with one thing in it changed, or taken out."""
    status = copy.deepcopy(REVIEWED)
    place: Any = status
    for name in path[:-1]:
        place = place[name]
    if value is NOTHING:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return status


def extra(name: str) -> tuple[str, str, str]:
    return "user", "extra", f"authentication.kubernetes.io/{name}"


def by_claims(**changes: JSON) -> ServiceAccountCaller:
    token = ISSUER.token(NOW, **changes)
    return caller_of_claims(verify_token(token, ISSUER.keys(), issuer=CLUSTER, audiences=[AUDIENCE], now=NOW))


def test_a_review_and_the_claims_of_one_token_tell_the_same_caller() -> None:
    assert caller_of_review(REVIEWED, [AUDIENCE]) == CALLER == by_claims()


def test_so_they_do_of_a_token_that_is_bound_to_nothing() -> None:
    status = changed({}, "user", "extra")
    unbound = ServiceAccountCaller("default", "web", "sa-1")
    assert caller_of_review(status, [AUDIENCE]) == unbound
    assert caller_of_review(changed(NOTHING, "user", "extra"), [AUDIENCE]) == unbound
    assert by_claims(jti=None, **{"kubernetes.io": bound(pod=None, node=None)}) == unbound


def test_so_they_do_of_a_token_that_is_bound_to_a_node() -> None:
    status = changed(NOTHING, *extra("pod-name"))
    del status["user"]["extra"]["authentication.kubernetes.io/pod-uid"]
    on_a_node = replace(CALLER, pod_name="", pod_uid="")
    assert caller_of_review(status, [AUDIENCE]) == on_a_node
    assert by_claims(**{"kubernetes.io": bound(pod=None)}) == on_a_node


@pytest.mark.parametrize(
    ("value", "path", "reason"),
    [
        ("[invalid bearer token, service account token has expired]", ("error",), "has expired"),
        (False, ("authenticated",), "does not know"),
        (NOTHING, ("authenticated",), "does not know"),
        ("true", ("authenticated",), "does not know"),
        (["vault"], ("audiences",), "for 'vault', not for istio-ca"),
        ([["istio-ca"]], ("audiences",), "not for istio-ca"),
        ([], ("audiences",), "without regard to its audience"),
        (NOTHING, ("audiences",), "without regard to its audience"),
        ("istio-ca", ("audiences",), "without regard to its audience"),
        (NOTHING, ("user",), "nothing of the user"),
        ([], ("user",), "nothing of the user"),
        (["system:authenticated"], ("user", "groups"), "not of the group"),
        (NOTHING, ("user", "groups"), "not of the group"),
        ("system:serviceaccounts", ("user", "groups"), "not of the group"),
        ("admin", ("user", "username"), "'admin' of the token is no service account"),
        (NOTHING, ("user", "username"), "no service account"),
        (["x"], ("user", "username"), "no service account"),
        ("system:serviceaccount:default", ("user", "username"), "no service account"),
        ("system:serviceaccount:default:web:x", ("user", "username"), "no service account"),
        ("system:node:default:web", ("user", "username"), "no service account"),
        ("System:serviceaccount:default:web", ("user", "username"), "no service account"),
        ("system:serviceaccount::web", ("user", "username"), "no name of a namespace"),
        ("system:serviceaccount:Default:web", ("user", "username"), "no name of a namespace"),
        ("system:serviceaccount:a.b:web", ("user", "username"), "no name of a namespace"),
        (f"system:serviceaccount:{'x' * 64}:web", ("user", "username"), "no name of a namespace"),
        ("system:serviceaccount:default:", ("user", "username"), "no name of a service account"),
        ("system:serviceaccount:default:..", ("user", "username"), "no name of a service account"),
        ("system:serviceaccount:default:a/b", ("user", "username"), "no name of a service account"),
        ("system:serviceaccount:default:web\n", ("user", "username"), "no name of a service account"),
        (7, ("user", "uid"), "uid .* no text"),
        (7, ("user", "extra"), "no object"),
        (NOTHING, extra("pod-uid"), "half a pod"),
        (NOTHING, extra("pod-name"), "half a pod"),
        (NOTHING, extra("node-name"), "half a pod or node"),
        ("pod-1", extra("pod-uid"), "pod-uid .* not one text"),
        ([], extra("pod-uid"), "pod-uid .* not one text"),
        (["pod-1", "pod-2"], extra("pod-uid"), "pod-uid .* not one text"),
        ([7], extra("pod-uid"), "pod-uid .* not one text"),
        ([""], extra("pod-uid"), "pod-uid .* not one text"),
        (["a b"], extra("pod-uid"), "no UID"),
        (["../web"], extra("pod-name"), "no name of a pod"),
        (["x\n"], extra("credential-id"), "no UID and no id"),
    ],
)
def test_a_review_that_proves_nothing_is_refused_with_its_reason(
    value: object, path: tuple[str, ...], reason: str
) -> None:
    with pytest.raises(NotAuthenticated, match=reason) as caught:
        caller_of_review(changed(value, *path), [AUDIENCE])
    assert caught.value.public == "not authenticated"
    assert caller_of_review(REVIEWED, [AUDIENCE]) == CALLER


def test_an_empty_answer_proves_nothing() -> None:
    with pytest.raises(NotAuthenticated):
        caller_of_review({}, [AUDIENCE])


def test_a_review_is_for_one_of_our_audiences() -> None:
    status = changed(["other", AUDIENCE], "audiences")
    assert caller_of_review(status, ["istio-ca", "legacy"]) == CALLER
    with pytest.raises(NotAuthenticated):
        caller_of_review(status, [])


def test_a_token_that_the_api_server_quotes_is_not_passed_on() -> None:
    token = ISSUER.token(NOW)
    with pytest.raises(NotAuthenticated) as caught:
        caller_of_review({"error": f"can not parse {token}, sorry"}, [AUDIENCE])
    told = "".join(traceback.format_exception(caught.value))
    assert "can not parse" in told
    assert not [part for part in token.split(".") if part in told]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"kubernetes.io": None}, "nothing about Kubernetes"),
        ({"kubernetes.io": "x"}, "nothing about Kubernetes"),
        ({"kubernetes.io": bound(namespace="other")}, "another service account"),
        ({"kubernetes.io": bound(namespace=None)}, "another service account"),
        ({"kubernetes.io": bound(serviceaccount={"name": "db", "uid": "sa-1"})}, "another service account"),
        ({"kubernetes.io": bound(serviceaccount=None)}, "another service account"),
        ({"kubernetes.io": bound(serviceaccount="web")}, "no object"),
        ({"kubernetes.io": bound(pod={"name": "web-0"})}, "half a pod"),
        ({"kubernetes.io": bound(pod={"uid": "pod-1"})}, "half a pod"),
        ({"kubernetes.io": bound(pod={"name": 7, "uid": "pod-1"})}, "no text"),
        ({"kubernetes.io": bound(node={"uid": "x"})}, "half a pod or node"),
        ({"sub": "someone"}, "no service account"),
        ({"sub": None}, "no service account"),
        ({"sub": "system:serviceaccount:default:web:x"}, "no service account"),
        ({"jti": "a b"}, "no id of a token"),
    ],
)
def test_claims_that_prove_nothing_are_refused_with_their_reason(changes: dict[str, JSON], reason: str) -> None:
    with pytest.raises(NotAuthenticated, match=reason):
        by_claims(**changes)


class TestWhatIsAttested:
    def test_names_the_identity_and_how_it_was_proven(self) -> None:
        attested = CALLER.attested(DOMAIN, address="192.0.2.1:1000")
        assert (attested.spiffe_id, attested.method, attested.single_use) == (WEB, "kubernetes-token", "")
        assert attested.caller is CALLER

    def test_tells_what_was_observed(self) -> None:
        assert set(map(str, CALLER.attested(DOMAIN).selectors)) == {
            "k8s:ns:default",
            "k8s:sa:web",
            "k8s:pod:web-0",
            "k8s:pod-uid:pod-1",
            "k8s:node:node-1",
        }
        assert all(Selector.parse(str(selector)) == selector for selector in CALLER.selectors())
        unbound = ServiceAccountCaller("default", "web")
        assert set(map(str, unbound.selectors())) == {"k8s:ns:default", "k8s:sa:web"}

    def test_joins_the_certificate_to_the_line_in_the_audit_log_of_the_api_server(self) -> None:
        assert CALLER.attested(DOMAIN, address="192.0.2.1:1000").details == {
            "address": "192.0.2.1:1000",
            "pod": "default/web-0",
            "pod_uid": "pod-1",
            "node": "node-1",
            "token": "JTI=5a0d3f6e-0000-4000-8000-000000000001",
        }

    def test_stays_with_a_certificate_that_says_the_same(self) -> None:
        certificate = Attested(WEB, "certificate", details={"serial": "1"})
        both = agreed(certificate, CALLER.attested(DOMAIN))
        assert both.caller == CALLER
        assert (both.method, both.details["serial"]) == ("certificate+kubernetes-token", "1")
        with pytest.raises(NotAuthenticated, match=re.escape("/sa/other")):
            agreed(replace(certificate, spiffe_id=SpiffeID.for_service_account(DOMAIN, "default", "other")), both)


@pytest.mark.parametrize("name", ["a", "0", "web", "a-b.c-d", "x" * 253, "1.2.3.4"])
def test_names_that_kubernetes_gives(name: str) -> None:
    assert valid_account("default", name)


@pytest.mark.parametrize("name", ["", "A", "-a", "a-", "a..b", ".a", "a.", "a_b", "a/b", "x" * 254, "ä", "a\n"])
def test_names_that_kubernetes_does_not_give(name: str) -> None:
    assert not valid_account("default", name)
    assert not valid_account(name, "web")
