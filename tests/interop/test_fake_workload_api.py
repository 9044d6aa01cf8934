"""The Workload API of our tests is one to another project's client: what is proven against it means something."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from istio_auth.proto import workload_api_pb2 as messages
from istio_auth.svid import X509SVID
from tests.fakes import workload_api as fake
from tests.fakes.token_issuer import TokenIssuer
from tests.fakes.workload_api import FakeWorkloadAPI
from tests.vectors.x509_svid import FEDERATED, LOCAL

WEB, RENEWED = LOCAL.svid(), LOCAL.svid()
BUNDLE = LOCAL.bundle()
ISSUER = TokenIssuer()
AUDIENCE = "somebody"


@pytest.fixture
def api(tmp_path: Path) -> Iterator[FakeWorkloadAPI]:
    with FakeWorkloadAPI(tmp_path / "agent.sock") as found:
        yield found


def digest(svid: X509SVID) -> str:
    return hashlib.sha256(svid.leaf.public_bytes(Encoding.DER)).hexdigest()


def test_the_spiffe_package_fetches_and_follows_what_the_fake_says(api: FakeWorkloadAPI) -> None:
    api.x509.say(fake.x509(fake.entry(WEB, BUNDLE, hint="web"), federated=[FEDERATED.bundle()]))
    api.x509_bundles.say(fake.x509_bundles(BUNDLE, FEDERATED.bundle()))
    command = [sys.executable, "-m", "tests.interop.spiffe_client", api.address]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert json.loads(process.stdout.readline()) == {
            "svids": [str(WEB.id)],
            "bundles": ["cluster.local", "partner.test"],
        }
        assert process.stdout.readline().strip() == digest(WEB)
        api.x509.say(fake.x509(fake.entry(RENEWED, BUNDLE)))
        while (told := process.stdout.readline().strip()) == digest(WEB):
            pass
        assert told == digest(RENEWED)
        assert process.stdin is not None
        process.stdin.close()
    assert process.returncode == 0


def test_the_spiffe_package_reads_tokens_and_refusals_of_the_fake(api: FakeWorkloadAPI) -> None:
    def tokens(request: messages.JWTSVIDRequest, _context: fake.Context) -> messages.JWTSVIDResponse:
        token = ISSUER.token(datetime.now(UTC), sub=str(WEB.id), aud=list(request.audience))
        return messages.JWTSVIDResponse(svids=[messages.JWTSVID(spiffe_id=str(WEB.id), svid=token)])

    def validate(request: messages.ValidateJWTSVIDRequest, context: fake.Context) -> messages.ValidateJWTSVIDResponse:
        if request.svid == "bad":
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "it has ended")
        response = messages.ValidateJWTSVIDResponse(spiffe_id=str(WEB.id))
        response.claims.update({"sub": str(WEB.id), "aud": [request.audience]})
        return response

    api.jwt_svids, api.validate = tokens, validate
    api.jwt_bundles.say(fake.jwt_bundles({"cluster.local": ISSUER}))
    api.x509.refuse(grpc.StatusCode.PERMISSION_DENIED, "no identity issued")
    command = [sys.executable, "-m", "tests.interop.spiffe_tokens", api.address, AUDIENCE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    told = json.loads(done.stdout)
    assert "it has ended (StatusCode.INVALID_ARGUMENT)" in told.pop("bad token")
    assert "no identity issued (StatusCode.PERMISSION_DENIED)" in told.pop("x509")
    assert told == {
        "svid": str(WEB.id),
        "audience": [AUDIENCE],
        "bundles": ["cluster.local"],
        "validated": str(WEB.id),
    }
