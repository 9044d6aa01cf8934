"""Both clients against a Workload API on a real socket: what they say, take, refuse and wait for."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NoReturn

import grpc
import pytest

from istio_auth.bundle import BundleSet
from istio_auth.errors import ConfigurationError, IstioAuthError, MalformedError, NotAuthorized, NotReady, UnknownMethod
from istio_auth.jwt_bundle import JWTBundleSet
from istio_auth.proto import workload_api_pb2 as messages
from istio_auth.workload_api import BlockingWorkloadAPIClient, WorkloadAPIClient
from istio_auth.workload_api.decode import InvalidResponse, ValidatedJWTSVID
from istio_auth.x509_source import X509Context
from tests.fakes import workload_api as fake
from tests.fakes.token_issuer import TokenIssuer
from tests.fakes.waiting import until, until_async
from tests.fakes.workload_api import FakeWorkloadAPI, Stream
from tests.integration.workload_api.either import KINDS, EitherClient
from tests.vectors.x509_svid import FEDERATED, LOCAL

Kind = type[BlockingWorkloadAPIClient] | type[WorkloadAPIClient]

WEB, DB = LOCAL.svid(), LOCAL.svid("/ns/default/sa/db")
BUNDLE = LOCAL.bundle()
ISSUER = TokenIssuer()
FOR_US = "spiffe://cluster.local/ns/default/sa/db"
GOOD = fake.x509(fake.entry(WEB, BUNDLE))
FETCHES = ["fetch_x509_context", "fetch_x509_svids", "fetch_x509_bundles", "fetch_jwt_bundles"]
WATCHES = ["watch_x509_context", "watch_x509_bundles", "watch_jwt_bundles"]


@pytest.fixture(params=KINDS, ids=["blocking", "asyncio"])
def kind(request: pytest.FixtureRequest) -> Kind:
    found: Kind = request.param
    return found


@pytest.fixture
async def client(kind: Kind, api: FakeWorkloadAPI) -> AsyncIterator[EitherClient]:
    either = EitherClient(kind(api.address))
    yield either
    await either.close()


def say_everything(api: FakeWorkloadAPI) -> None:
    api.x509.say(fake.x509(fake.entry(WEB, BUNDLE), fake.entry(DB, BUNDLE), federated=[FEDERATED.bundle()]))
    api.x509_bundles.say(fake.x509_bundles(BUNDLE, FEDERATED.bundle()))
    api.jwt_bundles.say(fake.jwt_bundles({"cluster.local": ISSUER}))
    api.jwt_svids = tokens
    api.validate = validated


def tokens(request: messages.JWTSVIDRequest, context: grpc.ServicerContext) -> messages.JWTSVIDResponse:
    """A token for each identity, or for the one that is asked for, as an agent gives it."""
    mine = {str(svid.id) for svid in (WEB, DB)}
    if not request.audience:
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "audience must be specified")
    if request.spiffe_id and request.spiffe_id not in mine:
        context.abort(grpc.StatusCode.PERMISSION_DENIED, "no identity issued")
    names = [request.spiffe_id] if request.spiffe_id else [str(WEB.id), str(DB.id)]
    made = [
        messages.JWTSVID(spiffe_id=name, svid=ISSUER.token(datetime.now(UTC), sub=name, aud=list(request.audience)))
        for name in names
    ]
    return messages.JWTSVIDResponse(svids=made)


def validated(
    request: messages.ValidateJWTSVIDRequest, context: grpc.ServicerContext
) -> messages.ValidateJWTSVIDResponse:
    if request.svid == "bad":
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, "token has expired")
    response = messages.ValidateJWTSVIDResponse(spiffe_id=str(WEB.id))
    response.claims.update({"sub": str(WEB.id), "aud": [request.audience], "exp": 2e9})
    return response


def streams(api: FakeWorkloadAPI) -> tuple[Stream, ...]:
    return api.x509, api.x509_bundles, api.jwt_bundles


class TestFetching:
    async def test_wa_01_both_profiles_are_read(self, api: FakeWorkloadAPI, client: EitherClient) -> None:
        say_everything(api)
        context = await client("fetch_x509_context")
        assert isinstance(context, X509Context)
        assert [svid.id for svid in context.svids] == [WEB.id, DB.id]
        assert context.bundle(FEDERATED.trust_domain).x509_authorities == FEDERATED.bundle().x509_authorities
        assert await client("fetch_x509_svids") == context.svids
        bundles = await client("fetch_x509_bundles")
        assert isinstance(bundles, BundleSet)
        assert {bundle.trust_domain for bundle in bundles} == {LOCAL.trust_domain, FEDERATED.trust_domain}
        keys = await client("fetch_jwt_bundles")
        assert isinstance(keys, JWTBundleSet)
        assert [key.key_id for key in keys.bundle(LOCAL.trust_domain).keys.keys] == [ISSUER.key_id]

    async def test_we_05_every_call_carries_the_security_header(
        self, api: FakeWorkloadAPI, client: EitherClient
    ) -> None:
        say_everything(api)
        for fetch in FETCHES:
            await client(fetch)
        await client("fetch_jwt_svids", [FOR_US])
        await client("validate_jwt_svid", "token", FOR_US)  # the fake refuses both without it
        seen = [metadata for stream in streams(api) for metadata in stream.metadata]
        assert len(seen) == len(FETCHES)
        for metadata in seen:
            assert [value for name, value in metadata if name == "workload.spiffe.io"] == ["true"]

    async def test_we_06_no_call_carries_credentials(self, api: FakeWorkloadAPI, client: EitherClient) -> None:
        say_everything(api)
        await client("fetch_x509_context")
        assert {name for name, _ in api.x509.metadata[0]} <= {"workload.spiffe.io", "user-agent"}

    async def test_wa_17_jwt_svids_come_for_all_identities_or_for_one(
        self, api: FakeWorkloadAPI, client: EitherClient
    ) -> None:
        say_everything(api)
        both = await client("fetch_jwt_svids", [FOR_US])
        assert [svid.id for svid in both] == [WEB.id, DB.id]  # type: ignore[attr-defined]  # what the call gave
        one = await client("fetch_jwt_svids", [FOR_US], spiffe_id=DB.id)
        assert [(svid.id, svid.audiences) for svid in one] == [(DB.id, (FOR_US,))]  # type: ignore[attr-defined]  # what the call gave
        with pytest.raises(NotAuthorized, match="no identity issued"):
            await client("fetch_jwt_svids", [FOR_US], spiffe_id=FEDERATED.svid().id)

    @pytest.mark.parametrize("audience", [[], [""], "spiffe://cluster.local/web"])
    async def test_wa_08_without_an_audience_nothing_is_asked(
        self, api: FakeWorkloadAPI, client: EitherClient, audience: list[str] | str
    ) -> None:
        say_everything(api)
        with pytest.raises(ConfigurationError, match="at least one audience"):
            await client("fetch_jwt_svids", audience)

    async def test_wa_08_to_validate_takes_a_token_and_an_audience(
        self, api: FakeWorkloadAPI, client: EitherClient
    ) -> None:
        say_everything(api)
        for token, audience in (("", FOR_US), ("token", "")):
            with pytest.raises(ConfigurationError, match="a token and an audience"):
                await client("validate_jwt_svid", token, audience)

    async def test_wa_18_a_token_is_validated_and_its_claims_are_told(
        self, api: FakeWorkloadAPI, client: EitherClient
    ) -> None:
        say_everything(api)
        found = await client("validate_jwt_svid", "token", FOR_US)
        assert isinstance(found, ValidatedJWTSVID)
        assert found.id == WEB.id
        assert found.claims["aud"] == [FOR_US]
        with pytest.raises(MalformedError, match="token has expired"):
            await client("validate_jwt_svid", "bad", FOR_US)

    @pytest.mark.parametrize(
        ("code", "error"),
        [
            (grpc.StatusCode.INVALID_ARGUMENT, MalformedError),
            (grpc.StatusCode.UNAVAILABLE, NotReady),
            (grpc.StatusCode.PERMISSION_DENIED, NotAuthorized),
            (grpc.StatusCode.UNIMPLEMENTED, UnknownMethod),
            (grpc.StatusCode.INTERNAL, IstioAuthError),
        ],
    )
    async def test_wa_13_each_code_is_an_error_of_its_own(
        self, api: FakeWorkloadAPI, client: EitherClient, code: grpc.StatusCode, error: type[IstioAuthError]
    ) -> None:
        for stream in streams(api):
            stream.refuse(code, "so it is")
        for fetch in FETCHES:
            with pytest.raises(error, match="so it is") as raised:
                await client(fetch)
            assert type(raised.value) is error
        say_everything(api)
        for fetch in FETCHES:
            assert await client(fetch)

    async def test_wa_02_profiles_that_are_not_supported_are_told(
        self, api: FakeWorkloadAPI, client: EitherClient
    ) -> None:
        assert api.jwt_svids is None
        with pytest.raises(UnknownMethod):
            await client("fetch_jwt_svids", [FOR_US])
        with pytest.raises(UnknownMethod):
            await client("validate_jwt_svid", "token", FOR_US)

    async def test_wa_09_an_answer_that_breaks_the_standard_is_an_error(
        self, api: FakeWorkloadAPI, client: EitherClient
    ) -> None:
        api.x509.say(fake.x509(fake.entry(WEB, BUNDLE, bundle=b"")))
        with pytest.raises(InvalidResponse, match="bundle must not be empty"):
            await client("fetch_x509_context")
        api.x509.say(GOOD)
        assert await client("fetch_x509_context")

    @pytest.mark.parametrize("half", [GOOD.SerializeToString()[:-20], b"\xff\xff\xff"])
    async def test_half_an_answer_is_an_error(self, api: FakeWorkloadAPI, client: EitherClient, half: bytes) -> None:
        api.x509.say(half)
        with pytest.raises(MalformedError, match="does not parse"):
            await client("fetch_x509_context")

    async def test_a_stream_that_ends_without_an_answer_is_an_error(
        self, api: FakeWorkloadAPI, client: EitherClient
    ) -> None:
        fetching = asyncio.create_task(client("fetch_x509_context"))
        await until(lambda: api.x509.open == 1)
        api.x509.end()
        with pytest.raises(NotReady, match="ended without an answer"):
            await fetching

    async def test_wa_03_an_agent_that_does_not_answer_is_not_waited_for_for_ever(
        self, kind: Kind, api: FakeWorkloadAPI
    ) -> None:
        api.x509.hush()
        client = EitherClient(kind(api.address, timeout=timedelta(milliseconds=200)))
        with pytest.raises(NotReady, match=r"was not answered within 0\.2 seconds"):
            await client("fetch_x509_context")
        api.x509.say(GOOD)
        await until_async(lambda: answered(client))
        await client.close()

    async def test_an_agent_that_is_not_there_is_told_with_its_path(self, kind: Kind, tmp_path: Path) -> None:
        client = EitherClient(kind(f"unix://{tmp_path}/nobody.sock"))
        with pytest.raises(NotReady, match=r"nobody\.sock"):
            await client("fetch_x509_context")
        await client.close()

    async def test_whoever_hangs_up_or_speaks_another_language_is_no_agent(self, kind: Kind, tmp_path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(str(tmp_path / "other.sock"))
            listener.listen()
            server = asyncio.create_task(_rude(listener))
            client = EitherClient(kind(f"unix://{tmp_path}/other.sock", timeout=timedelta(seconds=5)))
            with pytest.raises(NotReady):
                await client("fetch_x509_context")
            await client.close()
            server.cancel()
            await asyncio.gather(server, return_exceptions=True)

    async def test_a_closed_client_says_so(self, api: FakeWorkloadAPI, client: EitherClient) -> None:
        say_everything(api)
        await client("fetch_x509_context")
        await client.close()
        await client.close()
        with pytest.raises(NotReady, match="the client is closed"):
            await client("fetch_x509_context")

    async def test_closing_ends_who_waits_for_an_answer(self, api: FakeWorkloadAPI, client: EitherClient) -> None:
        fetching = asyncio.create_task(client("fetch_x509_context"))
        await until(lambda: api.x509.open == 1)
        await client.close()
        with pytest.raises(NotReady):
            await fetching

    async def test_we_01_an_agent_on_tcp_is_asked_just_so(self, kind: Kind, api: FakeWorkloadAPI) -> None:
        say_everything(api)
        client = EitherClient(kind(f"tcp://127.0.0.1:{api.port}"))
        assert await client("fetch_x509_context")
        await client.close()

    async def test_we_07_the_environment_says_whom_to_ask(
        self, kind: Kind, api: FakeWorkloadAPI, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        say_everything(api)
        with pytest.raises(ConfigurationError, match="SPIFFE_ENDPOINT_SOCKET"):
            kind()
        monkeypatch.setenv("SPIFFE_ENDPOINT_SOCKET", api.address)
        client = EitherClient(kind())
        assert await client("fetch_x509_context")
        await client.close()


async def answered(client: EitherClient) -> bool:
    """Whether an answer came before the client lost its patience, which may be less than a busy machine needs."""
    try:
        return bool(await client("fetch_x509_context"))
    except NotReady:
        return False


async def _rude(listener: socket.socket) -> NoReturn:
    listener.setblocking(False)
    while True:
        connection, _ = await asyncio.get_running_loop().sock_accept(listener)
        connection.send(b"HTTP/1.0 400 Bad Request\r\n\r\n")
        connection.close()


async def test_a_trust_domain_that_is_left_out_of_an_answer_is_told(
    api: FakeWorkloadAPI, client: EitherClient, caplog: pytest.LogCaptureFixture
) -> None:
    say_everything(api)
    bundles = {"spiffe://cluster.local": fake.der(BUNDLE), "spiffe://partner.test": b"junk"}
    api.x509_bundles.say(messages.X509BundlesResponse(bundles=bundles))
    found = await client("fetch_x509_bundles")
    assert isinstance(found, BundleSet)
    assert [bundle.trust_domain for bundle in found] == [LOCAL.trust_domain]
    assert "'spiffe://partner.test' is left out" in caplog.text
    async with client.watching("watch_x509_bundles") as watched:
        await until(lambda: watched.errors)
        assert watched.values == [found]
    assert "'spiffe://partner.test' is left out" in str(watched.errors[0])


class TestWatching:
    async def test_wa_06_each_change_is_told(self, api: FakeWorkloadAPI, client: EitherClient) -> None:
        say_everything(api)
        for watch, stream, again in (
            ("watch_x509_context", api.x509, GOOD),
            ("watch_x509_bundles", api.x509_bundles, fake.x509_bundles(BUNDLE)),
            ("watch_jwt_bundles", api.jwt_bundles, fake.jwt_bundles({"partner.test": ISSUER})),
        ):
            either = EitherClient(type(client.client)(api.address))
            async with either.watching(watch) as watched:
                await until(lambda watched=watched: len(watched.values) == 1)  # type: ignore[misc]  # a default binds the loop's value
                stream.say(again)
                await until(lambda watched=watched: len(watched.values) == 2)  # type: ignore[misc]  # a default binds the loop's value
            assert (watched.errors, watched.end, stream.calls) == ([], None, 1)

    @pytest.mark.parametrize("watch", WATCHES)
    async def test_wa_07_a_stream_that_ends_is_opened_again(
        self, api: FakeWorkloadAPI, client: EitherClient, watch: str
    ) -> None:
        say_everything(api)
        stream = dict(zip(WATCHES, streams(api), strict=True))[watch]
        async with client.watching(watch) as watched:
            for count in (1, 2, 3):
                await until(lambda count=count: len(watched.values) == count)  # type: ignore[misc]  # a default binds the loop's value
                stream.end()
            await until(lambda: len(watched.values) == 4)
        assert (watched.errors, stream.calls) == ([], 4)

    async def test_a_stream_that_keeps_ending_is_not_opened_in_a_hot_loop(
        self, api: FakeWorkloadAPI, client: EitherClient
    ) -> None:
        say_everything(api)
        async with client.watching("watch_x509_context"), asyncio.timeout(60):
            began = asyncio.get_running_loop().time()
            while api.x509.calls < 6:
                if api.x509.open:
                    api.x509.end()
                await asyncio.sleep(0.001)
            assert asyncio.get_running_loop().time() - began > 0.5 * (0.1 + 0.2 + 0.4 + 0.8)

    @pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.PERMISSION_DENIED])
    async def test_wa_14_what_may_pass_is_told_and_tried_again(
        self, api: FakeWorkloadAPI, client: EitherClient, code: grpc.StatusCode
    ) -> None:
        say_everything(api)
        async with client.watching("watch_x509_context") as watched:
            await until(lambda: watched.values)
            api.x509.refuse(code, "not now")
            await until(lambda: watched.errors)
            say_everything(api)
            await until(lambda: len(watched.values) == 2)
        assert isinstance(watched.errors[0], NotAuthorized if "DENIED" in code.name else NotReady)

    @pytest.mark.parametrize("code", [grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.UNIMPLEMENTED])
    async def test_we_05_what_can_not_pass_ends_the_watch(
        self, api: FakeWorkloadAPI, client: EitherClient, code: grpc.StatusCode
    ) -> None:
        api.x509.refuse(code, "never")
        async with client.watching("watch_x509_context") as watched:
            await until(lambda: watched.over)
            assert api.x509.calls == 1
        assert isinstance(watched.end, MalformedError | UnknownMethod)

    async def test_wa_09_an_answer_that_breaks_the_standard_is_passed_over_and_the_stream_goes_on(
        self, api: FakeWorkloadAPI, client: EitherClient
    ) -> None:
        say_everything(api)
        async with client.watching("watch_x509_context") as watched:
            await until(lambda: watched.values)
            api.x509.say(messages.X509SVIDResponse())
            await until(lambda: watched.errors)
            api.x509.say(GOOD)
            await until(lambda: len(watched.values) == 2)
        assert [type(error) for error in watched.errors] == [InvalidResponse]
        assert api.x509.calls == 1

    async def test_an_agent_that_comes_later_is_waited_for_and_one_that_comes_again_is_found(
        self, kind: Kind, tmp_path: Path
    ) -> None:
        api = FakeWorkloadAPI(tmp_path / "agent.sock")
        say_everything(api)
        client = EitherClient(kind(api.address))
        async with client.watching("watch_x509_context") as watched:
            await until(lambda: watched.errors)
            for count in (1, 2):
                with api:
                    await until(lambda count=count: len(watched.values) == count)  # type: ignore[misc]  # a default binds the loop's value
        assert all(isinstance(error, NotReady) for error in watched.errors)

    async def test_an_agent_that_stalls_is_called_anew(self, kind: Kind, api: FakeWorkloadAPI) -> None:
        client = EitherClient(kind(api.address, timeout=timedelta(milliseconds=300)))
        async with client.watching("watch_x509_context") as watched:
            await until(lambda: api.x509.calls >= 2)
            say_everything(api)
            await until(lambda: watched.values)
            seen = api.x509.calls
            api.x509.say(GOOD)
            await until(lambda: len(watched.values) == 2)
            assert api.x509.calls == seen  # only a first answer is overdue
        assert "was not answered within 0.3 seconds" in str(watched.errors[0])


async def test_a_task_that_is_cancelled_while_it_waits_is_cancelled(api: FakeWorkloadAPI) -> None:
    async with WorkloadAPIClient(api.address) as client:
        for waiting in (client.fetch_x509_context(), anext(client.watch_x509_context(print))):
            task = asyncio.ensure_future(waiting)
            await until(lambda: api.x509.open == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await until(lambda: api.x509.open == 0)


async def test_only_the_first_answer_is_waited_for_with_a_clock(api: FakeWorkloadAPI) -> None:
    def patient() -> bool:
        return any(thread.name == "istio-auth patience" for thread in threading.enumerate())

    client = EitherClient(BlockingWorkloadAPIClient(api.address, timeout=timedelta(hours=1)))
    async with client.watching("watch_x509_context") as watched:
        await until(lambda: api.x509.open == 1)
        await until(patient)
        say_everything(api)
        await until(lambda: watched.values)
        await until(lambda: not patient())
        assert api.x509.open == 1


def test_we_04_channels_ask_for_no_tls(api: FakeWorkloadAPI) -> None:
    # The fake has no certificate to show: any call that is answered was made in the clear.
    say_everything(api)
    with BlockingWorkloadAPIClient(api.address) as client:
        assert client.fetch_x509_context().svid.id == WEB.id


def test_we_10_the_service_is_the_standards_and_nothing_was_added_to_it() -> None:
    service = messages.DESCRIPTOR.services_by_name["SpiffeWorkloadAPI"]
    assert [method.name for method in service.methods] == [
        "FetchX509SVID",
        "FetchX509Bundles",
        "FetchJWTSVID",
        "FetchJWTBundles",
        "ValidateJWTSVID",
        "FetchWITSVID",
        "FetchWITBundles",
    ]
