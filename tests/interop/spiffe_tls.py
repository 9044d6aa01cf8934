"""The `spiffe-tls` package as a server and as a client, with what a Workload API gives it.

    python -m tests.interop.spiffe_tls serve unix:///path/of/the.sock
    python -m tests.interop.spiffe_tls dial unix:///path/of/the.sock host:port

A server prints its port, then one line for each connection: `met` and the caller's name, or `refused` and why; each
caller is told who it was. A client prints the same of its one connection, and what it was told. Both demand a
certificate and take any SPIFFE ID. They have a process to themselves, for the package's messages have the same names as
other libraries'.
"""

from __future__ import annotations

import sys

from cryptography import x509
from OpenSSL import SSL
from spiffe import X509Source
from spiffetls import ListenOptions, dial, listen
from spiffetls.mode import ClientTlsMode, ServerTlsMode
from spiffetls.tlsconfig.authorize import authorize_any


def _name_of(connection: SSL.Connection) -> str:
    leaf = connection.get_peer_certificate(as_cryptography=True)
    assert leaf is not None
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return str(names.get_values_for_type(x509.UniformResourceIdentifier)[0])


def _say(*words: object) -> None:
    print(*words, flush=True)


def _serve(source: X509Source) -> None:
    options = ListenOptions(tls_mode=ServerTlsMode.MTLS, authorize_fn=authorize_any())
    listener = listen("127.0.0.1:0", source, options)
    _say(listener.getsockname()[1])
    while True:
        connection, _ = listener.accept()
        try:
            connection.do_handshake()
            name = _name_of(connection)
            connection.sendall(f"you are {name}\n".encode())
            connection.recv(100)  # returns, or fails, when the caller has had enough
        except SSL.ZeroReturnError:
            _say("met", name)
        except SSL.Error as error:
            _say("refused", error)
        else:
            _say("met", name)
        connection.close()


def _dial(source: X509Source, address: str) -> None:
    try:
        connection = dial(address, source, ClientTlsMode.TLS, authorize_any())
        name = _name_of(connection)
        connection.sendall(b"hello\n")
        told = connection.recv(100).decode().strip()
    except Exception as error:  # noqa: BLE001  # whatever it is, it is what the package says
        _say("refused", repr(error))
    else:
        _say("met", name, told)


def main() -> None:
    """Serve or dial."""
    match sys.argv[1:]:
        case ["serve", socket]:
            with X509Source(socket_path=socket) as source:
                _serve(source)
        case ["dial", socket, address]:
            with X509Source(socket_path=socket) as source:
                _dial(source, address)
        case _:
            raise SystemExit(__doc__)


if __name__ == "__main__":
    main()
