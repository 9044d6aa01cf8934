"""Requests of Kubernetes' certificate APIs as the API server tells them, and what it takes as an answer.

`complaints` is its own check of a pod certificate (`ValidatePodCertificateRequestStatusUpdate`, Kubernetes 1.37), told
anew from its rules and not from our code.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from ca.platform.kubernetes.api.objects import Object
from ca.platform.kubernetes.requests.signer import Signer
from ca.profile import IssuanceProfile
from istio_auth.spiffe_id import TrustDomain
from istio_auth.strict_json import JSON

NAME = "istio-auth.io/workload"
SIGNER = Signer(NAME, TrustDomain("cluster.local"), IssuanceProfile())
WEB = "spiffe://cluster.local/ns/shop/sa/web"
KEY = ec.generate_private_key(ec.SECP256R1())
NO_NAMES = x509.Name([])
AnyKey = ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey | ed25519.Ed25519PrivateKey


def csr(
    key: AnyKey = KEY, *names: x509.GeneralName, subject: x509.Name = NO_NAMES, extra: x509.ExtensionType | None = None
) -> x509.CertificateSigningRequest:
    """A CSR with these alternative names."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    if extra is not None:
        builder = builder.add_extension(extra, critical=True)
    return builder.sign(key, None if isinstance(key, ed25519.Ed25519PrivateKey) else hashes.SHA256())


def stub(request: x509.CertificateSigningRequest) -> str:
    return base64.b64encode(request.public_bytes(Encoding.DER)).decode()


def in_pem(request: x509.CertificateSigningRequest) -> str:
    return base64.b64encode(request.public_bytes(Encoding.PEM)).decode()


def pod_certificate_request(created: datetime, *, request: x509.CertificateSigningRequest | None = None) -> Object:
    """What a kubelet makes for a pod of the service account web."""
    return {
        "metadata": {
            "name": "req-7xk2p",
            "namespace": "shop",
            "uid": "0a3f8c52-1111-4c6b-8f6e-000000000001",
            "resourceVersion": "4711",
            "creationTimestamp": f"{created:%Y-%m-%dT%H:%M:%SZ}",
            "labels": {"team": "shop"},
            "ownerReferences": [{"apiVersion": "v1", "kind": "Pod", "name": "web-0", "uid": "pod-uid-1"}],
        },
        "spec": {
            "signerName": NAME,
            "podName": "web-0",
            "podUID": "pod-uid-1",
            "serviceAccountName": "web",
            "serviceAccountUID": "account-uid-1",
            "nodeName": "node-1",
            "nodeUID": "node-uid-1",
            "maxExpirationSeconds": 86400,
            "stubPKCS10Request": stub(request or csr()),
        },
        "status": {},
    }


def signing_request(
    *names: x509.GeneralName, request: x509.CertificateSigningRequest | None = None, approved: bool = False
) -> Object:
    """What a pod of the service account web makes with its token; by default for its own identity."""
    wished = names or (x509.UniformResourceIdentifier(WEB),)
    by_somebody: Object = {"type": "Approved", "status": "True", "reason": "ByHand", "message": "kubectl"}
    return {
        "metadata": {"name": "web-csr", "uid": "csr-uid-1", "resourceVersion": "12", "labels": {"team": "shop"}},
        "spec": {
            "signerName": NAME,
            "request": in_pem(request or csr(KEY, *wished)),
            "usages": ["client auth", "server auth", "digital signature"],
            "username": "system:serviceaccount:shop:web",
            "uid": "account-uid-1",
            "groups": ["system:serviceaccounts", "system:serviceaccounts:shop", "system:authenticated"],
            "extra": {
                "authentication.kubernetes.io/pod-name": ["web-0"],
                "authentication.kubernetes.io/pod-uid": ["pod-uid-1"],
            },
        },
        "status": {"conditions": [by_somebody]} if approved else {},
    }


def changed(request: Object, path: str, value: JSON) -> Object:
    """The request with another value at a path, as in `spec.podName`."""
    head, dot, rest = path.partition(".")
    if not dot:
        return {**request, head: value}
    inner = request.get(head)
    return {**request, head: changed(inner if isinstance(inner, dict) else {}, rest, value)}


def without(request: Object, path: str) -> Object:
    """The request without what stands at a path."""
    head, dot, rest = path.partition(".")
    if not dot:
        return {name: value for name, value in request.items() if name != head}
    inner = request[head]
    assert isinstance(inner, dict)
    return {**request, head: without(inner, rest)}


def complaints(old: Object, new: Object, server_now: datetime) -> list[str]:
    """What the API server would say of an update of a pod certificate's status; nothing if it takes it."""
    return list(_complaints(old, new, server_now))


def _complaints(old: Object, new: Object, server_now: datetime) -> Iterator[str]:
    spec, status = _object(old["spec"]), _object(new["status"])
    if _object(new["metadata"])["resourceVersion"] != _object(old["metadata"])["resourceVersion"]:
        yield "resourceVersion"
    conditions = status["conditions"]
    assert isinstance(conditions, list)
    (condition,) = map(_object, conditions)
    if not re.fullmatch(r"[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?", str(condition["reason"])):
        yield "reason"
    if condition["status"] != "True" or condition["type"] not in {"Issued", "Denied", "Failed"}:
        yield "condition"
    if len(str(condition["message"])) > 32 << 10:
        yield "message"
    _time(condition["lastTransitionTime"])
    if condition["type"] != "Issued":
        if status.keys() != {"conditions"}:
            yield "non-condition status fields must be empty"
        return
    leaf, *_ = x509.load_pem_x509_certificates(str(status["certificateChain"]).encode())
    asked = x509.load_der_x509_csr(base64.b64decode(str(spec["stubPKCS10Request"])))
    if leaf.public_key() != asked.public_key():
        yield "leaf certificate was not issued to the requested public key"
    begin, end, refresh = (_time(status[name]) for name in ("notBefore", "notAfter", "beginRefreshAt"))
    if (begin, end) != (leaf.not_valid_before_utc, leaf.not_valid_after_utc):
        yield "times must be those in the leaf"
    yield from time_complaints(begin, end, spec["maxExpirationSeconds"], server_now)
    if not begin + timedelta(minutes=10) <= refresh <= end - timedelta(minutes=10):
        yield "beginRefreshAt"


def time_complaints(begin: datetime, end: datetime, most_seconds: JSON, server_now: datetime) -> Sequence[str]:
    """What the API server would say of the two ends of a certificate."""
    found = []
    if not server_now - timedelta(minutes=5) < begin < server_now + timedelta(minutes=5):
        found.append("must be set to within 5 minutes of kube-apiserver's current time")
    if end - begin < timedelta(hours=1):
        found.append("leaf certificate lifetime must be >= 1 hour")
    if not isinstance(most_seconds, int) or (end - begin).total_seconds() > most_seconds:
        found.append("leaf certificate lifetime must be <= spec.maxExpirationSeconds")
    return found


def _object(value: JSON) -> Object:
    assert isinstance(value, dict)
    return value


def _time(value: JSON) -> datetime:
    assert isinstance(value, str)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", value)
    return datetime.fromisoformat(value)
