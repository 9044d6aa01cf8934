"""A client of Istio's certificate service that knows nothing of us: grpcio, and the contract typed off its description.

The messages are built from descriptors in a pool of their own, so that what is on the wire is checked against the
contract (istio/api security/v1alpha1/ca.proto), and not against our own copy of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, cast

import grpc
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from google.protobuf import struct_pb2
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

from istio_auth.keys import PrivateKey

METHOD = "/istio.v1.auth.IstioCertificateService/CreateCertificate"
SERVED_AS = "istiod.istio-system.svc"
END = "-----END CERTIFICATE-----\n"


class _Response(Protocol):
    cert_chain: Sequence[str]


def _pool() -> DescriptorPool:
    pool = DescriptorPool()
    pool.AddSerializedFile(struct_pb2.DESCRIPTOR.serialized_pb)
    file = FileDescriptorProto(name="foreign.proto", package="istio.v1.auth", syntax="proto3")
    file.dependency.append("google/protobuf/struct.proto")
    one, many = FieldDescriptorProto.LABEL_OPTIONAL, FieldDescriptorProto.LABEL_REPEATED
    request = file.message_type.add(name="IstioCertificateRequest")
    request.field.add(name="csr", number=1, type=FieldDescriptorProto.TYPE_STRING, label=one)
    request.field.add(name="validity_duration", number=3, type=FieldDescriptorProto.TYPE_INT64, label=one)
    request.field.add(
        name="metadata",
        number=4,
        type=FieldDescriptorProto.TYPE_MESSAGE,
        type_name=".google.protobuf.Struct",
        label=one,
    )
    response = file.message_type.add(name="IstioCertificateResponse")
    response.field.add(name="cert_chain", number=1, type=FieldDescriptorProto.TYPE_STRING, label=many)
    pool.AddSerializedFile(file.SerializeToString())
    return pool


_POOL = _pool()
_REQUEST = GetMessageClass(_POOL.FindMessageTypeByName("istio.v1.auth.IstioCertificateRequest"))
_RESPONSE = GetMessageClass(_POOL.FindMessageTypeByName("istio.v1.auth.IstioCertificateResponse"))


def request(csr: str, *, seconds: int = 0, metadata: Mapping[str, object] | None = None) -> bytes:
    """A request as it is on the wire; without metadata the field is not there."""
    message = _REQUEST(csr=csr, validity_duration=seconds)
    if metadata is not None:
        message.metadata.update(metadata)  # type: ignore[attr-defined]  # a Struct
        message.metadata.SetInParent()  # type: ignore[attr-defined]  # the message is made at run time
    return message.SerializeToString()


def elements(data: bytes) -> list[str]:
    """What a reply holds, which is that and nothing else."""
    message = _RESPONSE.FromString(data)
    assert message.SerializeToString() == data, "there is something in the reply that is not in the contract"
    return list(cast("_Response", message).cert_chain)


def certificates(pem: str) -> list[x509.Certificate]:
    """The certificates in a text."""
    return x509.load_pem_x509_certificates(pem.encode())


@dataclass(frozen=True)
class Identity:
    """A key with its request, and when there is one its chain."""

    key: PrivateKey = field(default_factory=lambda: ec.generate_private_key(ec.SECP256R1()))
    chain: bytes = b""

    @property
    def csr(self) -> str:
        builder = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        return builder.sign(self.key, hashes.SHA256()).public_bytes(Encoding.PEM).decode()

    @property
    def pem(self) -> bytes:
        return self.key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def with_chain(self, reply: Sequence[str]) -> Identity:
        """The same with what a reply brought, save the roots."""
        return Identity(self.key, "".join(reply[:-1]).encode())


class ForeignClient:
    """Dials the CA as pilot-agent does: by server name, with a certificate, or a token, or both.

    Args:
        port: of loopback.
        roots: in PEM.
        identity: whose chain is presented, if it has one.
        served_as: the name that the server must have; None for the address dialled.
    """

    def __init__(
        self, port: int, roots: bytes, identity: Identity | None = None, *, served_as: str | None = SERVED_AS
    ) -> None:
        self._address, self._served_as = f"127.0.0.1:{port}", served_as
        shown = (identity.pem, identity.chain) if identity is not None and identity.chain else (None, None)
        self._credentials = grpc.ssl_channel_credentials(roots, *shown)

    def channel(self) -> grpc.aio.Channel:
        """A connection of its own."""
        options: list[tuple[str, object]] = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0)]
        if self._served_as is not None:
            options.append(("grpc.ssl_target_name_override", self._served_as))
        return grpc.aio.secure_channel(self._address, self._credentials, options=options)

    async def send(self, data: bytes, *, token: str | None = None) -> bytes:
        """The reply's bytes to a request's bytes."""
        metadata = (("authorization", f"Bearer {token}"),) if token is not None else ()
        async with self.channel() as channel:
            reply: bytes = await channel.unary_unary(METHOD, None, None)(data, timeout=60, metadata=metadata)
            return reply

    async def create(
        self,
        csr: str,
        *,
        seconds: int = 0,
        metadata: Mapping[str, object] | None = None,
        token: str | None = None,
    ) -> list[str]:
        """The elements of the reply."""
        return elements(await self.send(request(csr, seconds=seconds, metadata=metadata), token=token))
