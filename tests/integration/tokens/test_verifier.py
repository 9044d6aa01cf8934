"""TokenVerifier with issuers that serve their keys over HTTPS: they rotate, fail, hang, and never delay each other."""

from __future__ import annotations

import asyncio
import gc
import json
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from istio_auth.errors import NotReady
from istio_auth.tokens import TokenFault, TokenRefused
from istio_auth.tokens.issuer_keys import KeySetTimes
from istio_auth.tokens.key_sources import RemoteKeys
from istio_auth.tokens.rules import TokenRule
from istio_auth.tokens.verifier import TokenVerifier
from tests.fakes.key_server import KEYS, KeyServer, dripping, says, silent
from tests.fakes.token_issuer import AUDIENCE, TokenIssuer
from tests.fakes.waiting import until, until_async

MS = timedelta(milliseconds=1)
HOUR = timedelta(hours=1)
SELDOM = KeySetTimes(every=HOUR, soonest=HOUR, latest=HOUR, retry=MS, cooldown=MS)


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[KeyServer]:
    async with KeyServer(tmp_path) as running:
        yield running


def rule(server: KeyServer) -> TokenRule:
    return TokenRule(server.tokens.issuer, {AUDIENCE}, keys=server.discovered())


def headers(issuer: TokenIssuer) -> list[tuple[str, str]]:
    return [("Authorization", f"Bearer {issuer.token(datetime.now(UTC))}")]


async def passes(verifier: TokenVerifier, issuer: TokenIssuer) -> bool:
    try:
        return await verifier.verify(headers(issuer)) is not None
    except (TokenRefused, NotReady):
        return False


async def test_the_keys_of_an_issuer_are_found_and_its_tokens_pass(server: KeyServer) -> None:
    async with TokenVerifier([rule(server)], times=SELDOM) as verifier:
        claims = await verifier.verify(headers(server.tokens))
        assert claims is not None
        assert claims.issuer == server.tokens.issuer
        (status,) = verifier.status()
        assert (status.ready, status.keys, status.trouble) == (True, 1, "")
        assert status.age is not None
        assert status.age < timedelta(minutes=1)


async def test_a_new_key_counts_from_its_first_token_on_and_an_old_one_is_forgotten(server: KeyServer) -> None:
    old = server.tokens
    new = TokenIssuer(place=50, issuer=old.issuer)
    async with TokenVerifier([rule(server)], times=SELDOM) as verifier:
        before = headers(old)
        assert await verifier.verify(before)
        server.keys = json.dumps({"keys": [new.jwk()]})
        assert await verifier.verify(before), "nobody has told us"
        assert await passes(verifier, new)
        with pytest.raises(TokenRefused) as caught:
            await verifier.verify(before)
        assert caught.value.fault is TokenFault.UNKNOWN_KEY
        assert await passes(verifier, new)


async def test_made_up_names_of_keys_cost_one_fetch_in_a_while(server: KeyServer) -> None:
    async with TokenVerifier([rule(server)], times=replace(SELDOM, cooldown=HOUR)) as verifier:
        assert await passes(verifier, server.tokens)
        for number in range(200):
            made_up = server.tokens.sign(server.tokens.payload(datetime.now(UTC)), header={"kid": str(number)})
            with pytest.raises(TokenRefused) as caught:
                await verifier.verify([("authorization", f"Bearer {made_up}")])
            assert caught.value.fault is TokenFault.UNKNOWN_KEY
        assert await passes(verifier, server.tokens)
        assert server.asked.count(KEYS) == 1


async def test_the_last_good_keys_stay_while_the_issuer_is_away_or_out_of_its_mind(tmp_path: Path) -> None:
    async with KeyServer(tmp_path) as server:
        often = replace(SELDOM, every=MS, soonest=MS, deadline=1000 * MS)
        late = "no whole answer"
        async with TokenVerifier([rule(server)], times=often) as verifier:
            await until_async(lambda: passes(verifier, server.tokens))
            for answer, trouble in (
                (says("<html>"), "HTML"),
                (says("", status=500), "status 500"),
                (says('{"keys": 7}'), "array 'keys'"),
                (dripping(b"{"), late),
                (silent, late),
            ):
                server.misbehave(answer)
                await until(lambda trouble=trouble: trouble in verifier.status()[0].trouble)  # type: ignore[misc]  # bound
                assert verifier.status()[0].ready
                assert await passes(verifier, server.tokens)
                server.behave()
                await until(lambda: verifier.status()[0].trouble == "")
            await server.__aexit__(None, None, None)
            await until(lambda: "Connect" in verifier.status()[0].trouble)
            assert await passes(verifier, server.tokens)


async def test_before_the_first_keys_a_token_is_neither_believed_nor_refused(server: KeyServer) -> None:
    server.misbehave(says("", status=503))
    async with TokenVerifier([rule(server)], times=replace(SELDOM, retry=HOUR)) as verifier:
        with pytest.raises(NotReady, match="status 503") as caught:
            await verifier.verify(headers(server.tokens))
        assert caught.value.retry_after is not None
        assert await verifier.verify([]) is None, "who has no token needs no keys"


async def test_a_bad_issuer_never_delays_another(server: KeyServer, tmp_path: Path) -> None:
    """One that is silent, one that drips, one whose name servers hang, and one that nobody ever heard of."""
    patient = replace(SELDOM, deadline=timedelta(minutes=2))
    released = threading.Event()
    hung: list[str] = []
    resolve = socket.getaddrinfo
    server.misbehave(says("", status=503))

    def hanging(host: str, *rest: object, **named: object) -> object:
        if host == "hanging.test":
            hung.append(host)
            released.wait(110)
            raise OSError("no answer")
        return resolve(host, *rest, **named)  # type: ignore[arg-type]  # whatever it is

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(socket, "getaddrinfo", hanging)
        async with KeyServer(tmp_path) as other:
            other.misbehave(silent, "/silent")
            other.misbehave(dripping(b'{"keys": ['), "/dripping")
            bad = [
                TokenRule(f"https://{path}.test", None, keys=other.remote(f"/{path}"))
                for path in ("silent", "dripping")
            ]
            hanging_keys = RemoteKeys("https://hanging.test/keys")
            bad += [TokenRule(f"https://hanging{number}.test", None, keys=hanging_keys) for number in range(40)]
            bad += [TokenRule("https://nobody.test", None, keys=RemoteKeys("https://nobody.invalid/keys"))]
            try:
                async with TokenVerifier([*bad, rule(server)], times=patient) as verifier:
                    waiting = [
                        asyncio.create_task(verifier.verify(headers(TokenIssuer(issuer=one.issuer)))) for one in bad
                    ]
                    await until(lambda: len(hung) == 40 and {"/silent", "/dripping"} <= {*other.asked})
                    server.behave()
                    async with asyncio.timeout(60):  # the bad ones are given two minutes
                        while not await passes(verifier, server.tokens):  # noqa: ASYNC110  # no event tells
                            await asyncio.sleep(0.01)
                    assert not all(task.done() for task in waiting)
                    for task in waiting:
                        task.cancel()
                    await asyncio.gather(*waiting, return_exceptions=True)
                    assert [status.issuer for status in verifier.status() if status.ready] == [server.tokens.issuer]
            finally:
                released.set()


async def test_nothing_is_left_behind(server: KeyServer) -> None:
    async def once() -> None:
        async with TokenVerifier([rule(server)], times=replace(SELDOM, every=MS, soonest=MS)) as verifier:
            assert await passes(verifier, server.tokens)
        with suppress(NotReady):
            await verifier.verify(headers(server.tokens))

    def held() -> tuple[int, int, int]:
        gc.collect()
        return sum(1 for _ in Path("/proc/self/fd").iterdir()), threading.active_count(), len(asyncio.all_tasks())

    await once()
    await until(lambda: len(asyncio.all_tasks()) == 1)
    before = held()
    for _ in range(10):
        await once()
    await until(lambda: all(now <= then for now, then in zip(held(), before, strict=True)))


async def test_a_verifier_that_is_entered_again_fetches_again(server: KeyServer) -> None:
    verifier = TokenVerifier([rule(server)], times=SELDOM)
    known = headers(server.tokens)
    for round_ in (1, 2, 3):
        async with verifier:
            assert await verifier.verify(known) is not None
            assert server.asked.count(KEYS) == round_
        with pytest.raises(NotReady, match="closed"):
            await verifier.verify(known)


def test_a_verifier_may_be_entered_on_another_event_loop() -> None:
    verifier = TokenVerifier([TokenRule("https://issuer.test", None, keys=RemoteKeys("https://nobody.invalid/keys"))])

    async def once() -> None:
        async with verifier:
            with pytest.raises(NotReady, match=r"nobody\.invalid"):
                await verifier.verify(headers(TokenIssuer(issuer="https://issuer.test")))

    for _ in range(2):
        asyncio.run(once())


async def test_whoever_waits_for_keys_at_the_end_is_told(server: KeyServer) -> None:
    server.misbehave(silent)
    async with TokenVerifier([rule(server)], times=SELDOM) as verifier:
        waiting = asyncio.create_task(verifier.verify(headers(server.tokens)))
        await until(lambda: KEYS in server.asked)
    with pytest.raises(NotReady, match="closed"):
        await waiting
