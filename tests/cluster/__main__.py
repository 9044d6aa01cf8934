"""`python -m tests.cluster`: a control plane left running for a person to try with `kubectl`, and gone with Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from types import FrameType
from typing import NoReturn

from tests.cluster.build import BuildFailed
from tests.cluster.control_plane import ControlPlane
from tests.cluster.server import ServerFailed

_SIGNALLED = 128  # and the signal's number, as shells count
_LOOK = 1.0  # seconds between two looks whether all servers run


def main() -> int:
    """Start everything, say how to use it, and wait; 0 if it was told to end."""
    argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__).parse_args()
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, _end)
    try:
        with ControlPlane() as plane:
            asyncio.run(_serve(plane))
    except KeyboardInterrupt:
        print("\nended; nothing is left of it", flush=True)
    except (BuildFailed, ServerFailed) as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


async def _serve(plane: ControlPlane) -> None:
    """What stands on the control plane, until somebody ends it.

    Raises:
        ServerFailed: a server ended by itself.
    """
    print(_instructions(plane), flush=True)
    while True:
        plane.require_alive()
        await asyncio.sleep(_LOOK)


def _instructions(plane: ControlPlane) -> str:
    return f"""
A Kubernetes control plane runs at {plane.url}; its logs are in {plane.folder}.
In another terminal:

    export KUBECONFIG={plane.kubeconfig}
    export PATH={plane.binaries}:$PATH

    kubectl version
    kubectl create namespace shop
    kubectl create serviceaccount web --namespace shop
    kubectl create token web --namespace shop --audience istio-ca

Ctrl-C here ends it, and removes all of it.
"""


def _end(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(_SIGNALLED + number)


if __name__ == "__main__":
    sys.exit(main())
