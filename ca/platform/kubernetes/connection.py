"""The way to the API server: by kubeconfig or from within a pod, as the official client reads them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from kubernetes.aio.client import ApiClient, Configuration
from kubernetes.aio.config import load_incluster_config, load_kube_config

from ca.platform.kubernetes.api import DEADLINE, KubernetesAPI
from istio_auth.clock import Clock
from istio_auth.errors import ConfigurationError
from istio_auth.system_clock import SystemClock

_MACHINES = SystemClock()


@asynccontextmanager
async def connected(
    kubeconfig: Path | None = None, *, deadline: timedelta = DEADLINE, clock: Clock = _MACHINES
) -> AsyncIterator[KubernetesAPI]:
    """The API server that a kubeconfig names; without one, the one whose pod we are.

    Args:
        kubeconfig: the file; its current context counts.
        deadline: how long a request may take, watches excepted.
        clock: tells our own time; the machine's own if not given.

    Raises:
        ConfigurationError: the file can not be used, or there is none and we are in no pod.
    """
    configuration = Configuration()  # without a word of retries: `False` would mean for ever
    try:
        if kubeconfig is None:
            load_incluster_config(configuration)  # type: ignore[no-untyped-call]  # the asyncio side has no types
        else:
            loading = load_kube_config(str(kubeconfig), client_configuration=configuration, persist_config=False)  # type: ignore[no-untyped-call]  # as above
            await loading
        _settle_proxy(configuration)
        client = ApiClient(configuration)
    except Exception as error:
        if kubeconfig is None:
            raise ConfigurationError(f"this is no pod of Kubernetes ({error}): name a kubeconfig") from error
        raise ConfigurationError(f"the kubeconfig {kubeconfig} can not be used: {error}") from error
    try:
        yield KubernetesAPI(client, clock=clock, deadline=deadline)
    finally:
        await client.close()  # type: ignore[no-untyped-call]  # as above


def _settle_proxy(configuration: Configuration) -> None:
    """Look once for a proxy in the environment. Left to aiohttp, that and a look into `.netrc` would be two trips to a
    thread for every request.
    """
    configuration.client_session_kwargs = {"trust_env": False}
    address = urlsplit(configuration.host)
    if configuration.proxy is None and not proxy_bypass(address.netloc):
        configuration.proxy = getproxies().get(address.scheme)
