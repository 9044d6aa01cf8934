"""Real processes in real control groups of pods, and one with the process id of another."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path

import pytest

from tests.fakes.ca import CAServer
from tests.fakes.certificate_client import FakeCA
from tests.fakes.clock import FakeClock
from tests.fakes.pod_lister import PodLister, pod
from tests.fakes.pod_process import pod_group
from tests.fakes.running_agent import RunningAgent
from tests.fakes.waiting import until
from tests.integration.node_agent.test_admin import said
from tests.integration.node_agent.test_pods import OF_THE_ACCOUNT, SHOP_WEB
from tests.integration.node_agent.test_workload_api import at

pytestmark = pytest.mark.root
CALLER = """
import sys
from pathlib import Path
import grpc
from istio_auth.proto import workload_api_pb2 as messages
for group in sys.argv[2:]:
    Path(group, "cgroup.procs").write_text("0")
call = grpc.insecure_channel(f"unix:{sys.argv[1]}").unary_stream("/SpiffeWorkloadAPI/FetchX509SVID", None, None)
try:
    answer = next(call(b"", metadata=[("workload.spiffe.io", "true")]))
    print(messages.X509SVIDResponse.FromString(answer).svids[0].spiffe_id)
except grpc.RpcError as error:
    print(error.code().name)
sys.stdout.flush()
sys.stdin.read()
"""


@pytest.fixture
def group() -> Iterator[Path]:
    """A control group of a container of a pod."""
    with pod_group(str(uuid.uuid4())) as group:
        yield group


@pytest.fixture
async def agent(tmp_path: Path, clock: FakeClock, group: Path) -> AsyncIterator[RunningAgent]:
    """An agent whose kubelet tells of that pod."""
    async with AsyncExitStack() as stack:
        lister = await stack.enter_async_context(PodLister(tmp_path))
        uid = group.parent.name.removeprefix("pod")
        lister.pods = [pod(uid, containers={group.name: "app"})]
        server = await stack.enter_async_context(CAServer(FakeCA(clock)))
        server.register(account=OF_THE_ACCOUNT)
        settings = lister.settings(containers=True, wait=timedelta(seconds=60))
        agent = await stack.enter_async_context(RunningAgent(server, tmp_path, clock, kubernetes=settings))
        agent.give_token()
        agent.agent.identity.look_again()
        await agent.joined()
        await agent.served("/ns/shop/sa/web")
        yield agent


async def lines(process: asyncio.subprocess.Process, count: int = 1) -> list[str]:
    """What the process says first."""
    assert process.stdout is not None
    async with asyncio.timeout(60):
        return [(await process.stdout.readline()).decode().strip() for _ in range(count)]


async def called(agent: RunningAgent, *groups: Path) -> asyncio.subprocess.Process:
    """A process in these groups that asks for its identity."""
    command = [sys.executable, "-c", CALLER, str(agent.socket), *map(str, groups)]
    return await asyncio.create_subprocess_exec(*command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


async def end(process: asyncio.subprocess.Process) -> None:
    process.kill()
    await process.wait()


async def test_a_process_is_who_its_pods_service_account_is_and_explain_tells_by_what(
    agent: RunningAgent, group: Path
) -> None:
    process = await called(agent, group)
    try:
        assert await lines(process) == [SHOP_WEB]
        found = json.loads(await said(agent, "explain", "--pid", str(process.pid), "--output", "json"))
        assert found["earns"] == [{"spiffe_id": SHOP_WEB, "through": []}]
        assert {"k8s:ns:shop", "k8s:sa:web", "k8s:container:app"} <= set(found["selectors"])
    finally:
        await end(process)


async def test_a_process_in_no_pod_or_in_a_group_that_only_looks_like_one_is_nobody(
    agent: RunningAgent, group: Path
) -> None:
    hierarchy = group.parents[3]
    mine = hierarchy / f"delegated-{uuid.uuid4().hex[:8]}"
    claimed = mine / group.relative_to(hierarchy)
    claimed.mkdir(parents=True)
    try:
        for groups, trouble in (((), ""), ((claimed,), "see kubernetes.cgroup_root")):
            process = await called(agent, *groups)
            try:
                assert await lines(process) == ["PERMISSION_DENIED"]
                found = json.loads(await said(agent, "explain", "--pid", str(process.pid), "--output", "json"))
                assert trouble in (found["trouble"] or "")
                assert not found["earns"]
            finally:
                await end(process)
    finally:
        for each in (claimed, *claimed.parents[:4]):
            each.rmdir()


async def test_who_calls_by_a_process_that_has_ended_is_not_who_has_its_id_now(
    agent: RunningAgent, group: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "istio_auth")
    relay = agent.folder / "relay.sock"
    command = ["-m", "tests.fakes.pod_process", str(agent.socket), str(relay), str(group)]
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, stdout=subprocess.PIPE, cwd=Path(__file__).parents[3]
    )
    pid = 0
    try:
        pid = int((await lines(process))[0])
        assert await lines(process) == ["ready"]
        await until(lambda: "kubepods" in Path(f"/proc/{pid}/cgroup").read_text())
        found = json.loads(await said(agent, "explain", "--pid", str(pid), "--output", "json"))
        assert [each["spiffe_id"] for each in found["earns"]] == [SHOP_WEB]  # whoever has the id now
        async with at(relay) as workload:
            assert await workload.refusal("FetchX509SVID") == ("PERMISSION_DENIED", "no identity issued")
        assert f"process {pid} has ended" in caplog.text
    finally:
        if pid:
            os.kill(pid, signal.SIGKILL)
        await end(process)
        await until(lambda: not (group / "cgroup.procs").read_text())  # or the group would stay
