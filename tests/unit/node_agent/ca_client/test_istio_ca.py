"""A CA that has Istio's contract alone: asked with the token of the moment, and told apart why it says no."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
from google.protobuf.message import Message

from istio_auth.errors import ConfigurationError, NotAuthenticated, NotReady
from istio_auth.keys import new_private_key
from istio_auth.pem import write_certificates
from istio_auth.proto.istio_ca_pb2 import IstioCertificateRequest, IstioCertificateResponse
from node_agent.ca_client.csr import request_for
from node_agent.ca_client.istio_ca import IstioCASettings, TokenClient, TokenStanding
from node_agent.ca_client.port import NotOffered
from node_agent.config import Config
from node_agent.csi.settings import CSISettings
from tests.fakes.authority import FakeAuthority
from tests.unit.node_agent.ca_client.test_clients import DB, SECONDS, WEB, Wire, failing

NAMED = IstioCASettings(server_name="istiod.istio-system.svc", token_file=Path("/token"))
FILE = Path("/registrations.toml")


class Asking:
    """An agent with a token file, before a CA that answers as the test says."""

    def __init__(self, wire: Wire, folder: Path) -> None:
        self.wire, self.token = wire, folder / "token"
        self.standing = TokenStanding(self.token)
        self.client = TokenClient(wire, self.standing, timeout=SECONDS, metadata=NAMED.metadata)
        self.requests = [request_for(each, new_private_key(), ttl=timedelta(hours=1)) for each in (WEB, DB)]


async def test_each_call_carries_the_token_that_is_in_the_file_then_and_names_the_cluster(
    authority: FakeAuthority, tmp_path: Path
) -> None:
    chain = authority.chain()
    elements = [write_certificates(chain).decode(), authority.bundle().to_pem().decode()]
    asking = Asking(Wire(lambda _: IstioCertificateResponse(cert_chain=elements)), tmp_path)
    for token in ("first", "second"):
        asking.token.write_text(f"{token}\n")
        assert await asking.client.sign(asking.requests) == [chain] * 2
    cluster = ("clusterid", "Kubernetes")
    sent = [(cluster, ("authorization", f"Bearer {token}")) for token in ("first", "second") for _ in range(2)]
    assert asking.wire.metadata == sent
    assert asking.standing.problem is None


async def test_without_a_token_nothing_is_asked_and_that_is_told(tmp_path: Path) -> None:
    asking = Asking(Wire(failing(AssertionError())), tmp_path)  # type: ignore[arg-type]  # never asked
    with pytest.raises(NotReady, match="there is no service-account token"):
        await asking.client.sign(asking.requests)
    assert "there is no service-account token" in str(asking.standing.problem)
    assert asking.wire.requests == []


async def test_a_token_that_is_not_taken_is_nobodys_refusal(tmp_path: Path) -> None:
    asking = Asking(Wire(failing(NotAuthenticated("UNAUTHENTICATED: request authenticate failure"))), tmp_path)
    asking.token.write_text("token")
    with pytest.raises(NotAuthenticated, match="does not take our service-account token"):
        await asking.client.sign(asking.requests)
    assert "does not take" in str(asking.standing.problem)


async def test_a_workload_that_we_may_not_ask_for_is_refused_alone_and_what_istiod_wants_is_said(
    authority: FakeAuthority, tmp_path: Path
) -> None:
    chain = authority.chain()
    elements = [write_certificates(chain).decode(), authority.bundle().to_pem().decode()]

    def answer(request: Message) -> Message:
        assert isinstance(request, IstioCertificateRequest)
        if request.metadata["ImpersonatedIdentity"] == str(DB):
            raise NotAuthenticated("request impersonation authentication failure")
        return IstioCertificateResponse(cert_chain=elements)

    asking = Asking(Wire(answer), tmp_path)
    asking.token.write_text("token")
    served, refused = await asking.client.sign(asking.requests)
    assert served == chain
    assert isinstance(refused, NotAuthenticated)
    assert "CA_TRUSTED_NODE_ACCOUNTS" in str(refused)
    assert asking.standing.problem is None


async def test_it_has_no_stream_and_no_way_back(tmp_path: Path) -> None:
    asking = Asking(Wire(failing(NotReady("away"))), tmp_path)
    with pytest.raises(NotOffered):
        await asking.client.challenge(WEB)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"istio_ca": NAMED}, "go together"),
        ({"istio_ca": replace(NAMED, token_file=None), "registrations": FILE}, "go together"),
        ({"istio_ca": replace(NAMED, token_file=None)}, "nobody to serve"),
        ({"istio_ca": NAMED, "registrations": FILE, "mounted": Path("/etc/certs")}, "asks no CA"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        Config(name="node-1", **changes)  # type: ignore[arg-type]  # fields by name


def test_workloads_or_volumes_are_reason_enough_to_run() -> None:
    assert Config(name="node-1", istio_ca=NAMED, registrations=FILE)
    volumes = CSISettings(endpoint=Path("/run/csi.sock"))
    assert Config(name="node-1", istio_ca=replace(NAMED, token_file=None), csi=volumes)


@pytest.mark.parametrize("given", [{"server_name": ""}, {"token_file": Path("/token")}])
def test_a_token_is_shown_to_nobody_who_is_not_named(given: dict[str, object]) -> None:
    with pytest.raises(ConfigurationError, match="server_name"):
        IstioCASettings(**given)  # type: ignore[arg-type]  # fields by name
