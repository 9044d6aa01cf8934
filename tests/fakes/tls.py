"""TLS ends for tests: strangers that present any chain and look at nothing, and handshakes in memory."""

from __future__ import annotations

import os
import ssl
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509

from istio_auth.errors import IstioAuthError
from istio_auth.keys import PrivateKey
from istio_auth.peer import HandshakeRefused
from istio_auth.pem import write_certificates, write_private_key

NAME = "web.test"


def stranger(
    *, server_side: bool, chain: Sequence[x509.Certificate] = (), key: PrivateKey | None = None
) -> ssl.SSLContext:
    """Python's own TLS, which presents this chain, if any, and takes whoever is at the other end."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER if server_side else ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")
    if chain:
        assert key is not None
        with open(os.memfd_create("chain"), "wb", buffering=0) as file:  # noqa: PTH123  # a descriptor, not a path
            file.write(write_certificates(chain) + write_private_key(key))
            context.load_cert_chain(f"/proc/self/fd/{file.fileno()}")
    return context


@dataclass
class End:
    """One end of a connection in memory."""

    tls: ssl.SSLObject
    done: bool = False
    error: ssl.SSLError | None = None

    def step(self) -> None:
        """Take the handshake as far as it goes now."""
        if self.done or self.error:
            return
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            return
        except ssl.SSLError as error:
            self.error = error
        else:
            self.done = True

    @property
    def refusal(self) -> IstioAuthError:
        """This end's own reason for refusing the other."""
        assert isinstance(self.error, HandshakeRefused), self.error or "nothing was refused"
        return self.error.reason_error


def begin(client: ssl.SSLContext, server: ssl.SSLContext, *, session: ssl.SSLSession | None = None) -> tuple[End, End]:
    """A client and a server that have not said anything yet."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    return (
        End(client.wrap_bio(to_client, to_server, server_hostname=NAME, session=session)),
        End(server.wrap_bio(to_server, to_client, server_side=True)),
    )


def go_on(*ends: End) -> None:
    """Take both ends as far as they get."""
    for _ in range(6):  # a handshake has three flights at most
        for end in ends:
            end.step()


def meet(client: ssl.SSLContext, server: ssl.SSLContext, *, session: ssl.SSLSession | None = None) -> tuple[End, End]:
    """A client and a server after as much of a handshake as they let happen."""
    ends = begin(client, server, session=session)
    go_on(*ends)
    return ends


def talk(client: End, server: End) -> None:
    """Have each end send the other something, and see it arrive."""
    assert client.done, client.error
    assert server.done, server.error
    client.tls.write(b"ping")
    assert server.tls.read() == b"ping"
    server.tls.write(b"pong")
    assert client.tls.read() == b"pong"
