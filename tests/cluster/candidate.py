"""A process that stands for election, and while it leads writes down when it may write: to be killed and paused.

    python -m tests.cluster.candidate KUBECONFIG NAMESPACE IDENTITY FILE SECONDS

SECONDS is the duration of the lease. Each line of the file is `IDENTITY TERM INSTANT` by the steady clock that all
processes of the machine share.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from datetime import timedelta
from pathlib import Path

from ca.platform.kubernetes.api.connection import connected
from ca.platform.kubernetes.leader.candidate import LeaseTiming
from ca.platform.kubernetes.leader.lease import LeaderElection, steady_seconds
from istio_auth.system_clock import SystemClock

LEASE = "istio-ca-leader"


def timing(seconds: int) -> LeaseTiming:
    """That of a lease of so many seconds, which is looked at often; whoever leaves has as long as one try to say so."""
    return LeaseTiming(
        timedelta(seconds=seconds), timedelta(seconds=0.6 * seconds), timedelta(seconds=max(0.3, seconds / 120))
    )


TIMING = timing(4)


async def stand(kubeconfig: Path, namespace: str, identity: str, file: int, seconds: int) -> None:
    """Stand for election until SIGTERM."""
    async with connected(kubeconfig) as api:
        election = LeaderElection(api, namespace, LEASE, identity=identity, clock=SystemClock(), timing=timing(seconds))

        async def lead(term: int) -> None:
            while True:
                now = steady_seconds()
                if election.still_leading():
                    os.write(file, f"{identity} {term} {now}\n".encode())
                await asyncio.sleep(0.01)

        running = asyncio.create_task(election.run(lead))
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
        await asyncio.wait({running})


if __name__ == "__main__":
    _, where, whose, who, what, long = sys.argv
    into = os.open(what, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    asyncio.run(stand(Path(where), whose, who, into, int(long)))
