"""The server that `bench.csr` measures: the CA as the daemon runs it, with one empty method beside its services.

Prints one line of JSON when it serves, and ends when its standard input does.
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

from google.protobuf.empty_pb2 import Empty

from ca.attest import Attested
from ca.certificate_authority import Settings
from ca.issuer import Order
from ca.platform.standalone import Standalone
from ca.registry import Grant
from ca.serving import ServingCertificate
from istio_auth.authorize import member_of
from istio_auth.daemon.lifecycle import spare_the_collector
from istio_auth.daemon.logging import Format, Level, configure
from istio_auth.door import Door
from istio_auth.keys import fingerprint, new_private_key
from istio_auth.pem import write_certificates, write_private_key
from istio_auth.rpc.method import Call, Method, Service
from istio_auth.rpc.server import RpcServer
from istio_auth.spiffe_id import SpiffeID, TrustDomain
from istio_auth.system_clock import SystemClock
from istio_auth.tls import server_context

DOMAIN = TrustDomain("cluster.local")
AGENT = SpiffeID.for_agent(DOMAIN, "node-1")
WEB = SpiffeID.for_service_account(DOMAIN, "default", "web")
_REGISTRATIONS = f"""[[registration]]
spiffe_id = "{WEB}"
agents = ["node-1"]
selectors = ["unix:uid:1000"]
"""


def main() -> None:
    """Serve from the folder named as the only argument."""
    folder = Path(sys.argv[1])
    (folder / "registrations.toml").write_text(_REGISTRATIONS)
    settings = Settings(DOMAIN, folder / "state", folder / "registrations.toml")
    configure(Level.INFO, Format.JSON)
    asyncio.run(_serve(Standalone(settings, SystemClock()), folder))


async def _serve(ca: Standalone, folder: Path) -> None:
    clock = SystemClock()
    serving = ServingCertificate(ca.issuer, ca.authority, ["localhost", "127.0.0.1"], clock=clock)
    await serving.renew()
    for spiffe_id in (AGENT, WEB):
        await _hand_out(ca, spiffe_id, folder)
    empty = Service("bench.Empty", {"Empty": Method.unary(_empty, Empty, Empty)})
    async with Door() as door:
        server = RpcServer(door, [*ca.services(), empty])
        await server.start()
        context = server_context(serving.source, member_of(DOMAIN), require_client_certificate=False, alpn=["h2"])
        _, port = await door.listen_tls("127.0.0.1", 0, context)
        spare_the_collector()  # as the daemon does when it is ready
        print(json.dumps({"port": port}), flush=True)
        await asyncio.to_thread(sys.stdin.read)
        door.stop_listening()
        await server.stop(timedelta(seconds=1))
    await ca.close()


async def _empty(_request: Empty, _call: Call) -> Empty:
    return Empty()


async def _hand_out(ca: Standalone, spiffe_id: SpiffeID, folder: Path) -> None:
    """Write key, chain and roots for a caller."""
    key, now = new_private_key(), datetime.now(UTC)
    if spiffe_id == AGENT:
        ca.agents.enrol("node-1", fingerprint(key.public_key()), invited_at=now, now=now)
    order = Order(Grant(spiffe_id), key.public_key(), None, Attested(spiffe_id, "bench"), "bench")
    issued = await ca.issuer.issue(order)
    name = spiffe_id.path.rpartition("/")[2]
    for part, content in (
        ("key", write_private_key(key)),
        ("chain", write_certificates(issued.certificates())),
        ("roots", ca.authority.root_pem()),
    ):
        await asyncio.to_thread((folder / f"{name}-{part}.pem").write_bytes, content)


if __name__ == "__main__":
    main()
