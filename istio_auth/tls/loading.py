"""Loads SVIDs and roots into an `ssl.SSLContext`, which takes keys from paths only.

The key goes through a file in memory (memfd), which has no name in a folder and never reaches a disk. If the system has
no memfd or no /proc, the key goes through a file of mode 0600, encrypted with a password that is used once.
"""

from __future__ import annotations

import errno
import os
import secrets
import ssl
import tempfile
from collections.abc import Iterable
from pathlib import Path

from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from istio_auth.bundle import TrustBundle
from istio_auth.pem import write_der
from istio_auth.svid import X509SVID

_NO_DESCRIPTORS = {errno.EMFILE, errno.ENFILE}  # a file would need one as well


def load_svid(context: ssl.SSLContext, svid: X509SVID) -> None:
    """Make the context present this SVID.

    Raises:
        ssl.SSLError: OpenSSL does not take the chain or the key.
        OSError: there is no descriptor left, or no place for a file.
    """
    try:
        _load_through_memory(context, svid)
    except ssl.SSLError:
        raise
    except (AttributeError, OSError) as error:  # no memfd, or /proc is not there or closed to us
        if isinstance(error, OSError) and error.errno in _NO_DESCRIPTORS:
            raise
        _load_through_encrypted_file(context, svid)


def load_roots(context: ssl.SSLContext, bundles: Iterable[TrustBundle]) -> None:
    """Let OpenSSL finish handshakes with peers of all these trust domains. Who a peer is, is verified after that."""
    roots = b"".join(write_der(authority) for bundle in bundles for authority in bundle.x509_authorities)
    if roots:
        context.load_verify_locations(cadata=roots)


def _load_through_memory(context: ssl.SSLContext, svid: X509SVID) -> None:
    descriptor = os.memfd_create("svid", os.MFD_CLOEXEC)
    with open(descriptor, "wb", buffering=0) as file:  # noqa: PTH123  # a descriptor, not a path
        file.write(svid.chain_pem() + svid.key_pem())
        context.load_cert_chain(f"/proc/self/fd/{descriptor}")


def _load_through_encrypted_file(context: ssl.SSLContext, svid: X509SVID) -> None:
    password = secrets.token_bytes(32).hex().encode()
    key = svid.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(password))
    descriptor, name = tempfile.mkstemp(prefix="svid-")  # of mode 0600 from the beginning
    try:
        with open(descriptor, "wb") as file:  # noqa: PTH123  # a descriptor, not a path
            file.write(svid.chain_pem() + key)
        context.load_cert_chain(name, password=password)
    finally:
        Path(name).unlink()
