"""The way to the API server: by kubeconfig or from within a pod, as the official client reads them."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import structlog
import yaml
from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import ConfigException, kube_config, load_incluster_config

from ca.platform.kubernetes.api.client import DEADLINE, KubernetesAPI
from istio_auth.clock import Clock
from istio_auth.errors import ConfigurationError
from istio_auth.system_clock import SystemClock

_RENEWED = timedelta(minutes=1)  # a token lives ten minutes at least
_BEARER = "BearerToken"
_MACHINES = SystemClock()
_log = structlog.get_logger()


@asynccontextmanager
async def connected(
    kubeconfig: Path | None = None, *, deadline: timedelta = DEADLINE, clock: Clock = _MACHINES
) -> AsyncIterator[KubernetesAPI]:
    """The API server that a kubeconfig names; without a kubeconfig, that of the cluster whose pod we are.

    Args:
        kubeconfig: the file; its current context counts.
        deadline: how long a request may take, watches excepted.
        clock: tells our own time; the machine's own if not given.

    Raises:
        ConfigurationError: the file can not be used, or there is none and we are in no pod.
    """
    configuration = Configuration()  # its `retries` stay unset: `False` would mean for ever
    try:
        if kubeconfig is None:
            load_incluster_config(configuration)  # type: ignore[no-untyped-call]  # the asyncio side has no types
        else:
            await _Kubeconfig(kubeconfig).load(configuration)
        _settle_proxy(configuration)
        client = ApiClient(configuration)
    except Exception as error:
        if kubeconfig is None:
            raise ConfigurationError(f"this is no pod of Kubernetes ({error}): name a kubeconfig") from error
        raise ConfigurationError(f"the kubeconfig {kubeconfig} can not be used: {error}") from error
    finally:
        _leave_no_key()
    try:
        yield KubernetesAPI(client, clock=clock, deadline=deadline)
    finally:
        await client.close()  # type: ignore[no-untyped-call]  # as above


class _Kubeconfig:
    """A kubeconfig, whose token is looked up again now and then: it may be a file, or come from a program."""

    def __init__(self, path: Path) -> None:
        # The client's own way to read it would put a whole entry, secrets and all, into its errors.
        self._path = path
        self._loader = kube_config.KubeConfigLoader(_document(path), config_base_path=str(path.parent))  # type: ignore[no-untyped-call]  # as above
        self._loaded = 0.0

    async def load(self, configuration: Configuration) -> None:
        """Put everything into the client's configuration."""
        self._loaded = time.monotonic()
        await self._loader.load_and_set(configuration)  # type: ignore[no-untyped-call]  # as above
        if token := configuration.api_key.get(_BEARER):
            configuration.api_key[_BEARER] = token.strip()  # a file ends in a new line
        elif "exec" in (self._loader._user or {}) and not configuration.cert_file:  # noqa: SLF001  # else unnoticed
            raise ConfigException("the program that it names gives no credentials")
        configuration.refresh_api_key_hook = self._renew  # type: ignore[assignment]  # as above

    async def _renew(self, configuration: Configuration) -> None:
        if time.monotonic() - self._loaded < _RENEWED.total_seconds():
            return
        try:
            await self.load(configuration)
        except Exception as error:  # noqa: BLE001  # whatever it is, the API server judges what we have
            _log.warning("the kubeconfig can not be read again", path=str(self._path), reason=str(error))
        finally:
            _leave_no_key()


def _document(path: Path) -> object:
    with path.open("rb") as file:
        try:
            document = yaml.safe_load(file)
        except yaml.MarkedYAMLError as error:  # its words may quote the file
            line = error.problem_mark.line + 1 if error.problem_mark else 1
            raise ConfigException(f"line {line} is no YAML") from None
    if not isinstance(document, dict):
        raise ConfigException("it says nothing")
    return document


def _leave_no_key() -> None:
    """Remove the temporary files (readable by us only) in which the client gave keys to TLS: TLS has read them."""
    kube_config._cleanup_temp_files()  # type: ignore[no-untyped-call]  # noqa: SLF001  # else at the end of the process, if that is orderly


def _settle_proxy(configuration: Configuration) -> None:
    """Look for a proxy in the environment, once: aiohttp would do so, and read `.netrc`, on a thread per request."""
    configuration.client_session_kwargs = {"trust_env": False}
    address = urlsplit(configuration.host)
    if address.scheme not in {"http", "https"} or not address.hostname:
        raise ConfigException(f"{configuration.host!r} is no address of an API server")
    if configuration.proxy is None and not proxy_bypass(address.netloc):
        configuration.proxy = getproxies().get(address.scheme)
