"""The proof by token: which bearers it takes for its own, what is asked of the API server, and what is not."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from structlog.testing import capture_logs

from ca.attest import Evidence
from ca.platform.kubernetes.api.client import KubernetesAPI
from ca.platform.kubernetes.api.refusals import AccessRefused
from ca.platform.kubernetes.callers.pods import PodIndex
from ca.platform.kubernetes.callers.published_keys import IssuerKeys, PublishedKeys
from ca.platform.kubernetes.callers.service_account import ServiceAccountCaller
from ca.platform.kubernetes.callers.token_proof import OfflineFirst, ServiceAccountTokens, Watched, reviewer
from ca.platform.kubernetes.facts import PodFact
from istio_auth.door import TLSCaller
from istio_auth.errors import Exhausted, IstioAuthError, NotAuthenticated, NotReady
from istio_auth.spiffe_id import TrustDomain
from istio_auth.strict_json import JSON
from tests.fakes.api_server import FakeAPIServer, refusal
from tests.fakes.clock import FakeClock
from tests.fakes.token_issuer import AUDIENCE, CLUSTER, TokenIssuer

TRUST_DOMAIN = TrustDomain("cluster.local")
ISSUER, STRANGER = TokenIssuer(), TokenIssuer(place=1)
WEB = ServiceAccountCaller("default", "web", "sa-1", "web-0", "pod-1", "node-1", "node-uid-1")


@dataclass
class Verifier:
    """Says that every token is of the service account web."""

    asked: list[str] = field(default_factory=list)

    async def __call__(self, token: str) -> ServiceAccountCaller:
        self.asked.append(token)
        return WEB


def evidence(bearer: str | None) -> Evidence:
    return Evidence(TLSCaller((), None, "192.0.2.7:40000"), bearer)


def accepted(**changes: JSON) -> JSON:
    """What the API server answers for a token of web's."""
    status: dict[str, JSON] = {
        "authenticated": True,
        "audiences": [AUDIENCE],
        "user": {
            "username": "system:serviceaccount:default:web",
            "uid": "sa-1",
            "groups": ["system:serviceaccounts", "system:serviceaccounts:default", "system:authenticated"],
        },
    }
    return {"kind": "TokenReview", "status": status | changes}


class TestShape:
    @pytest.mark.parametrize("bearer", [None, "", "join-" + "A" * 43, "a.b", "a.b.c.d", "opaque"])
    async def test_what_is_no_token_of_kubernetes_is_left_to_others(self, bearer: str | None) -> None:
        verify = Verifier()
        assert await ServiceAccountTokens(TRUST_DOMAIN, verify).examine(evidence(bearer)) is None
        assert verify.asked == []

    @pytest.mark.parametrize("bearer", ["a.b.c", "..", "eyJhbGciOiJub25lIn0.e30."])
    async def test_what_looks_like_one_is_verified_and_nobody_else_gets_it(self, bearer: str) -> None:
        verify = Verifier()
        attested = await ServiceAccountTokens(TRUST_DOMAIN, verify).examine(evidence(bearer))
        assert verify.asked == [bearer]
        assert attested is not None
        assert str(attested.spiffe_id) == "spiffe://cluster.local/ns/default/sa/web"
        assert attested.details["address"] == "192.0.2.7:40000"
        assert attested.caller == WEB


class TestReview:
    async def test_the_api_server_is_asked_with_our_audiences(self, api: KubernetesAPI, server: FakeAPIServer) -> None:
        server.answer(201, accepted())
        caller = await reviewer(api, ["istio-ca", "other"])("the.very.token")
        assert (caller.namespace, caller.service_account, caller.service_account_uid) == ("default", "web", "sa-1")
        (asked,) = server.asked
        assert (asked.method, asked.path) == ("POST", "/apis/authentication.k8s.io/v1/tokenreviews")
        assert asked.body["spec"] == {"token": "the.very.token", "audiences": ["istio-ca", "other"]}

    @pytest.mark.parametrize(
        "changes",
        [
            {"authenticated": False},
            {"authenticated": "true"},
            {"audiences": []},
            {"audiences": ["https://kubernetes.default.svc"]},
            {"error": "token has expired"},
            {"user": {"username": "jane", "groups": ["system:authenticated"]}},
        ],
    )
    async def test_whoever_is_no_service_account_for_us_is_nobody(
        self, api: KubernetesAPI, server: FakeAPIServer, changes: dict[str, JSON]
    ) -> None:
        server.answer(201, accepted(**changes))
        review = reviewer(api, [AUDIENCE])
        with pytest.raises(NotAuthenticated):
            await review("a.b.c")
        server.answer(201, accepted())
        assert await review("a.b.c")

    async def test_an_answer_without_status_makes_nobody_somebody(self, api: KubernetesAPI) -> None:
        with pytest.raises(NotAuthenticated):
            await reviewer(api, [AUDIENCE])("a.b.c")  # the fake answers with what was sent

    @pytest.mark.parametrize(
        ("status", "error"),
        [
            (400, NotAuthenticated),
            (422, NotAuthenticated),
            (401, AccessRefused),
            (403, AccessRefused),
            (429, Exhausted),
            (500, NotReady),
        ],
    )
    async def test_only_the_token_is_held_against_the_caller_and_no_error_quotes_it(
        self, api: KubernetesAPI, server: FakeAPIServer, clock: FakeClock, status: int, error: type[IstioAuthError]
    ) -> None:
        token = ISSUER.token(clock.now())
        server.answer(status, refusal(status, f'cannot parse "{token}"'), headers={"Retry-After": "60"})
        with pytest.raises(IstioAuthError) as caught:
            await reviewer(api, [AUDIENCE])(token)
        assert type(caught.value) is error
        chained: BaseException | None = caught.value
        while chained is not None:
            for part in token.split("."):
                assert part not in str(chained)
            chained = chained.__cause__ or chained.__context__

    async def test_without_an_api_server_nobody_is_refused_for_good(
        self, hasty: KubernetesAPI, server: FakeAPIServer
    ) -> None:
        server.hold(lambda _: True)
        with pytest.raises(NotReady):
            await reviewer(hasty, [AUDIENCE])("a.b.c")


@dataclass
class Accounts:
    """The service accounts of now: web alone."""

    live: bool = True

    def uid(self, namespace: str, name: str) -> str | None:
        return "sa-1" if (namespace, name) == ("default", "web") else None


class Offline:
    """Offline verification over what is known here, and a review for the rest."""

    def __init__(self, api: KubernetesAPI, clock: FakeClock) -> None:
        self.accounts, self.review = Accounts(), Verifier()
        self.keys = PublishedKeys(api)
        self.keys.known = IssuerKeys(CLUSTER, ISSUER.keys())
        pods = PodIndex(lambda: True)
        pods.put(PodFact("pod-1", "default", "web-0", "web", "node-1", "Running", False))
        self.first = OfflineFirst(
            self.keys,
            Watched(pods, self.accounts),
            audiences=[AUDIENCE],
            clock=clock,
            otherwise=self.review,
        )


@pytest.fixture
async def offline(api: KubernetesAPI, clock: FakeClock) -> Offline:
    return Offline(api, clock)


class TestOffline:
    async def test_what_is_certain_needs_no_question(
        self, offline: Offline, clock: FakeClock, server: FakeAPIServer
    ) -> None:
        caller = await offline.first.caller(ISSUER.token(clock.now()))
        assert (caller.pod_uid, caller.service_account_uid) == ("pod-1", "sa-1")
        assert (offline.first.alone, offline.review.asked, server.asked) == (1, [], [])
        assert not offline.keys._wanted.is_set()

    async def test_what_is_not_is_reviewed_and_the_keys_are_read_soon(self, offline: Offline, clock: FakeClock) -> None:
        token = STRANGER.token(clock.now())
        with capture_logs() as logs:
            assert await offline.first.caller(token) == WEB
        assert (offline.first.alone, offline.review.asked) == (0, [token])
        assert offline.keys._wanted.is_set()
        assert token not in repr(logs)

    async def test_views_that_are_not_live_are_not_relied_on(self, offline: Offline, clock: FakeClock) -> None:
        token = ISSUER.token(clock.now())
        offline.accounts.live = False
        await offline.first.caller(token)
        assert (offline.first.alone, offline.review.asked) == (0, [token])
        offline.accounts.live = True
        await offline.first.caller(token)
        assert (offline.first.alone, offline.review.asked) == (1, [token])

    async def test_before_the_keys_are_known_everything_is_reviewed(self, offline: Offline, clock: FakeClock) -> None:
        token = ISSUER.token(clock.now())
        offline.keys.known = None
        assert await offline.first.caller(token) == WEB
        assert (offline.first.alone, offline.review.asked) == (0, [token])

    async def test_what_is_certainly_nobody_costs_the_api_server_nothing(
        self, offline: Offline, clock: FakeClock
    ) -> None:
        for token in (ISSUER.token(clock.now(), aud=["vault"]), ISSUER.token(clock.now(), exp=1), "a.b.c"):
            with pytest.raises(NotAuthenticated) as caught:
                await offline.first.caller(token)
            assert token not in str(caught.value)
        assert offline.review.asked == []
