"""PluggedSecret: what is in the secret, nothing if it is certain that there is none, and otherwise no answer."""

from __future__ import annotations

import base64

import pytest

from ca.platform.kubernetes.api.client import KubernetesAPI
from ca.platform.kubernetes.api.resources import SECRETS
from ca.platform.kubernetes.roots.cacerts import NAME, PluggedSecret
from istio_auth.errors import ConfigurationError, IstioAuthError, NotReady
from istio_auth.strict_json import JSON
from tests.fakes.api_server import FakeAPIServer
from tests.fakes.authority import FakeAuthority
from tests.fakes.background import in_background
from tests.fakes.issuer_source import cacerts
from tests.fakes.waiting import until

NAMESPACE = "istio-system"


def plug(server: FakeAPIServer, issuer: FakeAuthority) -> None:
    data: dict[str, JSON] = {name: base64.b64encode(octets).decode() for name, octets in cacerts(issuer).items()}
    server.put(SECRETS, NAME, namespace=NAMESPACE, data=data)


@pytest.fixture
def source(api: KubernetesAPI) -> PluggedSecret:
    return PluggedSecret(api, NAMESPACE)


async def test_the_files_are_what_is_in_the_secret(
    source: PluggedSecret, server: FakeAPIServer, authority: FakeAuthority
) -> None:
    plug(server, authority)
    await source.read()
    assert source.files() == cacerts(authority)
    assert source.where == "secret istio-system/cacerts"
    assert [asked.path for asked in server.asked] == ["/api/v1/namespaces/istio-system/secrets/cacerts"]


async def test_before_anybody_looked_it_is_not_known(source: PluggedSecret) -> None:
    with pytest.raises(NotReady, match="secret istio-system/cacerts"):
        source.files()


async def test_where_there_is_certainly_none_there_are_no_files(source: PluggedSecret) -> None:
    await source.read()
    assert source.files() == {}


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (401, None),
        (403, None),
        (410, None),
        (429, None),
        (500, None),
        (503, b"<html>"),
        (200, b"<html>"),
        (200, {}),
        (200, {"data": {}}),
    ],
)
async def test_what_could_not_be_looked_at_is_never_nothing(
    source: PluggedSecret, server: FakeAPIServer, authority: FakeAuthority, status: int, content: JSON | bytes
) -> None:
    plug(server, authority)
    server.answer(status, content, headers={"Retry-After": "60"})
    with pytest.raises(IstioAuthError):
        await source.read()
    with pytest.raises(NotReady):
        source.files()
    await source.read()
    assert source.files() == cacerts(authority)


async def test_what_was_seen_stays_while_it_can_not_be_looked_at(
    source: PluggedSecret, server: FakeAPIServer, authority: FakeAuthority
) -> None:
    plug(server, authority)
    async with in_background(source.reflector.run()):
        await until(lambda: server.open)
        refused = server.answer(403, times=3)
        server.expire()
        await until(lambda: len(refused.met) == 3)
        assert source.files() == cacerts(authority)
        server.answer(503, where=lambda asked: asked.path.endswith(f"/{NAME}"))  # and not to the watch
        with pytest.raises(NotReady):
            await source.read()
        assert source.files() == cacerts(authority)


async def test_a_change_is_taken_over_while_it_is_watched(
    source: PluggedSecret, server: FakeAPIServer, authority: FakeAuthority, foreign_authority: FakeAuthority
) -> None:
    await source.read()
    async with in_background(source.reflector.run()):
        await until(lambda: server.open)
        plug(server, authority)
        await until(lambda: source.files() == cacerts(authority))
        plug(server, foreign_authority)
        await until(lambda: source.files() == cacerts(foreign_authority))
        server.remove(SECRETS, NAME, namespace=NAMESPACE)
        await until(lambda: source.files() == {})


async def test_nobody_elses_secret_is_looked_at(source: PluggedSecret, server: FakeAPIServer) -> None:
    await source.read()
    async with in_background(source.reflector.run()):
        await until(lambda: server.open)
        for name, namespace in (("other", NAMESPACE), (NAME, "shop")):
            server.put(SECRETS, name, namespace=namespace, data={"ca-key.pem": "QQ=="})
        server.put(SECRETS, NAME, namespace=NAMESPACE, data={"ca-key.pem": "Qg=="})
        await until(source.files)
    assert source.files() == {"ca-key.pem": b"B"}
    queries = [asked.query for asked in server.asked if asked.query]
    assert {query["fieldSelector"] for query in queries} == {"metadata.name=cacerts"}
    assert {asked.path for asked in server.asked if asked.query} == {"/api/v1/namespaces/istio-system/secrets"}


@pytest.mark.parametrize("value", ["Q", "QQ=", "not base64!", "Q*Q==", "\u00fc", None, 7, {}])
async def test_one_that_is_damaged_is_told_and_not_taken_for_none(
    source: PluggedSecret, server: FakeAPIServer, value: JSON
) -> None:
    server.put(SECRETS, NAME, namespace=NAMESPACE, data={"ca-key.pem": value})
    await source.read()
    with pytest.raises(ConfigurationError, match="secret istio-system/cacerts is damaged"):
        source.files()
    server.put(SECRETS, NAME, namespace=NAMESPACE, data={"ca-key.pem": "QQ=="})
    await source.read()
    assert source.files() == {"ca-key.pem": b"A"}
