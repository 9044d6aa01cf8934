"""The way to the API server: what a kubeconfig may say, that its secrets stay in it, and tokens that change."""

from __future__ import annotations

import base64
import json
import ssl
import stat
import tempfile
from collections.abc import AsyncIterator, Mapping
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import incluster_config

from ca.platform.kubernetes.api import connection
from ca.platform.kubernetes.api.connection import connected
from ca.platform.kubernetes.api.resources import SECRETS
from istio_auth.errors import ConfigurationError, NotReady
from istio_auth.pem import write_certificates, write_private_key
from istio_auth.strict_json import JSON
from tests.fakes.api_server import FakeAPIServer
from tests.fakes.authority import FakeAuthority
from tests.fakes.tls import stranger

SECRET = "s3cr3t-bearer"


def in_base64(octets: bytes) -> str:
    return base64.b64encode(octets).decode()


def write(path: Path, content: str | bytes) -> None:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


def replace(kubeconfig: Path, **members: JSON) -> None:
    """Change these members of a kubeconfig."""
    kubeconfig.write_text(json.dumps(json.loads(kubeconfig.read_text()) | members))


def within(folder: Path) -> list[Path]:
    return list(folder.iterdir())


async def authorization(server: FakeAPIServer, kubeconfig: Path | None) -> str:
    """What is shown to the API server."""
    server.put(SECRETS, "x", namespace="shop")
    async with connected(kubeconfig) as api:
        await api.get(SECRETS, "x", namespace="shop")
    return server.asked[-1].headers.get("authorization", "")


@pytest.fixture
def kubeconfig(tmp_path: Path) -> Path:
    return tmp_path / "kubeconfig"


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files come to be."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


@pytest.fixture
async def secure(authority: FakeAuthority) -> AsyncIterator[FakeAPIServer]:
    """One that lets in only who has a certificate of the authority's."""
    svid = authority.svid("/ns/kube-system/sa/api-server", dns_names=("localhost",))
    tls = stranger(server_side=True, chain=svid.chain, key=svid.private_key)
    tls.verify_mode = ssl.CERT_REQUIRED
    tls.load_verify_locations(cadata=write_certificates((authority.root,)).decode())
    async with FakeAPIServer(tls=tls) as server:
        yield server


def by_certificate(authority: FakeAuthority) -> dict[str, JSON]:
    svid = authority.svid("/ns/istio-system/sa/istio-ca")
    return {
        "client-certificate-data": in_base64(write_certificates(svid.chain)),
        "client-key-data": in_base64(write_private_key(svid.private_key)),
    }


class TestKubeconfig:
    @pytest.mark.parametrize(
        "content",
        [
            None,
            "",
            "[]",
            "just words",
            "a: b: c",
            "{",
            "\x00",
            b"\xff\xfe\xff",
            "current-context: x",
            '{"current-context": "x", "contexts": []}',
            '{"current-context": "x", "contexts": [{"name": "x", "context": {"cluster": "c"}}], "clusters": []}',
        ],
    )
    async def test_one_that_can_not_be_used_is_named(self, kubeconfig: Path, content: str | bytes | None) -> None:
        if content is not None:
            write(kubeconfig, content)
        with pytest.raises(ConfigurationError) as caught:
            async with connected(kubeconfig):
                pass
        assert str(kubeconfig) in str(caught.value)

    @pytest.mark.parametrize("address", ["", "127.0.0.1:6443", "ftp://127.0.0.1", "https://", "unix:///run/x"])
    async def test_an_address_that_is_none_is_told_before_anything_is_asked(
        self, server: FakeAPIServer, kubeconfig: Path, address: str
    ) -> None:
        server.kubeconfig(kubeconfig, server=address)
        with pytest.raises(ConfigurationError, match="no address of an API server"):
            async with connected(kubeconfig):
                pass

    async def test_a_cluster_without_address_is_not_this_machine(self, kubeconfig: Path, server: FakeAPIServer) -> None:
        server.kubeconfig(kubeconfig)
        replace(kubeconfig, clusters=[{"name": "test", "cluster": {}}])
        with pytest.raises(ConfigurationError, match="no address of an API server"):
            async with connected(kubeconfig):
                pass

    @pytest.mark.parametrize(
        "users",
        [
            [{"name": "test", "token": SECRET}],  # one level too high
            [{"name": "test", "user": {"token": SECRET}}] * 2,
            [{"user": {"token": SECRET}}],
            [{"name": "test", "user": {"token": SECRET, "client-certificate-data": f"{SECRET}!"}}],
            [{"name": "test", "user": SECRET}],
        ],
    )
    async def test_no_error_quotes_what_is_secret_in_it(
        self, server: FakeAPIServer, kubeconfig: Path, users: JSON, caplog: pytest.LogCaptureFixture
    ) -> None:
        server.kubeconfig(kubeconfig, server="https://localhost:1")
        replace(kubeconfig, users=users)
        with pytest.raises(ConfigurationError) as caught:
            async with connected(kubeconfig):
                pass
        assert str(kubeconfig) in str(caught.value)
        assert SECRET not in str(caught.value) + caplog.text

    @pytest.mark.parametrize("line", [f"token: *{SECRET}", f"token: !{SECRET} x", f"{SECRET}: a: b", f"- @{SECRET}"])
    async def test_no_error_quotes_a_line_that_is_no_yaml(self, kubeconfig: Path, line: str) -> None:
        write(kubeconfig, f"current-context: x\n{line}\n")
        with pytest.raises(ConfigurationError, match="line 2 is no YAML") as caught:
            async with connected(kubeconfig):
                pass
        assert SECRET not in str(caught.value)

    async def test_files_are_found_beside_it_and_its_name_may_be_any(
        self, server: FakeAPIServer, tmp_path: Path
    ) -> None:
        (tmp_path / "a:b").mkdir()
        (tmp_path / "a:b" / "token").write_text(SECRET)
        path = server.kubeconfig(tmp_path / "a:b" / "~config", user={"tokenFile": "token"})
        assert await authorization(server, path) == f"Bearer {SECRET}"

    async def test_a_proxy_of_the_environment_is_used_but_not_for_what_is_excepted(
        self, kubeconfig: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        async with FakeAPIServer() as server, FakeAPIServer() as proxy:
            monkeypatch.setenv("http_proxy", proxy.url)
            server.kubeconfig(kubeconfig)
            assert await authorization(proxy, kubeconfig) == ""
            assert (len(server.asked), len(proxy.asked)) == (0, 1)
            monkeypatch.setenv("no_proxy", "127.0.0.1")
            assert await authorization(server, kubeconfig) == ""
            assert (len(server.asked), len(proxy.asked)) == (1, 1)


class TestKeys:
    async def test_a_key_in_a_kubeconfig_proves_who_we_are_and_is_nowhere_else_afterwards(
        self,
        secure: FakeAPIServer,
        kubeconfig: Path,
        authority: FakeAuthority,
        temporary: Path,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        trusted: Mapping[str, JSON] = {
            "certificate_authority_data": in_base64(write_certificates((authority.root,))),
            "tls_server_name": "localhost",
        }
        secure.kubeconfig(kubeconfig, user=by_certificate(authority), **trusted)
        modes = set[int]()

        def look(configuration: Configuration) -> ApiClient:
            modes.update(stat.S_IMODE(file.stat().st_mode) for file in within(temporary))
            return ApiClient(configuration)

        monkeypatch.setattr(connection, "ApiClient", look)
        secure.put(SECRETS, "x", namespace="shop")
        for _ in range(2):
            async with connected(kubeconfig) as api:
                assert within(temporary) == []
                assert await api.get(SECRETS, "x", namespace="shop")
        assert modes == {0o600}

    async def test_it_is_nowhere_else_if_the_kubeconfig_can_not_be_used(
        self, secure: FakeAPIServer, kubeconfig: Path, authority: FakeAuthority, temporary: Path
    ) -> None:
        other = in_base64(write_private_key(FakeAuthority().key))
        secure.kubeconfig(kubeconfig, user=by_certificate(authority) | {"client-key-data": other})
        with pytest.raises(ConfigurationError, match=str(kubeconfig)):
            async with connected(kubeconfig):
                pass
        assert within(temporary) == []

    async def test_without_a_certificate_or_the_right_root_nobody_gets_through(
        self, secure: FakeAPIServer, kubeconfig: Path, authority: FakeAuthority, foreign_authority: FakeAuthority
    ) -> None:
        ours, foreign = (in_base64(write_certificates((each.root,))) for each in (authority, foreign_authority))
        for user, root in ((None, ours), (by_certificate(authority), foreign)):
            secure.kubeconfig(kubeconfig, user=user, certificate_authority_data=root, tls_server_name="localhost")
            async with connected(kubeconfig) as api:
                with pytest.raises(NotReady, match="can not be reached"):
                    await api.get(SECRETS, "x", namespace="shop")
        assert secure.asked == []


class TestTokens:
    async def test_a_new_line_at_the_end_of_a_token_file_is_not_of_the_token(
        self, server: FakeAPIServer, kubeconfig: Path, tmp_path: Path
    ) -> None:
        (tmp_path / "token").write_text(f"{SECRET}\n")
        server.kubeconfig(kubeconfig, user={"tokenFile": str(tmp_path / "token")})
        assert await authorization(server, kubeconfig) == f"Bearer {SECRET}"

    async def test_a_token_that_changes_in_its_file_is_used_soon(
        self, server: FakeAPIServer, kubeconfig: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        token = tmp_path / "token"
        token.write_text("first")
        server.kubeconfig(kubeconfig, user={"tokenFile": str(token)})
        server.put(SECRETS, "x", namespace="shop")
        async with connected(kubeconfig) as api:
            await api.get(SECRETS, "x", namespace="shop")
            token.write_text("second\n")
            await api.get(SECRETS, "x", namespace="shop")  # it is not looked at for every request
            monkeypatch.setattr(connection, "_RENEWED", timedelta())
            await api.get(SECRETS, "x", namespace="shop")
            token.unlink()
            await api.get(SECRETS, "x", namespace="shop")  # for a moment it may not be there
        shown = [asked.headers["authorization"] for asked in server.asked]
        assert shown == ["Bearer first", "Bearer first", "Bearer second", "Bearer second"]

    async def test_a_program_may_give_the_token(self, server: FakeAPIServer, kubeconfig: Path) -> None:
        server.kubeconfig(kubeconfig, user={"exec": program(f'{{"token": "{SECRET}"}}')})
        assert await authorization(server, kubeconfig) == f"Bearer {SECRET}"

    @pytest.mark.parametrize("status", ["{}", "no JSON", '{"clientCertificateData": "x"}'])
    async def test_a_program_that_gives_none_does_not_make_us_nobody(
        self, server: FakeAPIServer, kubeconfig: Path, status: str
    ) -> None:
        server.kubeconfig(kubeconfig, user={"exec": program(status)})
        with pytest.raises(ConfigurationError, match="no credentials"):
            async with connected(kubeconfig):
                pass


class TestPod:
    async def test_where_there_is_no_pod_a_kubeconfig_is_asked_for(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
        with pytest.raises(ConfigurationError, match="name a kubeconfig"):
            async with connected():
                pass

    async def test_a_token_that_is_damaged_for_a_moment_ends_nothing(
        self, authority: FakeAuthority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        svid = authority.svid("/ns/kube-system/sa/api-server", dns_names=("localhost",))
        async with FakeAPIServer(tls=stranger(server_side=True, chain=svid.chain, key=svid.private_key)) as server:
            place_in_pod(server, tmp_path, authority, monkeypatch)
            server.put(SECRETS, "x", namespace="shop")
            async with connected() as api:
                await api.get(SECRETS, "x", namespace="shop")
                (tmp_path / "token").write_text("")
                with pytest.raises(NotReady):
                    await api.get(SECRETS, "x", namespace="shop")
                (tmp_path / "token").unlink()
                with pytest.raises(NotReady):
                    await api.get(SECRETS, "x", namespace="shop")
                (tmp_path / "token").write_text("second")
                await api.get(SECRETS, "x", namespace="shop")
            assert [asked.headers["authorization"] for asked in server.asked] == ["bearer first", "bearer second"]


def program(status: str) -> JSON:
    """A credential plugin that gives this."""
    version = "client.authentication.k8s.io/v1"
    said = f'{{"apiVersion": "{version}", "kind": "ExecCredential", "status": {status}}}'
    return {"apiVersion": version, "command": "echo", "args": [said]}


def place_in_pod(
    server: FakeAPIServer, folder: Path, authority: FakeAuthority, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Make this process find what a pod finds, and read its token for every request."""
    (folder / "token").write_text("first")
    (folder / "ca.crt").write_bytes(write_certificates((authority.root,)))
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(folder / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(folder / "ca.crt"))
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "localhost")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", server.url.rpartition(":")[2])

    class Loader(incluster_config.InClusterConfigLoader):
        def _read_token_file(self) -> None:
            super()._read_token_file()  # type: ignore[no-untyped-call]  # the asyncio side has no types
            self.token_expires_at = datetime.min  # noqa: DTZ901  # as the client compares it

    monkeypatch.setattr(incluster_config, "InClusterConfigLoader", Loader)
