"""Go's gRPC with go-spiffe's credentials calls a server of ours, and answers a channel of ours."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from google.protobuf.wrappers_pb2 import StringValue

from istio_auth.authorize import is_id
from istio_auth.grpc import grpc_channel
from istio_auth.pem import write_certificates
from istio_auth.spiffe_id import SpiffeID
from tests.integration.grpc.service import (
    CHAT,
    CLIENT,
    ECHO,
    KINDS,
    OTHER,
    SERVER,
    Refusals,
    Talk,
    holding,
    new_server,
    served,
)
from tests.interop.go_programs import built, output
from tests.vectors.x509_svid import LOCAL

pytestmark = [pytest.mark.interop, pytest.mark.timeout(600)]  # the first build fetches and compiles gRPC


def credentials(folder: Path, spiffe_id: SpiffeID) -> Path:
    """An SVID and the roots, as files."""
    svid = LOCAL.svid(spiffe_id.path)
    (folder / "svid.pem").write_bytes(write_certificates(svid.chain))
    (folder / "key.pem").write_bytes(svid.key_pem())
    (folder / "bundle.pem").write_bytes(LOCAL.bundle().to_pem())
    return folder


@pytest.mark.parametrize("kind", KINDS)
async def test_gos_client_is_known_to_our_server_or_refused(kind: str, tmp_path: Path) -> None:
    talk, refusals, program = Talk(), Refusals(), await built("./talk")
    async with served(new_server(kind, talk), authorize=is_id(CLIENT), on_refused=refusals) as door:

        async def ask(peer: SpiffeID, caller: SpiffeID) -> dict[str, object]:
            files = credentials(tmp_path, caller)
            found: dict[str, object] = json.loads(
                await output(program, "-dial", door.address, "-files", files, "-peer", peer)
            )
            return found

        found = await ask(SERVER, CLIENT)
        assert (found["code"], found["answer"], found["chat"]) == ("OK", "hello", ["a", "b"])
        assert talk.callers == [CLIENT] * 2
        assert (await ask(SERVER, OTHER))["code"] == "Unavailable"
        assert f"{OTHER} is refused: welcome is {CLIENT}" in str(refusals.reasons[0])
        assert (await ask(OTHER, CLIENT))["code"] == "Unavailable"
        assert talk.callers == [CLIENT] * 2


async def test_gos_server_is_known_to_our_channel_or_refused(tmp_path: Path) -> None:
    async with (
        serving(await built("./talk"), credentials(tmp_path, SERVER)) as address,
        grpc_channel(holding(CLIENT), is_id(SERVER), address) as channel,
        grpc_channel(holding(CLIENT), is_id(OTHER), address) as wrong,
    ):
        said = StringValue(value="who am I?").SerializeToString()
        answer = await channel.unary_unary(ECHO)(said)
        assert StringValue.FromString(answer).value == str(CLIENT)
        chat = channel.stream_stream(CHAT)(iter([said, said]))
        assert [StringValue.FromString(response).value async for response in chat] == [str(CLIENT)] * 2
        with pytest.raises(grpc.aio.AioRpcError, match=f"{SERVER} is refused: welcome is {OTHER}"):
            await wrong.unary_unary(ECHO)(said)


@asynccontextmanager
async def serving(program: Path, files: Path) -> AsyncIterator[str]:
    """Go's server, which lets our client in."""
    process = await asyncio.create_subprocess_exec(
        program,
        *("-files", files, "-peer", str(CLIENT)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield (await process.stdout.readline()).decode().strip()
    finally:
        process.stdin.close()
        await process.wait()
