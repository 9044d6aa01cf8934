"""KubernetesAPI: what goes over the wire, what each answer means, and that nothing waits for ever."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ca.platform.kubernetes.api.client import DEADLINE, KubernetesAPI, Selection
from ca.platform.kubernetes.api.connection import connected
from ca.platform.kubernetes.api.objects import Object, member, text
from ca.platform.kubernetes.api.refusals import AccessRefused, ObjectRefused, WatchExpired
from ca.platform.kubernetes.api.refusals import refusal as refused
from ca.platform.kubernetes.api.resources import CERTIFICATE_SIGNING_REQUESTS, PODS, SECRETS, TOKEN_REVIEWS, Resource
from istio_auth.errors import ConflictError, Exhausted, IstioAuthError, MissingError, NotReady
from istio_auth.strict_json import JSON
from tests.fakes.api_server import FakeAPIServer, refusal
from tests.fakes.clock import FakeClock
from tests.fakes.loop_clock import set_forward
from tests.fakes.tcp import closed_port
from tests.fakes.waiting import until

LASTING = timedelta(minutes=5)
HTML = b"<html><body>Bad gateway</body></html>"


async def names(api: KubernetesAPI, resource: Resource, selection: Selection | None = None) -> list[object]:
    return [
        metadata["name"]
        async for page in api.pages(resource, selection or Selection())
        for item in page.items
        if isinstance(metadata := item["metadata"], dict)
    ]


async def events(api: KubernetesAPI, version: str, most: int) -> list[Object]:
    found: list[Object] = []
    async with api.watch(SECRETS, version, lasting=LASTING) as changes:
        async for event in changes:
            found.append(event)
            if len(found) == most:
                break
    return found


class TestVerbs:
    async def test_an_object_is_got_by_its_name_and_namespace(self, api: KubernetesAPI, server: FakeAPIServer) -> None:
        server.put(SECRETS, "istio.web", namespace="shop", data={"a": "YQ=="})
        assert (await api.get(SECRETS, "istio.web", namespace="shop"))["data"] == {"a": "YQ=="}
        assert [(asked.method, asked.path) for asked in server.asked] == [
            ("GET", "/api/v1/namespaces/shop/secrets/istio.web")
        ]

    async def test_a_name_stays_within_its_part_of_the_path(self, api: KubernetesAPI, server: FakeAPIServer) -> None:
        server.put(SECRETS, "a/b?c", namespace="shop")
        assert await api.get(SECRETS, "a/b?c", namespace="shop")

    async def test_what_is_created_says_of_what_kind_it_is(self, api: KubernetesAPI, server: FakeAPIServer) -> None:
        made = await api.create(SECRETS, {"metadata": {"name": "x"}}, namespace="shop")
        (asked,) = server.asked
        assert (asked.method, asked.path) == ("POST", "/api/v1/namespaces/shop/secrets")
        assert asked.headers["content-type"] == "application/json"
        assert asked.headers["user-agent"].startswith("istio-auth/")
        assert asked.body == {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}}
        assert made["metadata"] == {"name": "x"}

    async def test_a_subresource_is_of_the_object_that_is_named(
        self, api: KubernetesAPI, server: FakeAPIServer
    ) -> None:
        await api.create(PODS, {"metadata": {"name": "web-0"}}, namespace="shop", subresource="eviction")
        await api.replace(CERTIFICATE_SIGNING_REQUESTS, {"metadata": {"name": "csr"}}, subresource="approval")
        await api.patch(PODS, "web-0", {"status": {}}, namespace="shop", subresource="status")
        assert [(asked.method, asked.path) for asked in server.asked] == [
            ("POST", "/api/v1/namespaces/shop/pods/web-0/eviction"),
            ("PUT", "/apis/certificates.k8s.io/v1/certificatesigningrequests/csr/approval"),
            ("PATCH", "/api/v1/namespaces/shop/pods/web-0/status"),
        ]

    async def test_an_object_is_replaced_under_the_version_it_carries(
        self, api: KubernetesAPI, server: FakeAPIServer
    ) -> None:
        await api.replace(SECRETS, {"metadata": {"name": "x", "namespace": "shop", "resourceVersion": "7"}})
        (asked,) = server.asked
        assert (asked.method, asked.path) == ("PUT", "/api/v1/namespaces/shop/secrets/x")
        assert asked.body["metadata"] == {"name": "x", "namespace": "shop", "resourceVersion": "7"}

    async def test_a_patch_is_a_merge_patch(self, api: KubernetesAPI, server: FakeAPIServer) -> None:
        await api.patch(SECRETS, "x", {"data": {"gone": None}}, namespace="shop")
        (asked,) = server.asked
        assert asked.headers["content-type"] == "application/merge-patch+json"
        assert asked.body == {"data": {"gone": None}}

    async def test_what_is_deleted_is_the_object_that_was_seen(self, api: KubernetesAPI, server: FakeAPIServer) -> None:
        await api.delete(SECRETS, "x", namespace="shop", uid="u-1", version="7")
        await api.delete(SECRETS, "x", namespace="shop")
        seen, any_one = server.asked
        assert (seen.method, seen.path) == ("DELETE", "/api/v1/namespaces/shop/secrets/x")
        assert seen.body["preconditions"] == {"uid": "u-1", "resourceVersion": "7"}
        assert any_one.body["preconditions"] == {}

    async def test_each_try_is_counted_by_the_verb_and_the_words_of_roles(
        self, api: KubernetesAPI, server: FakeAPIServer
    ) -> None:
        server.answer(429, headers={"Retry-After": "0"})
        await names(api, SECRETS)
        await api.replace(CERTIFICATE_SIGNING_REQUESTS, {"metadata": {"name": "csr"}}, subresource="approval")
        await api.create(TOKEN_REVIEWS, {})
        assert api.calls == {
            ("list", "secrets"): 2,
            ("update", "certificatesigningrequests.certificates.k8s.io/approval"): 1,
            ("create", "tokenreviews.authentication.k8s.io"): 1,
        }

    @pytest.mark.parametrize("served", [True, False])
    async def test_whether_a_kind_is_served_is_read_from_discovery(
        self, api: KubernetesAPI, server: FakeAPIServer, *, served: bool
    ) -> None:
        kinds = ["pods", "secrets"] if served else ["pods"]
        server.answer(200, {"kind": "APIResourceList", "resources": [{"name": name} for name in kinds]})
        assert await api.serves(SECRETS) is served
        assert server.asked[0].path == "/api/v1"

    async def test_a_group_that_is_not_there_is_not_served_and_trouble_is_no_answer(
        self, api: KubernetesAPI, server: FakeAPIServer
    ) -> None:
        assert await api.serves(CERTIFICATE_SIGNING_REQUESTS) is False
        answers: list[tuple[int, JSON]] = [(503, None), (200, {"kind": "Other"})]
        for status, content in answers:
            server.answer(status, content)
            with pytest.raises(NotReady):
                await api.serves(CERTIFICATE_SIGNING_REQUESTS)

    async def test_how_far_the_clocks_differ_is_learned_from_any_answer(
        self, server: FakeAPIServer, tmp_path: Path
    ) -> None:
        clock = FakeClock(datetime(2030, 1, 1, tzinfo=UTC))
        async with connected(server.kubeconfig(tmp_path / "kubeconfig"), clock=clock) as api:
            seen = [api.ahead]
            for date in ("Tue, 01 Jan 2030 00:05:00 GMT", "no date", "Mon, 31 Dec 2029 23:55:00 GMT"):
                server.answer(404, headers={"Date": date})
                with pytest.raises(MissingError):
                    await api.get(SECRETS, "x", namespace="shop")
                seen.append(api.ahead)
        assert seen == [None, timedelta(minutes=5), timedelta(minutes=5), timedelta(minutes=-5)]


class TestRefusals:
    @pytest.mark.parametrize(
        ("status", "error"),
        [
            (400, ObjectRefused),
            (401, AccessRefused),
            (403, AccessRefused),
            (404, MissingError),
            (405, NotReady),
            (408, NotReady),
            (409, ConflictError),
            (410, WatchExpired),
            (413, NotReady),
            (415, NotReady),
            (422, ObjectRefused),
            (429, Exhausted),
            (500, NotReady),
            (502, NotReady),
            (503, NotReady),
            (504, NotReady),
            (304, NotReady),
            (599, NotReady),
        ],
    )
    async def test_each_has_its_type_and_nothing_but_404_says_that_there_is_none(
        self, api: KubernetesAPI, server: FakeAPIServer, status: int, error: type[IstioAuthError]
    ) -> None:
        server.put(SECRETS, "x", namespace="shop")
        server.answer(status, headers={"Retry-After": "60"})
        with pytest.raises(IstioAuthError) as caught:
            await api.get(SECRETS, "x", namespace="shop")
        assert type(caught.value) is error
        assert "get /api/v1/namespaces/shop/secrets/x" in str(caught.value)
        assert len(server.asked) == 1  # whether it is tried again is for the caller to say
        assert await api.get(SECRETS, "x", namespace="shop")

    async def test_a_namespace_that_ends_is_as_good_as_gone(self, api: KubernetesAPI, server: FakeAPIServer) -> None:
        said = 'secrets "x" is forbidden: unable to create new content in namespace shop because it is being terminated'
        server.answer(403, refusal(403, said))
        with pytest.raises(MissingError):
            await api.create(SECRETS, {"metadata": {"name": "x"}}, namespace="shop")

    @pytest.mark.parametrize(("status", "error"), [(404, MissingError), (502, NotReady)])
    async def test_an_error_page_counts_by_its_status(
        self, api: KubernetesAPI, server: FakeAPIServer, status: int, error: type[IstioAuthError]
    ) -> None:
        server.answer(status, HTML)
        with pytest.raises(error, match="Bad gateway"):
            await api.get(SECRETS, "x", namespace="shop")

    @pytest.mark.parametrize("content", [HTML, b"", b"[]", b"null", b'"ok"', b"{}", b'{"status": "ok"}'])
    async def test_a_good_answer_that_is_not_of_kubernetes_says_nothing(
        self, api: KubernetesAPI, server: FakeAPIServer, content: bytes
    ) -> None:
        calls: list[Callable[[], Awaitable[object]]] = [
            lambda: api.get(SECRETS, "x", namespace="shop"),
            lambda: names(api, SECRETS),
            lambda: api.create(TOKEN_REVIEWS, {}),
            lambda: api.delete(SECRETS, "x", namespace="shop"),
        ]
        for call in calls:
            server.answer(200, content)
            with pytest.raises(NotReady):
                await call()

    async def test_a_document_that_is_no_json_says_nothing(self, api: KubernetesAPI, server: FakeAPIServer) -> None:
        for content in (HTML, b""):
            server.answer(200, content)
            with pytest.raises(NotReady, match="no JSON"):
                await api.read("/openid/v1/jwks")

    async def test_no_token_that_the_api_server_quotes_gets_into_an_error(
        self, api: KubernetesAPI, server: FakeAPIServer
    ) -> None:
        token = f"eyJhbGciOiJSUzI1NiJ9.{'c2VjcmV0' * 200}.c2lnbmF0dXJl"
        for status in (400, 401, 403, 409, 500):
            for content in (refusal(status, f"bearer token {token} is bad"), f"<p>{token}</p>".encode()):
                server.answer(status, content)
                with pytest.raises(IstioAuthError) as caught:
                    await api.create(TOKEN_REVIEWS, {"spec": {"token": token}})
                assert "eyJ" not in str(caught.value)
                assert "c2VjcmV0" not in str(caught.value)

    async def test_what_is_said_is_cut_and_the_query_left_out(self, api: KubernetesAPI, server: FakeAPIServer) -> None:
        server.answer(500, refusal(500, "x" * 100_000))
        with pytest.raises(NotReady) as caught:
            await names(api, SECRETS, Selection(fields="metadata.name=istio"))
        assert len(str(caught.value)) < 700
        assert "metadata.name" not in str(caught.value)


class TestTooManyRequests:
    async def test_it_is_waited_as_long_as_told_and_each_try_has_a_deadline_of_its_own(
        self, server: FakeAPIServer, tmp_path: Path
    ) -> None:
        server.put(SECRETS, "x", namespace="shop")
        busy = server.answer(429, headers={"Retry-After": "20"})
        async with connected(server.kubeconfig(tmp_path / "kubeconfig"), deadline=timedelta(seconds=19)) as api:
            asking = asyncio.create_task(api.get(SECRETS, "x", namespace="shop"))
            await until(lambda: busy.met)
            done, _ = await asyncio.wait([asking], timeout=0.1)
            assert not done
            set_forward(timedelta(seconds=20))
            assert await asking
        assert len(server.asked) == 2

    async def test_it_is_tried_four_times_and_no_more(self, api: KubernetesAPI, server: FakeAPIServer) -> None:
        server.answer(429, headers={"Retry-After": "0"}, times=100)
        with pytest.raises(Exhausted) as caught:
            await api.create(SECRETS, {"metadata": {"name": "x"}}, namespace="shop")
        assert len(server.asked) == 4
        assert caught.value.retry_after == timedelta()

    async def test_who_wants_to_be_left_alone_for_long_is_not_asked_again(
        self, api: KubernetesAPI, server: FakeAPIServer
    ) -> None:
        server.answer(429, headers={"Retry-After": "31"})
        with pytest.raises(Exhausted) as caught:
            await api.get(SECRETS, "x", namespace="shop")
        assert len(server.asked) == 1
        assert caught.value.retry_after == timedelta(seconds=31)

    @pytest.mark.parametrize(
        ("said", "meant"), [("0", 0), ("31", 31), ("9" * 5000, 600), ("\u00b9", 1), ("", 1), ("-5", 1), ("soon", 1)]
    )
    def test_no_wait_is_without_sense(self, said: str, meant: int) -> None:
        assert refused("get", "/x", 429, "", said).retry_after == timedelta(seconds=meant)


class TestSilence:
    async def test_an_answer_that_never_comes_ends_at_the_deadline(
        self, hasty: KubernetesAPI, server: FakeAPIServer
    ) -> None:
        server.hold(lambda _: True)
        for call in (hasty.get(SECRETS, "x", namespace="shop"), names(hasty, SECRETS), events(hasty, "1", 1)):
            with pytest.raises(NotReady, match="TimeoutError"):
                await call

    async def test_a_watch_has_none(self, api: KubernetesAPI, server: FakeAPIServer) -> None:
        async with api.watch(SECRETS, "100", lasting=LASTING) as changes:
            waiting = asyncio.ensure_future(anext(changes))
            await until(lambda: server.open)
            set_forward(2 * DEADLINE)
            done, _ = await asyncio.wait([waiting], timeout=0.1)
            assert not done
            server.put(SECRETS, "late", namespace="shop")
            assert text(await waiting, "object", "metadata", "name") == "late"

    async def test_nobody_there_is_not_nothing_there(self, server: FakeAPIServer, tmp_path: Path) -> None:
        server.url = f"http://127.0.0.1:{closed_port()}"
        async with connected(server.kubeconfig(tmp_path / "kubeconfig")) as api:
            for call in (api.get(SECRETS, "x", namespace="shop"), names(api, SECRETS), events(api, "1", 1)):
                with pytest.raises(NotReady, match="can not be reached"):
                    await call

    async def test_a_connection_that_breaks_is_not_nothing_there(
        self, api: KubernetesAPI, server: FakeAPIServer
    ) -> None:
        server.hold(lambda _: True)
        asking = asyncio.create_task(api.create(SECRETS, {"metadata": {"name": "x"}}, namespace="shop"))
        await until(lambda: server.asked)
        server.cut()
        with pytest.raises(NotReady, match="can not be reached"):
            await asking

    @pytest.mark.parametrize("halfway", ["break", "stall"])
    @pytest.mark.parametrize("status", [200, 404, 410, 429])
    async def test_an_answer_of_which_the_end_is_missing_says_nothing(
        self, hasty: KubernetesAPI, server: FakeAPIServer, status: int, halfway: str
    ) -> None:
        server.answer(status, b'{"kind": "Status", "mess', halfway=halfway, times=3)
        calls = [hasty.get(SECRETS, "x", namespace="shop"), names(hasty, SECRETS)]
        for call in [*calls, events(hasty, "1", 1)] if status != 200 else calls:
            with pytest.raises(NotReady, match="can not be reached"):
                await call


class TestLists:
    async def test_all_pages_of_one_state_are_given(self, api: KubernetesAPI, server: FakeAPIServer) -> None:
        for number in range(7):
            server.put(SECRETS, f"s-{number}", namespace="shop")
        server.page = 3
        pages = [page async for page in api.pages(SECRETS)]
        assert [len(page.items) for page in pages] == [3, 3, 1]
        assert {page.version for page in pages} == {"107"}
        assert [asked.query["limit"] for asked in server.asked] == ["500"] * 3

    async def test_a_selection_goes_into_every_page(self, api: KubernetesAPI, server: FakeAPIServer) -> None:
        for namespace in ("shop", "bank"):
            for number in range(3):
                server.put(SECRETS, f"s-{number}", namespace=namespace, type="a/b" if number else "c")
        server.page = 1
        assert await names(api, SECRETS, Selection("shop", "type=a/b", "x in (a, b)")) == ["s-1", "s-2"]
        assert [asked.query["labelSelector"] for asked in server.asked] == ["x in (a, b)"] * 2

    async def test_one_that_expires_in_the_middle_is_to_be_begun_anew(
        self, api: KubernetesAPI, server: FakeAPIServer
    ) -> None:
        for number in range(4):
            server.put(SECRETS, f"s-{number}", namespace="shop")
        server.page = 3
        pages = api.pages(SECRETS)
        await anext(pages)
        server.expire()
        with pytest.raises(WatchExpired):
            await anext(pages)
        assert len(await names(api, SECRETS)) == 4

    @pytest.mark.parametrize("items", [None, []])
    async def test_nothing_is_there_if_the_api_server_says_so(
        self, api: KubernetesAPI, server: FakeAPIServer, items: JSON
    ) -> None:
        server.answer(200, {"kind": "SecretList", "metadata": {"resourceVersion": "7"}, "items": items})
        assert [page.items async for page in api.pages(SECRETS)] == [[]]

    @pytest.mark.parametrize(
        "content",
        [
            {"kind": "SecretList", "metadata": {}, "items": []},
            {"kind": "SecretList", "items": []},
            {"kind": "SecretList", "metadata": {"resourceVersion": "7"}, "items": {"a": {}}},
        ],
    )
    async def test_what_is_no_list_is_not_taken_for_an_empty_one(
        self, api: KubernetesAPI, server: FakeAPIServer, content: Object
    ) -> None:
        server.answer(200, content)
        with pytest.raises(NotReady, match="no list"):
            await names(api, SECRETS)

    async def test_a_page_may_be_large(self, api: KubernetesAPI, server: FakeAPIServer) -> None:
        for number in range(10):
            server.put(SECRETS, f"s-{number}", namespace="shop", data={"a": "x" * 1_000_000})
        assert len(await names(api, SECRETS)) == 10


class TestWatches:
    async def test_changes_since_a_version_are_told_in_order(self, api: KubernetesAPI, server: FakeAPIServer) -> None:
        server.put(SECRETS, "old", namespace="shop")
        server.put(SECRETS, "a", namespace="shop")
        server.put(SECRETS, "a", namespace="shop")
        server.remove(SECRETS, "a", namespace="shop")
        found = await events(api, "101", 3)
        assert [event["type"] for event in found] == ["ADDED", "MODIFIED", "DELETED"]
        query = server.asked[0].query
        assert (query["allowWatchBookmarks"], query["timeoutSeconds"]) == ("true", "300")
        assert api.calls == {("watch", "secrets"): 1}

    async def test_only_what_was_selected_is_told(self, api: KubernetesAPI, server: FakeAPIServer) -> None:
        server.put(SECRETS, "other", namespace="bank")
        server.put(SECRETS, "ours", namespace="shop")
        async with api.watch(SECRETS, "100", Selection("shop"), lasting=LASTING) as changes:
            assert text(await anext(changes), "object", "metadata", "name") == "ours"

    async def test_one_that_ends_is_no_fault(self, api: KubernetesAPI, server: FakeAPIServer) -> None:
        async with api.watch(SECRETS, "100", lasting=LASTING) as changes:
            await until(lambda: server.open)
            server.end()
            assert await anext(changes, None) is None

    @pytest.mark.parametrize("in_the_stream", [True, False])
    async def test_a_version_that_is_no_longer_known_is_told_as_such(
        self, api: KubernetesAPI, server: FakeAPIServer, *, in_the_stream: bool
    ) -> None:
        server.expires_as_event = in_the_stream
        server.expire()
        with pytest.raises(WatchExpired):
            await events(api, "100", 1)

    @pytest.mark.parametrize(
        ("status", "error"), [(500, NotReady), (429, Exhausted), (403, AccessRefused), ("410", NotReady)]
    )
    async def test_an_error_in_the_stream_is_what_its_code_says(
        self, api: KubernetesAPI, server: FakeAPIServer, status: int | str, error: type[IstioAuthError]
    ) -> None:
        async with api.watch(SECRETS, "100", lasting=LASTING) as changes:
            await until(lambda: server.open)
            server.say(json.dumps({"type": "ERROR", "object": {"kind": "Status", "code": status}}).encode() + b"\n")
            with pytest.raises(error):
                await anext(changes)

    @pytest.mark.parametrize(("status", "error"), [(403, AccessRefused), (503, NotReady), (202, NotReady)])
    async def test_one_that_is_refused_says_why(
        self, api: KubernetesAPI, server: FakeAPIServer, status: int, error: type[IstioAuthError]
    ) -> None:
        server.answer(status, refusal(status, "not you"))
        with pytest.raises(error, match="watch /api/v1/secrets"):
            await events(api, "100", 1)

    async def test_one_that_the_api_server_has_no_time_for_says_when_to_come_again(
        self, api: KubernetesAPI, server: FakeAPIServer
    ) -> None:
        server.answer(429, headers={"Retry-After": "7"})
        with pytest.raises(Exhausted) as caught:
            await events(api, "100", 1)
        assert caught.value.retry_after == timedelta(seconds=7)
        assert len(server.asked) == 1

    @pytest.mark.parametrize("cut", ["in the middle of a line", "between two lines", "orderly, but in a line"])
    async def test_what_was_whole_is_told_before_the_cut_is(
        self, api: KubernetesAPI, server: FakeAPIServer, cut: str
    ) -> None:
        async with api.watch(SECRETS, "100", lasting=LASTING) as changes:
            await until(lambda: server.open)
            server.put(SECRETS, "whole", namespace="shop")
            server.say(b"" if cut == "between two lines" else b'{"type": "DELETED", "object": {"metadata": {}')
            assert text(await anext(changes), "object", "metadata", "name") == "whole"
            if cut.startswith("orderly"):
                server.end()
            else:
                server.cut()
            with pytest.raises(NotReady, match="can not be reached"):
                await anext(changes)

    async def test_events_may_come_in_any_pieces(self, api: KubernetesAPI, server: FakeAPIServer) -> None:
        lines = b"".join(json.dumps({"type": "ADDED", "object": {"n": n}}).encode() + b"\n" for n in range(3))
        async with api.watch(SECRETS, "100", lasting=LASTING) as changes:
            await until(lambda: server.open)
            for place in range(len(lines)):
                server.say(lines[place : place + 1])
            assert [member(await anext(changes), "object", "n") for _ in range(3)] == [0, 1, 2]

    async def test_an_event_may_be_as_large_as_the_largest_object_that_an_api_server_takes(
        self, api: KubernetesAPI, server: FakeAPIServer
    ) -> None:
        async with api.watch(SECRETS, "100", lasting=LASTING) as changes:
            server.put(SECRETS, "large", namespace="shop", data={"a": "<" * 9_000_000})
            server.put(SECRETS, "next", namespace="shop")
            assert [text(await anext(changes), "object", "metadata", "name") for _ in range(2)] == ["large", "next"]

    @pytest.mark.parametrize("line", [b"<html>\n", b"\n", b'{"type": \n'])
    async def test_a_line_that_is_no_event_is_a_fault(
        self, api: KubernetesAPI, server: FakeAPIServer, line: bytes
    ) -> None:
        async with api.watch(SECRETS, "100", lasting=LASTING) as changes:
            await until(lambda: server.open)
            server.say(line)
            with pytest.raises(NotReady):
                await anext(changes)

    async def test_whoever_leaves_a_watch_closes_it(self, api: KubernetesAPI, server: FakeAPIServer) -> None:
        async with api.watch(SECRETS, "100", lasting=LASTING):
            await until(lambda: server.open)
        await until(lambda: not server.open)
