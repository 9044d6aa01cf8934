"""Asks the kubelet of this node for its pods: `GET https://<kubelet>/pods`, by our token, its certificate checked.

Whether we may is up to the API server: the token's account needs `get` on `nodes/pods` (kubelets with
KubeletFineGrainedAuthz), or on `nodes/proxy`. Token and CA are read for each question, because both are renewed.
The answer is bounded in time and size, since whoever writes pods adds to it.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from datetime import timedelta
from http import HTTPStatus
from typing import Protocol

import aiohttp

from istio_auth.errors import ConfigurationError, IstioAuthError, NotReady
from istio_auth.files import read_bounded
from istio_auth.host_port import HostPort
from istio_auth.http_client import bounded_body, plain_reason
from istio_auth.strict_json import parse_json
from node_agent.attest.pod_list import PodList
from node_agent.attest.settings import KubernetesSettings
from node_agent.token_file import token_in

_MAX_TOKEN, _MAX_CA = 16 << 10, 1 << 20
_MAX_ANSWER = 16 << 20  # 150 KB for each of 110 pods, where 10 are common; read, it takes up to 13 times as much
_TIMEOUT = timedelta(seconds=5)
_HINTS: Mapping[int, str] = {
    HTTPStatus.UNAUTHORIZED: "it does not know our token",
    HTTPStatus.FORBIDDEN: "our account needs `get` on nodes/pods, or on nodes/proxy for an older kubelet",
}


class PodSource(Protocol):
    """Where pods are told of."""

    async def pods(self) -> PodList:
        """The pods of this node, as of now.

        Raises:
            NotReady: they are not to be had now.
        """
        ...


class Kubelet:
    """A `PodSource`.

    Args:
        settings: how it is asked.
        at: where it is.
        timeout: how long one answer may take.
    """

    def __init__(self, settings: KubernetesSettings, at: HostPort, *, timeout: timedelta = _TIMEOUT) -> None:
        self._settings, self._at = settings, at
        self._timeout = timeout.total_seconds()

    async def pods(self) -> PodList:
        """The pods that it tells of now.

        Raises:
            NotReady: it was not reached, is somebody else, does not answer us, or not with pods.
        """
        try:
            token, context = await asyncio.to_thread(credentials, self._settings)
            return await asyncio.to_thread(_parsed, await self._body(token, context))
        except IstioAuthError as error:
            raise NotReady(f"the kubelet at {self._at} can not be asked: {error}") from error

    async def _body(self, token: str, context: ssl.SSLContext) -> bytes:
        headers = {"Authorization": f"Bearer {token}", "Accept": "application/json"}
        name = self._settings.kubelet_name or self._at.host
        timeout = aiohttp.ClientTimeout(total=self._timeout)
        try:
            async with (
                aiohttp.ClientSession(timeout=timeout, auto_decompress=False, trust_env=False) as session,
                session.get(
                    f"https://{self._at}/pods",
                    headers=headers,
                    ssl=context,
                    server_hostname=name,
                    allow_redirects=False,
                ) as response,
            ):
                if response.status != HTTPStatus.OK:
                    hint = _HINTS.get(response.status, "that is no list of pods")
                    raise NotReady(f"it answers with status {response.status}: {hint}")
                return await bounded_body(response, _MAX_ANSWER)
        except TimeoutError as error:
            raise NotReady(f"it does not answer within {self._timeout:g} s") from error
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise NotReady(plain_reason(error)) from error


def credentials(settings: KubernetesSettings) -> tuple[str, ssl.SSLContext]:
    """Our token, and what the kubelet's certificate is checked by. Blocks.

    Raises:
        MissingError: a file is not there.
        ConfigurationError: a file is of no use.
        NotReady: reading failed.
    """
    token = token_in(read_bounded(settings.token_file, _MAX_TOKEN), settings.token_file)
    authorities = read_bounded(settings.kubelet_ca, _MAX_CA)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # a default one trusts the machine's CAs if the file is empty
    try:
        context.load_verify_locations(cadata=authorities.decode("latin-1"))
    except (ssl.SSLError, ValueError) as error:
        raise ConfigurationError(f"{settings.kubelet_ca} holds no certificates: {error}") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # a certificate that is its own issuer is named itself
    return token, context


def _parsed(body: bytes) -> PodList:
    return PodList.of(parse_json(body, limit=_MAX_ANSWER))
