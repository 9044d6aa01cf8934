"""Requests of Kubernetes' two certificate APIs at the real API server, made by those who make them."""

from __future__ import annotations

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from tests.cluster.client import JSON, Client
from tests.cluster.control_plane import ControlPlane
from tests.cluster.waiting import answers, eventually
from tests.fakes.certificate_requests import AnyKey, csr, in_pem, stub

API = "/apis/certificates.k8s.io/v1"
CSRS = f"{API}/certificatesigningrequests"


class Pods:
    """Pods of a service account on a node of their own, and the kubelet that asks for their certificates."""

    def __init__(self, plane: ControlPlane, admin: Client, namespace: str) -> None:
        self.signer = f"{namespace}.test/workload"
        self.path = f"{API}/namespaces/{namespace}/podcertificaterequests"
        self._plane, self._admin, self._namespace = plane, admin, namespace

    async def made(self, count: int) -> None:
        """Make so many pods."""
        path = f"/api/v1/namespaces/{self._namespace}/serviceaccounts"
        if (await self._admin.find(f"{path}/web")) is None:
            await self._admin.create_service_account(self._namespace, "web")
        self.account = await self._admin.get(f"{path}/web")
        self.node = await self._admin.create_node(f"node-{self._namespace}")
        source = {"signerName": self.signer, "keyType": "ECDSAP256", "credentialBundlePath": "bundle.pem"}
        volumes = [{"name": "certificate", "projected": {"sources": [{"podCertificate": source}]}}]
        self.pods = [
            await self._admin.create_pod(
                self._namespace, f"web-{n}", service_account="web", node=self.node["metadata"]["name"], volumes=volumes
            )
            for n in range(count)
        ]

    def kubelet(self) -> Client:
        return self._plane.kubelet(self.node["metadata"]["name"])

    def request(self, pod: JSON, key: AnyKey, **spec: object) -> JSON:
        """What the kubelet asks for."""
        metadata = {
            "generateName": "req-",
            "ownerReferences": [
                {"apiVersion": "v1", "kind": "Pod", "name": pod["metadata"]["name"], "uid": pod["metadata"]["uid"]}
            ],
        }
        return {
            "metadata": metadata,
            "spec": {
                "signerName": self.signer,
                "podName": pod["metadata"]["name"],
                "podUID": pod["metadata"]["uid"],
                "serviceAccountName": "web",
                "serviceAccountUID": self.account["metadata"]["uid"],
                "nodeName": self.node["metadata"]["name"],
                "nodeUID": self.node["metadata"]["uid"],
                "stubPKCS10Request": stub(csr(key)),
                **spec,
            },
        }

    async def answer(self, name: str) -> JSON:
        """The request once it has its answer."""

        async def answered() -> JSON | None:
            found = await self._admin.get(f"{self.path}/{name}")
            return found if found.get("status", {}).get("conditions") else None

        return await eventually(answered)


async def asked(client: Client, path: str, request: JSON) -> str:
    """The name of a request, once the authorizer of the API server knows of what allows it."""
    return str((await answers(client, 201, "POST", path, request))["metadata"]["name"])


def signing_request(signer: str, key: ec.EllipticCurvePrivateKey, *names: str, **spec: object) -> JSON:
    uris = [x509.UniformResourceIdentifier(name) for name in names]
    return {
        "metadata": {"generateName": "web-"},
        "spec": {
            "signerName": signer,
            "request": in_pem(csr(key, *uris)),
            "usages": ["digital signature", "client auth", "server auth"],
            **spec,
        },
    }


async def answered_csr(admin: Client, name: str) -> JSON:
    """The request once it has a certificate, or never gets one."""

    async def answered() -> JSON | None:
        status = (await admin.get(f"{CSRS}/{name}")).get("status", {})
        final = {each["type"] for each in status.get("conditions", ())} & {"Denied", "Failed"}
        return status if final or status.get("certificate") else None

    return await eventually(answered)


async def allow_signing_requests(admin: Client, namespace: str) -> None:
    """Let the service account of the namespace make requests; nobody may by default."""
    rules = [{"apiGroups": ["certificates.k8s.io"], "resources": ["certificatesigningrequests"], "verbs": ["create"]}]
    name = f"signing-{namespace}"
    group = "rbac.authorization.k8s.io"
    await admin.create(f"/apis/{group}/v1/clusterroles", {"metadata": {"name": name}, "rules": rules})
    binding = {
        "metadata": {"name": name},
        "roleRef": {"apiGroup": group, "kind": "ClusterRole", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": "web", "namespace": namespace}],
    }
    await admin.create(f"/apis/{group}/v1/clusterrolebindings", binding)
