"""verify_offline: a caller where all is known, a refusal where nothing could change it, a review everywhere else."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ca.platform.kubernetes.callers.offline import Unsure, verify_offline
from ca.platform.kubernetes.callers.pods import PodIndex
from ca.platform.kubernetes.callers.service_account import ServiceAccountCaller
from ca.platform.kubernetes.facts import PodFact
from istio_auth.errors import NotAuthenticated
from istio_auth.jwks import KeySet
from istio_auth.strict_json import JSON
from istio_auth.tokens import DEFAULT_LEEWAY, TokenFault, TokenRefused
from tests.fakes.token_issuer import AUDIENCE, CLUSTER, HOUR, TokenIssuer, bound

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
SECOND = timedelta(seconds=1)
ISSUER = TokenIssuer("RS256")
WEB_POD = PodFact("pod-1", "default", "web-0", "web", "node-1", "Running")


@dataclass
class FakeServiceAccounts:
    """A `ServiceAccountView` that knows what a test says."""

    live: bool = True
    uids: dict[tuple[str, str], str] = field(default_factory=lambda: {("default", "web"): "sa-1"})

    def uid(self, namespace: str, name: str) -> str | None:
        return self.uids.get((namespace, name))


def told(
    token: str,
    *,
    keys: KeySet | None = None,
    pod: PodFact | None = WEB_POD,
    pods_live: bool = True,
    accounts: FakeServiceAccounts | None = None,
    now: datetime = NOW,
) -> ServiceAccountCaller | Unsure:
    index = PodIndex(lambda: pods_live)
    if pod is not None:
        index.put(pod)
    return verify_offline(
        token,
        keys if keys is not None else ISSUER.keys(),
        issuer=CLUSTER,
        audiences=[AUDIENCE],
        now=now,
        pods=index,
        service_accounts=accounts or FakeServiceAccounts(),
    )


def unsure(token: str, **changes: Any) -> str:
    found = told(token, **changes)
    assert isinstance(found, Unsure)
    return found.reason


def kubernetes(**changes: JSON) -> dict[str, JSON]:
    return {"kubernetes.io": bound(**changes)}


def test_a_token_of_a_living_pod_tells_its_caller() -> None:
    caller = told(ISSUER.token(NOW))
    assert isinstance(caller, ServiceAccountCaller)
    assert (caller.namespace, caller.service_account, caller.pod_uid, caller.node_name) == (
        "default",
        "web",
        "pod-1",
        "node-1",
    )


class TestARefusal:
    @pytest.mark.parametrize(
        ("changes", "fault"),
        [
            ({"aud": "vault"}, TokenFault.AUDIENCE),
            ({"aud": None}, TokenFault.CLAIM),
            ({"exp": None}, TokenFault.CLAIM),
            ({"sub": None}, TokenFault.CLAIM),
            ({"iss": None}, TokenFault.CLAIM),
            ({"exp": int((NOW - DEFAULT_LEEWAY).timestamp())}, TokenFault.EXPIRED),
        ],
    )
    def test_meets_a_token_that_no_review_could_make_good(self, changes: dict[str, JSON], fault: TokenFault) -> None:
        with pytest.raises(TokenRefused) as caught:
            told(ISSUER.token(NOW, **changes))
        assert caught.value.fault is fault
        assert isinstance(told(ISSUER.token(NOW)), ServiceAccountCaller)

    def test_meets_a_wrong_signature_of_a_known_key(self) -> None:
        forger = TokenIssuer("RS256", place=1)
        token = forger.sign(ISSUER.payload(NOW), header={"kid": ISSUER.key_id})
        with pytest.raises(TokenRefused) as caught:
            told(token)
        assert caught.value.fault is TokenFault.SIGNATURE

    @pytest.mark.parametrize("text", ["", "garbage", "a.b.c"])
    def test_meets_what_is_no_token(self, text: str) -> None:
        with pytest.raises(TokenRefused):
            told(text)

    @pytest.mark.parametrize("changes", [{"sub": "admin"}, {"kubernetes.io": None}, kubernetes(namespace="other")])
    def test_meets_a_token_of_no_service_account(self, changes: dict[str, JSON]) -> None:
        with pytest.raises(NotAuthenticated):
            told(ISSUER.token(NOW, **changes))

    def test_comes_before_any_doubt(self) -> None:
        with pytest.raises(TokenRefused):
            told(ISSUER.token(NOW, aud="vault"), pods_live=False, accounts=FakeServiceAccounts(live=False))


class TestAReview:
    def test_is_for_keys_that_are_not_known_yet(self) -> None:
        token = TokenIssuer("RS256", place=1).token(NOW)
        assert "unknown key" in unsure(token)
        assert "unknown key" in unsure(ISSUER.token(NOW), keys=KeySet())
        assert "unknown key" in unsure(TokenIssuer("RS256", place=1).sign({}, header={"kid": None}))

    def test_is_for_another_issuer_of_the_same_cluster(self) -> None:
        assert "other issuer" in unsure(ISSUER.token(NOW, iss="https://before.test"))

    def test_is_for_a_clock_that_is_behind_that_of_the_api_server(self) -> None:
        token = ISSUER.token(NOW)
        assert "not yet valid" in unsure(token, now=NOW - DEFAULT_LEEWAY - SECOND)
        assert isinstance(told(token, now=NOW - DEFAULT_LEEWAY), ServiceAccountCaller)
        assert isinstance(told(token, now=NOW + HOUR + DEFAULT_LEEWAY - SECOND), ServiceAccountCaller)

    @pytest.mark.parametrize(
        "pod",
        [
            None,
            replace(WEB_POD, uid="pod-2"),
            replace(WEB_POD, deleted=True),
            replace(WEB_POD, name="web-1"),
            replace(WEB_POD, namespace="other"),
            replace(WEB_POD, service_account="db"),
        ],
    )
    def test_is_for_a_pod_that_is_not_there_as_the_token_says(self, pod: PodFact | None) -> None:
        assert "pod" in unsure(ISSUER.token(NOW), pod=pod)
        assert isinstance(told(ISSUER.token(NOW)), ServiceAccountCaller)

    @pytest.mark.parametrize("uids", [{}, {("default", "web"): "sa-2"}, {("default", "web"): ""}])
    def test_is_for_a_service_account_that_is_not_there_as_the_token_says(
        self, uids: dict[tuple[str, str], str]
    ) -> None:
        assert "service account" in unsure(ISSUER.token(NOW), accounts=FakeServiceAccounts(uids=uids))

    def test_is_for_a_token_that_does_not_say_which_service_account(self) -> None:
        token = ISSUER.token(NOW, **kubernetes(serviceaccount={"name": "web"}))
        assert "service account" in unsure(token)

    def test_is_for_caches_that_do_not_tell_the_present(self) -> None:
        assert "pods of now" in unsure(ISSUER.token(NOW), pods_live=False)
        assert "service accounts of now" in unsure(ISSUER.token(NOW), accounts=FakeServiceAccounts(live=False))

    @pytest.mark.parametrize("kind", ["secret", "validatingwebhookconfiguration", "mutatingwebhookconfiguration"])
    def test_is_for_what_is_bound_to_an_object_that_is_not_watched(self, kind: str) -> None:
        said = bound(pod=None, node=None) | {kind: {"name": "x", "uid": "1"}}
        assert kind in unsure(ISSUER.token(NOW, **{"kubernetes.io": said}))

    def test_is_for_what_is_bound_to_a_node(self) -> None:
        assert "node" in unsure(ISSUER.token(NOW, **kubernetes(pod=None)))

    def test_is_not_needed_for_a_token_that_is_bound_to_its_service_account_alone(self) -> None:
        token = ISSUER.token(NOW, **kubernetes(pod=None, node=None))
        assert told(token, pod=None, pods_live=False) == ServiceAccountCaller(
            "default", "web", "sa-1", credential_id="JTI=5a0d3f6e-0000-4000-8000-000000000001"
        )


def test_what_is_told_of_a_doubt_holds_nothing_of_the_token() -> None:
    token = ISSUER.token(NOW)
    reasons = [unsure(token, keys=KeySet()), unsure(token, pod=None), unsure(token, pods_live=False)]
    assert not [part for part in token.split(".") for reason in reasons if part in reason]
