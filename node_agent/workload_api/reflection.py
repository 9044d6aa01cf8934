"""gRPC server reflection on the agent's sockets (Workload Endpoint 5, SHOULD): tools see what is served, and its form.

The Workload API's messages have a package of ours in this process, for their names are global in it. A stranger must
see the standard's names, so they are described from a pool of their own. Reflection itself has two versions, of which
the library describes the older one.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from typing import cast

from google.protobuf import descriptor_pool, struct_pb2
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection as grpc_reflection
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.reflection_pb2 import ServerReflectionRequest, ServerReflectionResponse

from istio_auth.proto import workload_api_pb2
from istio_auth.rpc.method import Call, Method, Service

_NAMES = ("grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection")  # the same on the wire


def reflection(services: Iterable[Service]) -> list[Service]:
    """What tells strangers of these services, under both names that it has."""
    servicer = grpc_reflection.aio.ReflectionServicer  # type: ignore[attr-defined]  # not in the stubs
    described = servicer([*(each.name for each in services), *_NAMES], pool=_Pools())

    def info(requests: AsyncIterator[ServerReflectionRequest], _call: Call) -> AsyncGenerator[ServerReflectionResponse]:
        return cast("AsyncGenerator[ServerReflectionResponse]", described.ServerReflectionInfo(requests, None))

    method = Method.stream(info, ServerReflectionRequest, ServerReflectionResponse)
    return [Service(name, {"ServerReflectionInfo": method}) for name in _NAMES]


def standard_pool() -> DescriptorPool:
    """The Workload API under the standard's names, without a package, and the present version of reflection."""
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(struct_pb2.DESCRIPTOR.serialized_pb)
    pool.AddSerializedFile(_renamed(workload_api_pb2.DESCRIPTOR, "workloadapi.proto", package="").SerializeToString())
    version_1 = _renamed(reflection_pb2.DESCRIPTOR, "grpc/reflection/v1/reflection.proto", package="grpc.reflection.v1")
    pool.AddSerializedFile(version_1.SerializeToString())
    return pool


def _renamed(described: FileDescriptor, name: str, *, package: str) -> FileDescriptorProto:
    """The same under the name of another file and package."""
    file = FileDescriptorProto()
    described.CopyToProto(file)
    before, after = f".{file.package}.", f".{package}." if package else "."
    file.name, file.package = name, package
    for message in (*file.message_type, *(nested for each in file.message_type for nested in each.nested_type)):
        for field in message.field:
            if field.type_name:
                field.type_name = field.type_name.replace(before, after)
    for service in file.service:
        for method in service.method:
            method.input_type = method.input_type.replace(before, after)
            method.output_type = method.output_type.replace(before, after)
    return file


class _Pools:
    """The standard's names first, then those of this process: Envoy's, and gRPC's own."""

    def __init__(self) -> None:
        self._standard, self._default = standard_pool(), descriptor_pool.Default()

    def FindFileByName(self, name: str) -> FileDescriptor:  # noqa: N802  # protobuf's name
        """The file of this name."""
        try:
            return self._standard.FindFileByName(name)
        except KeyError:
            return self._default.FindFileByName(name)

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802  # protobuf's name
        """The file that says what this is: also of a method, which protobuf's own look-up does not know."""
        for pool in (self._standard, self._default):
            with contextlib.suppress(KeyError):
                return pool.FindFileContainingSymbol(symbol)
            with contextlib.suppress(KeyError):
                return pool.FindMethodByName(symbol).containing_service.file
        raise KeyError(symbol)

    def __getattr__(self, name: str) -> object:
        return getattr(self._default, name)
