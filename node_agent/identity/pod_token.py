"""The way to an SVID on Kubernetes: a service-account token that the kubelet projects into the agent's own pod.

The token is bound to the pod, and so to its node: by it the CA knows which node's agent asks. It is read from its file
again for each attempt, because the kubelet renews it there; so an agent that has lapsed is back as soon as the CA is.
Each SVID is got in this way, and none is renewed by the one before: what somebody stole ends with its certificate.
Nothing need be kept from one start to the next.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

from istio_auth.clock import Clock
from istio_auth.errors import IstioAuthError, MissingError, NotReady
from istio_auth.files import read_bounded
from istio_auth.keys import new_private_key
from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import X509SVID
from node_agent.ca_client.answer import accepted
from node_agent.ca_client.csr import request_for
from node_agent.ca_client.port import CertificateClient
from node_agent.token_file import token_in
from node_agent.trust import Trust

_MAX_TOKEN = 16 << 10


class PodToken:
    """Gets the agent an SVID in this way (see `node_agent.identity.identity.Enrolling`).

    Args:
        spiffe_id: who we are: the agent of our node.
        path: the file with the token.
        client: the CA, over connections on which we present no SVID.
        trust: whom we trust.
        ttl: the lifetime to ask for; None for what the CA gives.
        clock: tells the time.
    """

    def __init__(
        self,
        spiffe_id: SpiffeID,
        path: Path,
        *,
        client: CertificateClient,
        trust: Trust,
        ttl: timedelta | None,
        clock: Clock,
    ) -> None:
        self._spiffe_id, self._path, self._client = spiffe_id, path, client
        self._trust, self._ttl, self._clock = trust, ttl, clock

    async def obtain(self, *, lives: bool) -> X509SVID:  # noqa: ARG002  # the way is always the same
        """A new SVID (see `Enrolling.obtain`)."""
        token = await asyncio.to_thread(read_projected_token, self._path)
        key = new_private_key()
        (outcome,) = await self._client.sign([request_for(self._spiffe_id, key, ttl=self._ttl, own=True)], token=token)
        if isinstance(outcome, IstioAuthError):
            raise outcome
        return accepted(outcome, key, self._spiffe_id, bundles=self._trust.bundles, now=self._clock.now())

    async def has_news(self) -> bool:
        """Never: each attempt takes the token of its moment anyway."""
        return False


def read_projected_token(path: Path) -> str:
    """The token in a file of a projected volume. Others in the pod may be able to read it, as Kubernetes writes it.

    Raises:
        NotReady: it is not there yet, or reading failed.
        ConfigurationError: it holds no token.
    """
    try:
        content = read_bounded(path, _MAX_TOKEN)
    except MissingError as error:
        raise NotReady(f"there is no service-account token: {error}") from error
    return token_in(content, path)
