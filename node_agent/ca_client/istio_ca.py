"""A CA that has Istio's contract alone, such as istiod: how we verify it, and how we authenticate to it.

It has no SPIFFE ID and nobody joins it, so neither end of the connection is as with our own CA:

* It is known by the DNS name in its certificate, under the pinned roots (RFC 9525 6). Anybody else to whom these roots
  give a certificate with that name is taken for the CA, and learns our tokens. What it issues is judged all the same.
* The agent has no SVID. Each call carries the service-account token that is in the file at that moment, for the
  kubelet renews it, and names the workload that it asks for (`ImpersonatedIdentity`), as ztunnel does.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Annotated, Self

from istio_auth.bundle import TrustBundle
from istio_auth.daemon.settings import Setting
from istio_auth.errors import ConfigurationError, IstioAuthError, NotAuthenticated
from istio_auth.svid import X509SVID
from istio_auth.tls.contexts import CIPHERS
from istio_auth.tls.loading import load_roots
from node_agent.ca_client.istio_contract import IstioClient
from node_agent.ca_client.port import Calls, Metadata, Outcome, SigningRequest
from node_agent.identity.pod_token import read_projected_token

_IMPERSONATION = "impersonation"  # in istiod's words for a workload that we may not ask for
_WHY = (
    "its own log says why; it wants our service account in CA_TRUSTED_NODE_ACCOUNTS, its own cluster_id from us, and a "
    "pod of that workload's service account on our node"
)


@dataclass(frozen=True, slots=True)
class IstioCASettings:
    """How the CA is known, and who we are to it: `[istio_ca]` in the agent's configuration."""

    server_name: Annotated[
        str | None, Setting("the DNS name in the CA's certificate; naming it says that the CA is istiod or its like")
    ] = None
    token_file: Annotated[
        Path | None, Setting("the file with our service-account token, of the audience that the CA wants")
    ] = None
    cluster_id: Annotated[str, Setting("how the CA calls the cluster that our tokens are of")] = "Kubernetes"

    def __post_init__(self) -> None:
        if self.server_name == "":
            raise ConfigurationError("istio_ca.server_name is empty: any name would do then")
        if self.token_file is not None and self.server_name is None:
            raise ConfigurationError("istio_ca.token_file needs istio_ca.server_name: to whom would the token be shown")

    @property
    def metadata(self) -> Metadata:
        """What goes with every call."""
        return () if self.server_name is None else (("clusterid", self.cluster_id),)


class NamedServerContext(ssl.SSLContext):
    """A client's TLS context for a server of one DNS name, under the roots of the moment; it presents nothing.

    Args:
        name: the name that the server's certificate must have.
        bundles: whom we trust; asked for each connection.
    """

    def __new__(cls, _name: str, _bundles: Callable[[], Iterable[TrustBundle]]) -> Self:
        """A context for clients."""
        return super().__new__(cls, ssl.PROTOCOL_TLS_CLIENT)

    def __init__(self, name: str, bundles: Callable[[], Iterable[TrustBundle]]) -> None:
        super().__init__()
        self._name, self._bundles = name, bundles

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,  # the base's signature
        server_hostname: str | bytes | None = None,  # noqa: ARG002  # where it is dialled is not who it is
        session: ssl.SSLSession | None = None,  # noqa: ARG002  # sessions are not resumed
    ) -> ssl.SSLObject:
        """Wrap memory, under the present roots."""
        return self._current().wrap_bio(incoming, outgoing, server_side=server_side, server_hostname=self._name)

    def _current(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)  # which demands certificate and name
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.set_ciphers(CIPHERS)
        context.set_alpn_protocols(["h2"])
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # what is pinned may be an intermediate
        load_roots(context, self._bundles())
        return context


class TokenStanding:
    """Our means of authentication: a token, which only the CA can judge. Elsewhere `Identity` takes this part.

    Args:
        path: the file with the token; None if we ask for nobody but pods, with theirs.
    """

    svid: X509SVID | None = None
    due: datetime | None = None
    failing_for: timedelta | None = None

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.trouble: str | None = None  # why the CA was not asked, or did not take the token, when we last tried

    def lives(self) -> bool:
        """Whether there is anything to ask by."""
        return self._path is not None

    @property
    def problem(self) -> str | None:
        """What keeps us from our work."""
        return self.trouble

    async def token(self) -> str:
        """The token of this moment.

        Raises:
            IstioAuthError: there is none that can be used.
        """
        assert self._path is not None
        return await asyncio.to_thread(read_projected_token, self._path)

    def subscribe(self, changed: Callable[[], None]) -> None:
        """Nothing is told: each call takes the token of its moment."""

    def look_again(self) -> None:
        """There is nothing to look at before the next call."""

    async def look_for_token(self) -> None:
        """The same."""

    async def run(self) -> None:
        """Nothing falls due by itself."""
        await asyncio.Event().wait()


class TokenClient(IstioClient):
    """A CA that has Istio's contract, asked with our own service-account token.

    Args:
        calls: the way to it.
        standing: has the token.
        timeout: for one call.
        metadata: goes with every call.
    """

    def __init__(self, calls: Calls, standing: TokenStanding, *, timeout: timedelta, metadata: Metadata) -> None:
        super().__init__(calls, timeout=timeout, metadata=metadata)
        self._standing = standing

    async def sign(self, requests: Sequence[SigningRequest], *, token: str | None = None) -> list[Outcome]:
        """See `CertificateClient.sign`.

        Raises:
            NotAuthenticated: the CA does not take our token, whatever we ask for.
        """
        try:
            outcomes = await super().sign(requests, token=token or await self._standing.token())
            refusals = [each for each in outcomes if isinstance(each, NotAuthenticated)]
            if refused := next((each for each in refusals if _IMPERSONATION not in str(each)), None):
                raise NotAuthenticated(f"the CA does not take our service-account token: {refused}")
        except IstioAuthError as error:
            self._standing.trouble = str(error)
            raise
        self._standing.trouble = None
        return [NotAuthenticated(f"{each}: {_WHY}") if each in refusals else each for each in outcomes]
