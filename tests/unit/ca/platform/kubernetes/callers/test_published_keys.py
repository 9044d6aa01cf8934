"""PublishedKeys: the keys of now, the last ones while they can not be read, and no stranger decides how often."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import timedelta

import pytest
from structlog.testing import capture_logs

from ca.platform.kubernetes.api.client import KubernetesAPI
from ca.platform.kubernetes.callers.published_keys import IssuerKeys, PublishedKeys
from istio_auth.strict_json import JSON
from tests.fakes.api_server import Answer, Asked, FakeAPIServer
from tests.fakes.background import in_background
from tests.fakes.token_issuer import CLUSTER, TokenIssuer
from tests.fakes.waiting import until

DISCOVERY, KEYS = "/.well-known/openid-configuration", "/openid/v1/jwks"
FIRST, SECOND = TokenIssuer(), TokenIssuer(place=1)
LONG, SHORT = timedelta(minutes=5), timedelta(seconds=0.4)


def at(path: str) -> Callable[[Asked], bool]:
    return lambda asked: asked.path == path


def publish(server: FakeAPIServer, *issuers: TokenIssuer, issuer: JSON = CLUSTER, times: int = 1000) -> Answer:
    """Publish these keys from now on; the answer to those who read them."""
    server.answer(200, {"issuer": issuer, "jwks_uri": "elsewhere"}, where=at(DISCOVERY), times=times)
    keys: JSON = {"keys": [each.jwk() for each in issuers]}
    return server.answer(
        200,
        json.dumps(keys).encode(),
        where=at(KEYS),
        headers={"Content-Type": "application/jwk-set+json"},
        times=times,
    )


async def test_issuer_and_keys_are_what_the_api_server_publishes(api: KubernetesAPI, server: FakeAPIServer) -> None:
    publish(server, FIRST, SECOND)
    keys = PublishedKeys(api)
    before = keys.known
    await keys.read()
    assert before is None
    assert keys.known is not None
    assert keys.known.issuer == CLUSTER
    assert [key.key_id for key in keys.known.keys.keys] == [FIRST.key_id, SECOND.key_id]
    assert [asked.path for asked in server.asked] == [DISCOVERY, KEYS]  # whatever discovery says of another place
    assert "application/jwk-set+json" in server.asked[1].headers["accept"]


@pytest.mark.parametrize("path", [DISCOVERY, KEYS])
@pytest.mark.parametrize(
    ("status", "content"),
    [
        (404, None),
        (403, None),
        (429, None),
        (500, None),
        (200, b"<html>"),
        (200, {}),
        (200, {"issuer": "", "keys": {}}),
        (200, {"issuer": 7, "keys": "none"}),
        (200, {"keys": [FIRST.jwk(d="AAAA")]}),
    ],
)
async def test_while_they_can_not_be_read_the_last_ones_stay_and_the_reason_is_told_once(
    api: KubernetesAPI, server: FakeAPIServer, path: str, status: int, content: JSON | bytes
) -> None:
    publish(server, FIRST)
    keys = PublishedKeys(api)
    await keys.read()
    known = keys.known
    assert known == IssuerKeys(CLUSTER, FIRST.keys())
    with capture_logs() as logs:
        publish(server, SECOND)
        faulty = server.answer(status, content, where=at(path), headers={"Retry-After": "60"}, times=2)
        await keys.read()
        await keys.read()
        assert len(faulty.met) == 2
        assert keys.known is known
        await keys.read()
    assert keys.known == IssuerKeys(CLUSTER, SECOND.keys())
    assert [log["log_level"] for log in logs] == ["warning", "info"]


async def test_only_new_keys_are_news(api: KubernetesAPI, server: FakeAPIServer) -> None:
    keys = PublishedKeys(api)
    with capture_logs() as logs:
        for issuer in (FIRST, FIRST, SECOND, SECOND):
            publish(server, issuer)
            await keys.read()
    assert len(logs) == 2


async def test_keys_that_can_not_be_used_spoil_no_others(api: KubernetesAPI, server: FakeAPIServer) -> None:
    keys: JSON = {"keys": [{"kty": "OKP"}, FIRST.jwk()]}
    publish(server)
    server.answer(200, keys, where=at(KEYS))
    published = PublishedKeys(api)
    await published.read()
    assert published.known is not None
    assert [key.key_id for key in published.known.keys.keys] == [FIRST.key_id]


async def test_they_are_read_again_when_somebody_asks_but_not_as_often_as_one_likes(
    api: KubernetesAPI, server: FakeAPIServer
) -> None:
    reads = publish(server, FIRST)
    keys = PublishedKeys(api, every=LONG, at_most_every=SHORT)
    async with in_background(keys.run()):
        await until(lambda: keys.known)
        for expected in (2, 3):
            async with asyncio.timeout(20):
                while len(reads.met) < expected:
                    keys.ask_soon()  # strangers never tire
                    await asyncio.sleep(0.001)
    first, second, third = (asked.at for asked in reads.met)
    assert second - first >= SHORT.total_seconds()
    assert third - second >= SHORT.total_seconds()


async def test_one_who_asks_is_not_forgotten_while_it_waits(api: KubernetesAPI, server: FakeAPIServer) -> None:
    publish(server, FIRST)
    keys = PublishedKeys(api, every=LONG, at_most_every=timedelta(seconds=0.1))
    async with in_background(keys.run()):
        await until(lambda: keys.known)
        publish(server, SECOND)
        keys.ask_soon()  # at once after they were read
        await until(lambda: keys.known == IssuerKeys(CLUSTER, SECOND.keys()))
        assert not keys._wanted.is_set()  # or they would be read as often as is allowed, for ever


async def test_they_are_read_now_and_then_though_nobody_asks(api: KubernetesAPI, server: FakeAPIServer) -> None:
    publish(server, FIRST)
    keys = PublishedKeys(api, every=timedelta(seconds=0.1), at_most_every=timedelta(seconds=0.02))
    async with in_background(keys.run()):
        await until(lambda: keys.known)
        reads = publish(server, SECOND)
        await until(lambda: len(reads.met) >= 2)
        assert keys.known == IssuerKeys(CLUSTER, SECOND.keys())
    first, second = (asked.at for asked in reads.met[:2])
    assert second - first >= 0.1


async def test_nobody_has_to_ask_if_they_could_not_be_read(api: KubernetesAPI, server: FakeAPIServer) -> None:
    publish(server, FIRST)
    away = server.answer(503, where=at(DISCOVERY), times=2)
    keys = PublishedKeys(api, every=LONG, at_most_every=timedelta(seconds=0.05))
    async with in_background(keys.run()):
        await until(lambda: keys.known)
    assert len(away.met) == 2
