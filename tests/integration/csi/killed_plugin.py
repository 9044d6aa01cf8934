"""A real agent with real mounts, killed and started again, in the mount namespace of this process; prints what it saw.

Run as root by `test_processes.py`, under `unshare --mount`, with a folder on tmpfs.
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import timedelta
from pathlib import Path

from istio_auth.svid import X509SVID
from istio_auth.system_clock import SystemClock
from tests.fakes.ca import CAServer
from tests.fakes.certificate_client import FakeCA
from tests.fakes.kubelet import Kubelet, Pod
from tests.fakes.sds_client import SDSStream
from tests.fakes.unix_sockets import is_answered
from tests.fakes.waiting import until
from tests.integration.csi.conftest import TOKEN, WEB

FILES, SOCKETS = Pod("files-0", attributes={"form": "files"}), Pod("sockets-0")


class Machine:
    """The agent's process on a machine with a kubelet."""

    def __init__(self, folder: Path, server: CAServer, kubelet: Kubelet) -> None:
        self.folder, self.kubelet = folder, kubelet
        self.log = folder / "log"
        self.process: asyncio.subprocess.Process | None = None
        (folder / "pin.json").write_bytes(server.ca.root.bundle().to_json())
        (folder / "agent.toml").write_text(f"""
ca_address = "{server.address}"
trust_bundle = "{folder}/pin.json"
join_token_file = "{folder}/token"
name = "node-1"
state_folder = "{folder}/state"
run_folder = "{folder}/run"
metrics_listen = "127.0.0.1:0"
[csi]
endpoint = "{kubelet.endpoint}"
kubelet_folder = "{kubelet.folder}"
""")

    async def start(self) -> asyncio.subprocess.Process:
        """Start it, and wait for the kubelet's sight of it."""
        code = "from node_agent.cli import main; main()"
        with self.log.open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-c", code, "--config", str(self.folder / "agent.toml"), stdout=log, stderr=log
            )
        try:
            socket = self.kubelet.registry / "istio-auth-reg.sock"
            await until(lambda: is_answered(socket) or process.returncode is not None)
            await self.kubelet.register()
        except BaseException:
            process.kill()
            raise
        self.process = process
        return process

    async def served(self) -> X509SVID:
        """What the pod with the socket is served."""
        async with SDSStream(self.kubelet.target(SOCKETS) / "agent.sock", "default") as stream:
            await stream.receive()
            return stream.svid()

    def mounts(self) -> int:
        """How many volumes are mounted."""
        return Path("/proc/self/mountinfo").read_text().count(f" {self.kubelet.folder}/pods/")


async def main(folder: Path) -> dict[str, object]:
    """Publish, kill, start without the CA, unpublish."""
    clock = SystemClock()
    async with (
        CAServer(FakeCA(clock), node_service=False) as server,
        Kubelet(folder / "kubelet", clock.now() + timedelta(hours=1)) as kubelet,
    ):
        server.ca.pod_tokens[TOKEN] = WEB
        machine = Machine(folder, server, kubelet)
        try:
            return await seen_of(machine, server)
        finally:
            if machine.process is not None and machine.process.returncode is None:
                machine.process.kill()
                await machine.process.wait()


async def seen_of(machine: Machine, server: CAServer) -> dict[str, object]:
    """What is seen of a machine whose agent is killed."""
    kubelet, folder, seen = machine.kubelet, machine.folder, dict[str, object]()
    process = await machine.start()
    for pod in (FILES, SOCKETS):
        await kubelet.publish(pod, TOKEN)
    before = await machine.served()
    seen["mounted"] = [machine.mounts(), str(before.id)]
    process.kill()
    await process.wait()
    (kubelet.registry / "istio-auth-reg.sock").unlink()
    await server.away()
    process = await machine.start()
    chain = (kubelet.target(FILES) / "cert-chain.pem").read_bytes()
    seen["after the kill"] = [machine.mounts(), (await machine.served()).leaf == before.leaf, len(chain) > 0]
    for pod in (FILES, SOCKETS):
        await kubelet.publish(pod, TOKEN)
        await kubelet.unpublish(pod)
    seen["left"] = [machine.mounts(), len(list((folder / "run/csi").iterdir())), len(list(kubelet.pods()))]
    process.terminate()
    seen["exit"] = await process.wait()
    seen["token in the log"] = TOKEN in machine.log.read_text()
    return seen


if __name__ == "__main__":
    print(json.dumps(asyncio.run(main(Path(sys.argv[1])))))
