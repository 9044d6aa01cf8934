"""`python -m tests.cluster`: a control plane with the CA on it, for a person to try, and gone with Ctrl-C."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from functools import partial
from http import HTTPStatus
from types import FrameType
from typing import NoReturn

from tests.cluster.control_plane import ControlPlane
from tests.cluster.manifests import KUBERNETES, ca_account
from tests.cluster.server import ServerFailed
from tests.fakes.go_module import BuildFailed
from tests.fakes.processes import program, status
from tests.fakes.tcp import closed_port

_SIGNALLED = 128  # and the signal's number, as shells count
_A_DAY = 86400  # seconds that a person may look at it
_LOOK = 1.0  # seconds between two looks whether all servers run


def main() -> int:
    """Start everything, say how to use it, and wait; 0 if it was told to end."""
    argparse.ArgumentParser(prog="python -m tests.cluster", description=__doc__).parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell has its background programs ignore it
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
    await _start_ca(plane)
    print(_instructions(plane), flush=True)
    while True:
        plane.require_alive()
        await asyncio.sleep(_LOOK)


async def _start_ca(plane: ControlPlane) -> None:
    """Install the CA as its manifests say, and run it here, under the account and the rights that they give it."""
    kubeconfig = await ca_account(plane, plane.folder / "istio-ca.kubeconfig", seconds=_A_DAY)
    health = closed_port()
    command = (
        program("istio-ca"),
        *("--config", KUBERNETES / "base" / "ca.toml"),
        *("--kubeconfig", kubeconfig),
        *("--state-folder", plane.folder / "istio-ca"),
        *("--listen", f"127.0.0.1:{closed_port()}"),
        *("--metrics-listen", f"127.0.0.1:{health}"),
    )
    starting = partial(plane.add, command, log="istio-ca.log", is_ready=lambda: status(health) == HTTPStatus.OK)
    await asyncio.to_thread(starting)


def _instructions(plane: ControlPlane) -> str:
    return f"""
A Kubernetes control plane runs at {plane.url}, and the CA on it; their logs are in {plane.folder}.
In another terminal:

    export KUBECONFIG={plane.kubeconfig}
    export PATH={plane.binaries}:{program("ca-cli").parent}:$PATH

Create a service account, and see its secret:

    kubectl create serviceaccount web && sleep 1
    kubectl get secrets
    ca-cli inspect secret/istio.web

Delete the secret, and see it return; delete the service account, and see it go:

    kubectl delete secret istio.web && sleep 1 && kubectl get secret istio.web
    kubectl delete serviceaccount web && sleep 1 && kubectl get secrets

Every namespace has the roots, a new one at once, unless it wants nothing of it:

    kubectl create namespace shop && sleep 1 && kubectl get configmap istio-ca-root-cert --namespace shop
    ca-cli inspect configmap/istio-ca-root-cert --namespace shop
    kubectl label namespace shop ca.istio.io/override=false

What one service account may ask for, and what the CA has on record:

    kubectl create token default --audience istio-ca --duration 10m
    ca-cli log --state-folder {plane.folder}/istio-ca

Ctrl-C here ends all of it, and removes it.
"""


def _end(number: int, _: FrameType | None) -> NoReturn:
    sys.exit(_SIGNALLED + number)


if __name__ == "__main__":
    sys.exit(main())
