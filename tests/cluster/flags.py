"""How the servers of a test's control plane are told what to do."""

from __future__ import annotations

from pathlib import Path

ISSUER = "https://kubernetes.default.svc"

# What makes a cluster behave like one as far as identities go; pods are bound to nodes by who makes them.
_CONTROLLERS = (
    "serviceaccount-controller",
    "serviceaccount-token-controller",
    "namespace-controller",
    "garbage-collector-controller",
    "root-ca-certificate-publisher-controller",
    "clusterrole-aggregation-controller",
    "certificatesigningrequest-cleaner-controller",
    "podcertificaterequest-cleaner-controller",
)


def etcd(folder: Path, url: str) -> list[str]:
    """The words for etcd: one member, which need not survive a power cut."""
    return [
        f"--data-dir={folder / 'etcd'}",
        f"--listen-client-urls={url}",
        f"--advertise-client-urls={url}",
        "--listen-peer-urls=http://127.0.0.1:0",
        "--unsafe-no-fsync",
        "--log-level=warn",
    ]


def api_server(folder: Path, etcd: str, port: int) -> list[str]:
    """The words for the API server. Tokens for anybody else than itself are of a foreign audience to it."""
    return [
        f"--etcd-servers={etcd}",
        "--bind-address=127.0.0.1",
        f"--secure-port={port}",
        # A machine without a network has no address to advertise, and nobody looks for the server there.
        "--advertise-address=127.0.0.1",
        "--endpoint-reconciler-type=none",
        f"--cert-dir={folder}",
        f"--tls-cert-file={folder / 'server.pem'}",
        f"--tls-private-key-file={folder / 'server.key'}",
        f"--client-ca-file={folder / 'ca.pem'}",
        f"--service-account-issuer={ISSUER}",
        f"--service-account-key-file={folder / 'service-accounts.key'}",
        f"--service-account-signing-key-file={folder / 'service-accounts.key'}",
        "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction",
        "--service-cluster-ip-range=10.96.0.0/24",
        "--allow-privileged",
        # For the logs of pods, and for programs in them, where there is a node.
        "--kubelet-preferred-address-types=InternalIP",
        f"--kubelet-certificate-authority={folder / 'ca.pem'}",
        f"--kubelet-client-certificate={folder / 'kubelet-client.pem'}",
        f"--kubelet-client-key={folder / 'kubelet-client.key'}",
        "--profiling=false",
    ]


def controller_manager(folder: Path) -> list[str]:
    """The words for the controller manager."""
    return [
        f"--kubeconfig={folder / 'kubeconfig'}",
        f"--service-account-private-key-file={folder / 'service-accounts.key'}",
        f"--root-ca-file={folder / 'ca.pem'}",
        "--use-service-account-credentials",
        "--leader-elect=false",
        f"--controllers={','.join(_CONTROLLERS)}",
        "--secure-port=0",
        "--profiling=false",
    ]
