"""RequestAuthentication: every field is read, and every rule of validation refuses with the path of what is wrong."""

from __future__ import annotations

import json
from copy import deepcopy
from datetime import timedelta

import pytest

from istio_auth.errors import ConfigurationError
from istio_auth.policy.jwt_rule import DEFAULT_PLACES, ClaimToHeader, JWTHeader, JWTRule, parse_key_uri
from istio_auth.policy.request_authentication import (
    RequestAuthentication,
    TargetRef,
    Workload,
    not_for,
    parse_request_authentication,
    rules_for,
)
from istio_auth.strict_json import JSON
from tests.fakes.token_issuer import TokenIssuer

ISSUER = TokenIssuer(place=7, issuer="https://issuer.test")
HERE = Workload("shop", {"app": "web", "tier": "front"})


def document(*rules: JSON, **spec: JSON) -> dict[str, JSON]:
    return {
        "apiVersion": "security.istio.io/v1",
        "kind": "RequestAuthentication",
        "metadata": {"name": "tokens", "namespace": "shop"},
        "spec": {"jwtRules": list(rules), **spec},
    }


def rule(**changes: JSON) -> dict[str, JSON]:
    made: dict[str, JSON] = {"issuer": "https://issuer.test", "jwksUri": "https://issuer.test/keys"}
    return {name: value for name, value in (made | changes).items() if value is not None}


def parsed(**changes: JSON) -> JWTRule:
    (made,) = parse_request_authentication(document(rule(**changes))).jwt_rules
    return made


def refusal(told: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        parse_request_authentication(told)
    return str(caught.value)


def test_every_field_of_a_rule_is_read() -> None:
    made = parsed(
        audiences=["a", "b"],
        fromHeaders=[{"name": "X-Token", "prefix": "Token "}, {"name": "X-Bare"}],
        fromParams=["token"],
        fromCookies=["session"],
        forwardOriginalToken=True,
        outputPayloadToHeader="x-payload",
        outputClaimToHeaders=[{"header": "x-sub", "claim": "sub"}, {"header": "x-team", "claim": "org.team"}],
        spaceDelimitedClaims=["roles"],
        timeout="2s",
    )
    assert made == JWTRule(
        issuer="https://issuer.test",
        audiences=("a", "b"),
        jwks_uri="https://issuer.test/keys",
        from_headers=(JWTHeader("X-Token", "Token "), JWTHeader("X-Bare")),
        from_params=("token",),
        from_cookies=("session",),
        forward_original_token=True,
        output_payload_to_header="x-payload",
        output_claim_to_headers=(ClaimToHeader("x-sub", "sub"), ClaimToHeader("x-team", "org.team")),
        space_delimited_claims=("roles",),
        timeout=timedelta(seconds=2),
    )


def test_a_policy_says_for_whom_it_is() -> None:
    policy = parse_request_authentication(document(rule(), selector={"matchLabels": {"app": "web"}}))
    assert (policy.name, policy.namespace, policy.match_labels) == ("tokens", "shop", {"app": "web"})
    target: JSON = {"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"}
    expected = (TargetRef("Gateway", "edge", "gateway.networking.k8s.io"),)
    assert parse_request_authentication(document(targetRef=target)).target_refs == expected
    assert parse_request_authentication(document(targetRefs=[target])).target_refs == expected


def test_what_kubernetes_keeps_for_itself_is_no_mistake() -> None:
    told = document(rule()) | {"status": {"conditions": []}}
    told["metadata"] = {"name": "tokens", "uid": "1", "annotations": {}, "managedFields": [1], "namespace": None}
    assert parse_request_authentication(told).namespace == ""
    told["apiVersion"] = "security.istio.io/v1beta1"
    assert len(parse_request_authentication(told).jwt_rules) == 1


def test_keys_are_inline_or_at_a_uri_or_where_the_issuer_says() -> None:
    inline = parsed(jwksUri=None, jwks=ISSUER.jwks())
    assert json.loads(inline.jwks)["keys"]
    assert "jwks=" not in repr(inline)
    assert parsed(jwksUri=None).jwks_uri == ""
    assert parsed(issuer=None).issuer == ""
    assert parsed(jwksUri=None, jwks_uri="http://keys.test").jwks_uri == "http://keys.test"


def test_places_that_are_told_replace_the_default_places() -> None:
    assert parsed().places == DEFAULT_PLACES
    assert DEFAULT_PLACES.headers == (("Authorization", "Bearer "),)
    assert DEFAULT_PLACES.params == ("access_token",)
    assert parsed(fromCookies=["session"]).places == ((), (), ("session",))


PRIVATE = json.dumps({"keys": [ISSUER.jwk(d="AAAA")]})
SECRET = json.dumps({"keys": [{"kty": "oct", "k": "c2VjcmV0"}]})


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"issuer": None, "jwksUri": None}, "issuer or jwksUri"),
        ({"issuer": "", "jwksUri": None, "jwks": ISSUER.jwks()}, "issuer or jwksUri"),
        ({"issuer": "testing@secure.istio.io", "jwksUri": None}, "must be an https URL"),
        ({"issuer": "http://issuer.test", "jwksUri": None}, "must be an https URL"),
        ({"jwks": ISSUER.jwks()}, "exclude each other"),
        ({"jwks_uri": "https://issuer.test/keys"}, "are the same"),
        ({"jwksUri": "ftp://issuer.test/keys"}, "neither scheme https nor http"),
        ({"jwksUri": "issuer.test/keys"}, "neither scheme https nor http"),
        ({"jwksUri": "https:///keys"}, "no URI with a host"),
        ({"jwksUri": "https://issuer.test:0/"}, "no URI with a host"),
        ({"jwksUri": "https://issuer.test:99999/"}, "is no URI"),
        ({"jwksUri": "https://[::1/"}, "is no URI"),
        ({"jwksUri": "https://issuer.test/a b"}, "no URI with a host"),
        ({"jwksUri": "https://issuer.test/\n"}, "no URI with a host"),
        ({"jwksUri": "https://issuer.test/" + "a" * 2048}, "at most 2048"),
        ({"jwksUri": "https://user:word@issuer.test/"}, "take the user"),
        ({"jwksUri": "https://issuer.test/#keys"}, "take the user"),
        ({"jwksUri": "http://169.254.169.254/keys"}, "link-local"),
        ({"jwksUri": "http://[fe80::1]/keys"}, "link-local"),
        ({"jwksUri": "http://[::ffff:169.254.169.254]/keys"}, "link-local"),
        ({"jwksUri": "http://2852039166/keys"}, "no IP address"),
        ({"jwksUri": "http://metadata.google.internal./keys"}, "metadata service"),
        ({"jwksUri": None, "jwks": "<html>"}, "can not be read"),
        ({"jwksUri": None, "jwks": "{}"}, "array 'keys'"),
        ({"jwksUri": None, "jwks": '{"keys": []}'}, "it is empty"),
        ({"jwksUri": None, "jwks": SECRET}, "no key of the set can be used"),
        ({"jwksUri": None, "jwks": PRIVATE}, "private half"),
        ({"fromHeaders": [{"name": "X Token"}]}, "no name of a header"),
        ({"fromHeaders": [{"name": "X", "prefix": "a\r\nb"}]}, "can not have there"),
        ({"fromParams": ["a\nb"]}, "can not have there"),
        ({"fromCookies": ["a=b"]}, "no name of a header or cookie"),
        ({"outputPayloadToHeader": "x payload"}, "letters, digits"),
        ({"outputPayloadToHeader": ":path"}, "letters, digits"),
        ({"outputClaimToHeaders": [{"header": "x.sub", "claim": "sub"}]}, "letters, digits"),
        ({"outputClaimToHeaders": [{"header": "X_Forwarded-Client-Cert", "claim": "sub"}]}, "meaning of its own"),
        ({"outputPayloadToHeader": "Transfer-Encoding"}, "meaning of its own"),
        (
            {"outputClaimToHeaders": [{"header": "x-a", "claim": "a"}, {"header": "X_A", "claim": "b"}]},
            "x-a is filled twice",
        ),
        (
            {"outputPayloadToHeader": "x-a", "outputClaimToHeaders": [{"header": "x-a", "claim": "b"}]},
            "x-a is filled twice",
        ),
        ({"timeout": "soon"}, "no duration"),
        ({"timeout": "0s"}, "longer than nothing"),
    ],
)
def test_a_broken_rule_is_refused_with_its_place_and_the_unbroken_one_is_not(
    changes: dict[str, JSON], told: str
) -> None:
    message = refusal(document(rule(), rule(**changes)))
    assert message.startswith(("spec.jwtRules[1]: ", "spec.jwtRules[1]."))
    assert told in message
    parse_request_authentication(document(rule(), rule()))


@pytest.mark.parametrize(
    ("changes", "path"),
    [
        ({"issuer": 1}, "issuer"),
        ({"audiences": "a"}, "audiences"),
        ({"audiences": ["a", ""]}, "audiences[1]"),
        ({"audiences": [None]}, "audiences[0]"),
        ({"fromHeaders": [None]}, "fromHeaders[0]"),
        ({"fromHeaders": ["X-Token"]}, "fromHeaders[0]"),
        ({"fromHeaders": [{"prefix": "Bearer "}]}, "fromHeaders[0].name"),
        ({"fromHeaders": [{"name": "X", "header": "X"}]}, "fromHeaders[0].header"),
        ({"fromParams": [""]}, "fromParams[0]"),
        ({"fromCookies": [""]}, "fromCookies[0]"),
        ({"spaceDelimitedClaims": [""]}, "spaceDelimitedClaims[0]"),
        ({"outputClaimToHeaders": [None]}, "outputClaimToHeaders[0]"),
        ({"outputClaimToHeaders": [{"claim": "sub"}]}, "outputClaimToHeaders[0].header"),
        ({"outputClaimToHeaders": [{"header": "x-sub", "claim": ""}]}, "outputClaimToHeaders[0].claim"),
        ({"forwardOriginalToken": "yes"}, "forwardOriginalToken"),
        ({"jwks": {"keys": []}}, "jwks"),
        ({"issuers": ["a"]}, "issuers"),
        ({"from_headers": []}, "from_headers"),
    ],
)
def test_a_field_of_the_wrong_kind_is_refused_with_its_path(changes: dict[str, JSON], path: str) -> None:
    assert refusal(document(rule(**changes))).startswith(f"spec.jwtRules[0].{path}: ")


@pytest.mark.parametrize(
    ("spec", "told"),
    [
        ({"jwtRule": []}, "spec.jwtRule: no such field; did you mean jwtRules?"),
        ({"selector": {"labels": {}}}, "spec.selector.labels: no such field"),
        ({"selector": {"matchLabels": {"app": 1}}}, "app: expected a text"),
        ({"selector": {"matchLabels": {"app": None}}}, "app: expected a text, found nothing"),
        ({"selector": {"matchLabels": {1: "web"}, "matchExpressions": []}}, "matchExpressions: no such field"),
        ({"selector": {"matchLabels": {"app": "*"}}}, "without '*'"),
        ({"selector": {"matchLabels": {"": "a"}}}, "without '*'"),
        ({"targetRef": {"kind": "Gateway", "name": "a"}}, "spec.targetRef: kind and group"),
        ({"targetRef": {"kind": "Pod", "name": "a"}}, "spec.targetRef: kind and group"),
        ({"targetRef": {"kind": "Service"}}, "spec.targetRef.name: must be set"),
        ({"targetRef": {"kind": "Service", "name": "a", "namespace": "b"}}, "spec.targetRef.namespace: "),
        ({"targetRefs": [{"kind": "Service", "name": "a"}] * 17}, "at most 16"),
        ({"selector": {"matchLabels": {"a": "b"}}, "targetRef": {"kind": "Service", "name": "a"}}, "exclude each"),
        ({"selector": {}, "targetRefs": [{"kind": "Service", "name": "a"}]}, "exclude each"),
    ],
)
def test_a_policy_for_unclear_workloads_is_refused(spec: dict[str, JSON], told: str) -> None:
    assert told in refusal(document(rule(), **spec))


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("kind", "AuthorizationPolicy", "kind: expected RequestAuthentication"),
        ("kind", None, "kind: expected RequestAuthentication"),
        ("apiVersion", "security.istio.io/v1alpha1", "apiVersion: expected security.istio.io/v1 or "),
        ("spec", [], "spec: expected fields"),
        ("specs", {}, "specs: no such field; did you mean spec?"),
        ("metadata", "tokens", "metadata: expected fields"),
    ],
)
def test_a_document_of_another_kind_is_refused(name: str, value: JSON, told: str) -> None:
    assert refusal(document(rule()) | {name: value}).startswith(told)


@pytest.mark.parametrize("told", [None, [], "a", 1, {}, {1: 2}])
def test_what_is_no_policy_at_all_is_refused(told: object) -> None:
    refusal(told)


def test_an_ipv6_address_and_a_port_are_no_mistake() -> None:
    assert parse_key_uri("https://[::1]:8443/keys?a=b", "jwksUri").hostname == "::1"
    assert parse_key_uri("http://127.0.0.1/keys", "jwksUri").port is None


@pytest.mark.parametrize(
    ("policy", "reason"),
    [
        (RequestAuthentication(), ""),
        (RequestAuthentication(namespace="shop"), ""),
        (RequestAuthentication(namespace="istio-system"), ""),
        (RequestAuthentication(namespace="bank"), "namespace bank"),
        (RequestAuthentication(match_labels={"app": "web"}), ""),
        (RequestAuthentication(match_labels={"app": "web", "tier": "front"}), ""),
        (RequestAuthentication(match_labels={"app": "db"}), "app=db"),
        (RequestAuthentication(match_labels={"app": "web", "zone": "a"}), "zone=a"),
        (RequestAuthentication(namespace="istio-system", match_labels={"app": "db"}), "app=db"),
        (RequestAuthentication(target_refs=(TargetRef("Service", "web"),)), "targetRef"),
    ],
)
def test_policies_are_for_a_workload_by_namespace_and_labels(policy: RequestAuthentication, reason: str) -> None:
    assert reason in not_for(HERE, policy)
    assert bool(reason) == bool(not_for(HERE, policy))


def test_the_rules_of_all_policies_for_a_workload_count() -> None:
    first, second, third = (JWTRule(issuer=f"https://{name}.test") for name in "cab")
    policies = (
        RequestAuthentication((first, second)),
        RequestAuthentication((third,)),
        RequestAuthentication((third,), namespace="bank"),
    )
    assert [rule.issuer for rule in rules_for(HERE, policies)] == ["https://c.test", "https://a.test", "https://b.test"]


def test_reading_changes_nothing_of_the_document() -> None:
    told = document(rule(audiences=["a"]), selector={"matchLabels": {"a": "b"}})
    before = deepcopy(told)
    parse_request_authentication(told)
    assert told == before
