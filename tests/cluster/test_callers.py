"""Who calls is who the API server says, by either way of verification; all others hear nothing, and the log all."""

from __future__ import annotations

import re
import uuid
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime

import grpc
import jwt
import pytest
import pytest_asyncio

from tests.cluster.client import JSON, Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.running_ca import NOT_IMPERSONATED, NOT_PROVEN, Caller, RunningCA, account_id
from tests.cluster.waiting import eventually
from tests.integration.daemons.foreign import Identity

pytestmark = pytest.mark.asyncio(loop_scope="module")
AUDIENCE = "istio-ca"
_MOMENT = 60.0  # seconds, at most; the API server itself goes on taking a token for 10 s that it has seen
ZTUNNEL = "ztunnel"


@dataclass
class Shop:
    """A namespace with a CA, and callers in it."""

    plane: ControlPlane
    admin: Client
    ca: RunningCA
    namespace: str
    caller: Caller
    offline: bool

    def id(self, name: str) -> str:
        """The SPIFFE ID of a service account."""
        return account_id(self.namespace, name)

    async def node(self) -> str:
        """A new node."""
        name = f"node-{uuid.uuid4().hex[:8]}"
        await self.admin.create_node(name)
        return name

    async def pod(self, account: str = "web", node: str | None = None) -> JSON:
        """A new pod of a service account, on a node."""
        name = f"{account}-{uuid.uuid4().hex[:8]}"
        return await self.admin.create_pod(
            self.namespace, name, service_account=account, node=node or await self.node()
        )

    async def gets(self, token: str | None, *, shown: Identity | None = None, wanted: str = "") -> str:
        """The identity that a caller gets, once what happened so far is known to the CA."""

        async def given() -> str | None:
            try:
                return (await self.caller.identity(token, shown=shown, wanted=wanted))[0]
            except grpc.aio.AioRpcError:
                return None

        return await eventually(given, within=_MOMENT)

    async def refused(
        self, token: str | None, *, because: str, shown: Identity | None = None, wanted: str = ""
    ) -> tuple[grpc.StatusCode, str]:
        """What a caller hears that is refused for this reason, once what happened so far is known to the CA."""
        reasons: list[str] = []

        async def heard() -> tuple[grpc.StatusCode, str] | None:
            try:
                heard, reason = await self.caller.refusal(token, shown=shown, wanted=wanted)
            except AssertionError as given:
                reasons.append(str(given))
                return None
            reasons.append(reason)
            return heard if re.search(because, reason) else None

        try:
            return await eventually(heard, within=_MOMENT)
        except TimeoutError:
            raise AssertionError(f"not refused because {because}, but: {reasons[-1:]}") from None

    async def token(self, pod: JSON | None, *, account: str = "web", audience: str = AUDIENCE) -> str:
        """A token as the kubelet gets it for a pod; without one, of the service account alone."""
        return await self.admin.service_account_token(self.namespace, account, audiences=[audience], pod=pod)

    async def delete(self, pod: JSON) -> None:
        """Delete a pod."""
        await self.admin.delete(f"/api/v1/namespaces/{self.namespace}/pods/{pod['metadata']['name']}")

    def changed(self, token: str, **claims: object) -> str:
        """A token with other claims, signed by the key that the API server signs with."""
        said = jwt.decode(token, options={"verify_signature": False}) | claims
        key = (self.plane.folder / "service-accounts.key").read_bytes()
        return jwt.encode(said, key, algorithm="RS256", headers={"kid": jwt.get_unverified_header(token)["kid"]})


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["review", "offline"])
async def shop(
    control_plane: ControlPlane, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[Shop]:
    namespace = f"callers-{uuid.uuid4().hex[:8]}"
    folder = tmp_path_factory.mktemp(f"callers-{request.param}")
    tokens = {
        "verification": request.param,
        "review_lasts": "1s",
        "node_accounts": [f"{namespace}/{ZTUNNEL}"],
    }
    async with control_plane.admin() as admin:
        await admin.create_namespace(namespace)
        for account in ("web", "db", ZTUNNEL, "untrusted"):
            await admin.create_service_account(namespace, account)
        ca = RunningCA(control_plane.kubeconfig, folder, namespace, managed=[namespace], tokens=tokens)
        async with ca:
            caller = await Caller.of(ca, admin, namespace)
            yield Shop(control_plane, admin, ca, namespace, caller, offline=request.param == "offline")
        await admin.delete(f"/api/v1/namespaces/{namespace}")


class TestAToken:
    async def test_of_a_pod_brings_the_identity_of_its_service_account_on_record_with_pod_and_node(
        self, shop: Shop
    ) -> None:
        node = await shop.node()
        pod = await shop.pod(node=node)
        already = shop.ca.mark()
        identity, _ = await shop.caller.identity(await shop.token(pod))
        assert identity == shop.id("web")
        line = await shop.ca.process.says_like("'method': 'kubernetes-token'", after=already)  # others get theirs too
        assert (line["caller"], line["method"]) == (identity, "kubernetes-token")
        proof = line["proof"]
        assert isinstance(proof, dict)
        assert (proof["pod"], proof["pod_uid"], proof["node"]) == (
            f"{shop.namespace}/{pod['metadata']['name']}",
            pod["metadata"]["uid"],
            node,
        )

    async def test_is_reviewed_or_verified_without_asking_as_the_operator_wants(self, shop: Shop) -> None:
        token = await shop.token(await shop.pod())
        reviewed, alone = "istio_auth_ca_tokens_reviewed", "istio_auth_ca_tokens_verified_offline"

        async def known() -> bool:
            verified = shop.ca.metric(alone)  # other tests have had theirs verified
            await shop.caller.identity(token)
            return not shop.offline or shop.ca.metric(alone) > verified

        await eventually(known)
        before = shop.ca.metric(reviewed), shop.ca.metric(alone)
        for _ in range(3):
            await shop.caller.identity(token)
        if shop.offline:
            assert (shop.ca.metric(reviewed), shop.ca.metric(alone)) == (before[0], before[1] + 3)
        else:
            assert shop.ca.metric(reviewed) >= 1
            assert shop.ca.metric(alone) == 0

    async def test_that_has_expired_is_refused(self, shop: Shop) -> None:
        good = await shop.token(await shop.pod())
        now = int(datetime.now(UTC).timestamp())
        expired = shop.changed(good, iat=now - 1200, nbf=now - 1200, exp=now - 600)
        assert await shop.refused(expired, because="expired|ended") == NOT_PROVEN
        assert await shop.gets(shop.changed(good, iat=now - 1200, nbf=now - 1200, exp=now + 600)) == shop.id("web")

    @pytest.mark.parametrize("audience", ["vault", "https://kubernetes.default.svc"])
    async def test_for_another_audience_is_refused(self, shop: Shop, audience: str) -> None:
        pod = await shop.pod()
        assert await shop.refused(await shop.token(pod, audience=audience), because="audience") == NOT_PROVEN
        assert await shop.gets(await shop.token(pod)) == shop.id("web")

    async def test_of_a_deleted_pod_or_service_account_is_refused_within_a_moment_and_one_of_its_successor_is_not(
        self, shop: Shop
    ) -> None:
        pod, account = await shop.pod(), f"gone-{uuid.uuid4().hex[:8]}"
        await shop.admin.create_service_account(shop.namespace, account)
        of_pod, of_account = await shop.token(pod), await shop.token(None, account=account)
        assert await shop.gets(of_pod) == shop.id("web")
        assert await shop.gets(of_account) == shop.id(account)
        await shop.delete(pod)
        await shop.admin.delete(f"/api/v1/namespaces/{shop.namespace}/serviceaccounts/{account}")
        successor = await shop.admin.create_pod(shop.namespace, pod["metadata"]["name"], service_account="web")
        await shop.admin.create_service_account(shop.namespace, account)
        assert successor["metadata"]["uid"] != pod["metadata"]["uid"]
        assert await shop.refused(of_pod, because="refuses the token: .*pod UID") == NOT_PROVEN
        assert await shop.refused(of_account, because="refuses the token: .*service account UID") == NOT_PROVEN
        assert await shop.gets(await shop.token(successor)) == shop.id("web")
        assert await shop.gets(await shop.token(None, account=account)) == shop.id(account)

    @pytest.mark.parametrize(
        "damage",
        [
            lambda _: "garbage",
            lambda _: "a.b.c",
            lambda token: token[:-6],
            lambda token: token.replace(".", ".AAAA", 1),
            lambda _: "join-" + "A" * 43,
        ],
        ids=["a word", "three words", "cut off", "changed", "of another platform"],
    )
    async def test_that_nobody_signed_is_refused(self, shop: Shop, damage: Callable[[str], str]) -> None:
        good = await shop.token(await shop.pod())
        assert await shop.refused(damage(good), because="token|malformed|signature") == NOT_PROVEN
        assert await shop.gets(good) == shop.id("web")

    async def test_is_needed(self, shop: Shop) -> None:
        assert await shop.refused(None, because="neither a certificate nor a token") == NOT_PROVEN
        assert await shop.gets(await shop.token(await shop.pod())) == shop.id("web")


class TestACertificate:
    async def test_together_with_a_token_must_be_of_the_same_identity(self, shop: Shop) -> None:
        token = await shop.token(await shop.pod())
        _, own = await shop.caller.identity(token)
        _, other = await shop.caller.identity(await shop.token(await shop.pod("db"), account="db"))
        assert await shop.gets(token, shown=own) == shop.id("web")
        because = f"the proofs disagree: .*{shop.id('db')}.*{shop.id('web')}"
        assert await shop.refused(token, shown=other, because=because) == NOT_PROVEN

    async def test_does_not_make_up_for_a_token_that_is_bad(self, shop: Shop) -> None:
        token = await shop.token(await shop.pod())
        _, own = await shop.caller.identity(token)
        assert await shop.refused(token[:-6], shown=own, because="signature|token") == NOT_PROVEN
        assert await shop.gets(None, shown=own) == shop.id("web")


class TestANodeAccount:
    async def test_gets_the_identities_of_pods_on_its_own_node_alone(self, shop: Shop) -> None:
        here, elsewhere, db = await shop.node(), await shop.node(), shop.id("db")
        ztunnel = await shop.token(await shop.pod(ZTUNNEL, here), account=ZTUNNEL)
        assert await shop.gets(ztunnel) == shop.id(ZTUNNEL)
        away = await shop.pod("db", elsewhere)
        there = await shop.token(await shop.pod(ZTUNNEL, elsewhere), account=ZTUNNEL)
        assert await shop.gets(there, wanted=db) == db
        because = f"no pod of {shop.namespace}/db is on {here}, the node of"
        assert await shop.refused(ztunnel, wanted=db, because=because) == NOT_IMPERSONATED
        await shop.pod("db", here)
        assert await shop.gets(ztunnel, wanted=db) == db
        await shop.delete(away)
        because = f"no pod of {shop.namespace}/db is on {elsewhere}"
        assert await shop.refused(there, wanted=db, because=because) == NOT_IMPERSONATED

    async def test_gets_none_of_another_trust_domain(self, shop: Shop) -> None:
        node, db = await shop.node(), shop.id("db")
        await shop.pod("db", node)
        ztunnel = await shop.token(await shop.pod(ZTUNNEL, node), account=ZTUNNEL)
        foreign = db.replace("cluster.local", "other.test")
        because = "not in the trust domain"
        assert await shop.refused(ztunnel, wanted=foreign, because=because) == NOT_IMPERSONATED
        assert await shop.gets(ztunnel, wanted=db) == db

    async def test_must_be_trusted(self, shop: Shop) -> None:
        node, db = await shop.node(), shop.id("db")
        await shop.pod("db", node)
        token = await shop.token(await shop.pod("untrusted", node), account="untrusted")
        assert await shop.refused(token, wanted=db, because="no trusted node account") == NOT_IMPERSONATED
        assert await shop.gets(token, wanted=shop.id("untrusted")) == shop.id("untrusted")

    async def test_must_show_the_token_of_its_pod(self, shop: Shop) -> None:
        node, db = await shop.node(), shop.id("db")
        await shop.pod("db", node)
        token = await shop.token(await shop.pod(ZTUNNEL, node), account=ZTUNNEL)
        _, own = await shop.caller.identity(token)
        assert await shop.refused(None, shown=own, wanted=db, because=f"{ZTUNNEL}.*{db}|not") == NOT_IMPERSONATED
        unbound = await shop.token(None, account=ZTUNNEL)
        assert await shop.refused(unbound, wanted=db, because="bound to no pod") == NOT_IMPERSONATED
        assert await shop.gets(token, shown=own, wanted=db) == db
