"""`podCertificate` volumes that the CA signs for a real kubelet, with its trust bundle: served on, and used."""

from __future__ import annotations

from tests.cluster.running_ca import account_id
from tests.fakes.processes import program
from tests.node.installation import SIGNER, Installed
from tests.node.pods import Pods, PodSpec

CERTIFICATES = "/certificates"
RUN = "/tmp/run"  # in a pod of its own
MOUNT = {"name": "certificates", "mountPath": CERTIFICATES, "readOnly": True}


def volume(**paths: str) -> dict[str, object]:
    """The volume, with these files in it."""
    certificate = {"signerName": SIGNER, "keyType": "ECDSAP256", **paths}
    roots = {"signerName": SIGNER, "labelSelector": {}, "path": "ca.crt"}
    return {
        "name": "certificates",
        "projected": {"sources": [{"podCertificate": certificate}, {"clusterTrustBundle": roots}]},
    }


async def test_the_library_and_an_agent_in_the_pod_serve_what_the_kubelet_mounts(
    pods: Pods, installed: Installed
) -> None:
    agent = (
        "env",
        f"ISTIO_AUTH_AGENT__MOUNTED={CERTIFICATES}",
        f"ISTIO_AUTH_AGENT__RUN_FOLDER={RUN}",
        str(program("node-agent")),
    )
    spec = PodSpec(
        attributes=None,
        service_account="web",
        user=1001,
        fs_group=2002,
        command=agent,
        volumes=[volume(keyPath="tls.key", certificateChainPath="tls.crt")],
        mounts=[MOUNT],
    )
    pod = await pods.start(spec)
    (by_files,) = await pod.told("who", CERTIFICATES)
    assert (by_files["spiffe_id"], by_files["uid"]) == (account_id(pods.namespace, "web"), 1001)
    (by_agent,) = await pod.told("who", f"{RUN}/agent.sock")
    assert by_agent == by_files
