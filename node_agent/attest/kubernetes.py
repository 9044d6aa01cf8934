"""Which pod a caller runs in: its control group names the pod, and the kubelet of this node tells what that pod is.

A pod's author chooses its labels and the names of pod and containers, so they count inside a namespace only: name
namespace and service account beside them. A caller in no pod has no such selectors, and is what it is besides.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from istio_auth.door import UnixCaller
from istio_auth.errors import NotAuthenticated
from istio_auth.registration import Selector
from node_agent.attest.kubelet import Kubelet
from node_agent.attest.pod import Place, place_of
from node_agent.attest.pods import Pods
from node_agent.attest.proc import lines
from node_agent.attest.settings import KubernetesSettings


class KubernetesAttestor:
    """A `WorkloadAttestor` for pods.

    Args:
        pods: looks them up.
        root: the control group in which the kubelet makes those of its pods.
        proc: where processes are shown.
    """

    def __init__(self, pods: Pods, *, root: str = "/", proc: Path = Path("/proc")) -> None:
        self.pods, self._root, self._proc = pods, root, proc

    @classmethod
    def of(cls, settings: KubernetesSettings) -> KubernetesAttestor | None:
        """What these settings ask for; None if they name no kubelet."""
        if settings.kubelet is None:
            return None
        source = Kubelet(settings, settings.kubelet)
        pods = Pods(source, wait=settings.wait, containers=settings.containers)
        return cls(pods, root=str(settings.cgroup_root))

    async def attest(self, peer: UnixCaller) -> frozenset[Selector]:
        """What the caller's pod is known by; nothing if it is in none.

        Raises:
            NotAuthenticated: it can not be told whether it is in a pod, or in which.
            NotReady: the kubelet does not tell of its pod now.
        """
        place = await asyncio.to_thread(self._place, peer)
        return frozenset() if place is None else await self.pods.selectors(place)

    def _place(self, peer: UnixCaller) -> Place | None:
        try:
            told = lines(self._proc / str(peer.pid) / "cgroup")
        except OSError as error:
            reason = os.strerror(error.errno or 0)
            raise NotAuthenticated(f"{peer}: its control group can not be looked at: {reason}") from error
        return place_of(told, self._root)
