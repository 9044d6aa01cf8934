"""The plugin as the kubelet and the operator see it: registration, identity, who may call, metrics, status."""

from __future__ import annotations

import asyncio
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client import generate_latest

from istio_auth.errors import ConfigurationError, MalformedError, NotReady
from istio_auth.proto import csi_pb2 as csi
from node_agent.admin.commands import status_sections
from node_agent.config import Config
from node_agent.csi.plugin import volumes_folder
from node_agent.csi.settings import CSISettings
from tests.fakes.kubelet import Kubelet, Pod
from tests.fakes.running_agent import RunningAgent
from tests.integration.csi.conftest import TOKEN

CALL_AS_ANOTHER = """
import os, socket, sys
with socket.socket(socket.AF_UNIX) as connection:
    os.setgid(65534)
    os.setuid(int(sys.argv[2]))
    connection.settimeout(60)
    connection.connect(sys.argv[1])
    try:
        said = connection.recv(100)  # a server of HTTP/2 speaks first
    except ConnectionError:
        said = b""
    print("answered" if said else "refused")
"""


def registered(agent: RunningAgent) -> bool | None:
    """Whether the kubelet has taken the driver."""
    assert agent.agent.csi is not None
    return agent.agent.csi.is_registered


async def test_the_kubelet_registers_the_driver_and_again_after_a_restart(
    agent: RunningAgent, kubelet: Kubelet
) -> None:
    for _ in range(2):
        assert registered(agent) is None
        info = await kubelet.register()
        assert (info.type, info.name, info.endpoint) == ("CSIPlugin", "istio-auth", str(kubelet.endpoint))
        assert list(info.supported_versions) == ["1.0.0"]
        assert registered(agent) is True
        await agent.stop()
        assert not list(kubelet.registry.iterdir())
        assert not kubelet.endpoint.exists()
        await agent.start()


async def test_the_driver_tells_what_it_is_and_what_it_can(agent: RunningAgent, kubelet: Kubelet) -> None:
    info = await kubelet.call("Identity/GetPluginInfo", csi.GetPluginInfoRequest(), csi.GetPluginInfoResponse)
    assert (info.name, bool(info.vendor_version)) == ("istio-auth", True)
    await kubelet.call(
        "Identity/GetPluginCapabilities", csi.GetPluginCapabilitiesRequest(), csi.GetPluginCapabilitiesResponse
    )
    probe = await kubelet.call("Identity/Probe", csi.ProbeRequest(), csi.ProbeResponse)
    assert probe.ready.value
    can = await kubelet.call(
        "Node/NodeGetCapabilities", csi.NodeGetCapabilitiesRequest(), csi.NodeGetCapabilitiesResponse
    )
    assert [each.rpc.type for each in can.capabilities] == [csi.NodeServiceCapability.RPC.VOLUME_MOUNT_GROUP]
    node = await kubelet.call("Node/NodeGetInfo", csi.NodeGetInfoRequest(), csi.NodeGetInfoResponse)
    assert node.node_id == "node-1"


async def test_an_unpublish_needs_a_name_and_a_place_of_the_kubelets(agent: RunningAgent, kubelet: Kubelet) -> None:
    for fields, reason in (
        ({"target_path": str(kubelet.target(Pod()))}, "volume_id is missing"),
        ({"volume_id": "csi-1"}, "target_path is missing"),
        ({"volume_id": "csi-1", "target_path": "/etc"}, "is not below"),
    ):
        with pytest.raises(MalformedError, match=reason):
            await kubelet.call(
                "Node/NodeUnpublishVolume", csi.NodeUnpublishVolumeRequest(**fields), csi.NodeUnpublishVolumeResponse
            )


async def test_sockets_for_the_kubelet_are_for_root_and_the_agents_user(agent: RunningAgent, kubelet: Kubelet) -> None:
    for path in (kubelet.endpoint, kubelet.registry / "istio-auth-reg.sock"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def _called_by(uid: int, path: Path) -> str:
    """What a process of this user sees at a socket."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-c", CALL_AS_ANOTHER, str(path), str(uid), stdout=asyncio.subprocess.PIPE
    )
    said, _ = await process.communicate()
    return said.decode().strip()


@pytest.mark.root
async def test_another_user_is_refused_even_where_the_mode_would_let_it_in(
    agent: RunningAgent, kubelet: Kubelet, folder: Path
) -> None:
    folder.chmod(0o755)  # noqa: ASYNC240  # it is at hand
    kubelet.endpoint.chmod(0o666)
    assert await _called_by(65534, kubelet.endpoint) == "refused"
    metrics = generate_latest(agent.agent.metrics.registry).decode()
    assert 'istio_auth_agent_callers_refused_total{socket="csi"} 1.0' in metrics
    assert await _called_by(0, kubelet.endpoint) == "answered"


async def test_publishes_are_counted_by_what_came_of_them(agent: RunningAgent, kubelet: Kubelet) -> None:
    await kubelet.publish(Pod(), TOKEN)
    await kubelet.publish(Pod(), TOKEN)
    with pytest.raises(MalformedError):
        await kubelet.publish(Pod("x", attributes={"colour": "red"}), TOKEN)
    with pytest.raises(NotReady):
        await kubelet.publish(Pod("x"), "a-token-of-nobody")
    text = generate_latest(agent.agent.metrics.registry).decode()
    for outcome in ("published", "republished", "refused", "unavailable"):
        assert f'istio_auth_agent_csi_publishes_total{{outcome="{outcome}"}} 1.0' in text
        assert f'istio_auth_agent_csi_publish_seconds_count{{outcome="{outcome}"}} 1.0' in text
    assert "istio_auth_agent_csi_volumes 1.0" in text
    assert "istio_auth_agent_csi_volumes_without_svid 0.0" in text


async def test_status_shows_the_driver_and_each_volume(agent: RunningAgent, kubelet: Kubelet) -> None:
    await kubelet.register()
    await kubelet.publish(Pod(), TOKEN)
    found = agent.agent._status(agent.daemon).document()
    assert agent.agent.csi is not None
    (volume,) = agent.agent.csi.volumes.all()
    assert volume.held is not None
    assert found["csi"] == {
        "driver": "istio-auth",
        "registered": True,
        "trouble": None,
        "volumes": [
            {
                "volume": "csi-shop-web-0",
                "pod": "shop/web-0",
                "pod_uid": "uid-of-web-0",
                "form": "sockets",
                "spiffe_id": "spiffe://cluster.local/ns/shop/sa/web",
                "not_after": "2030-01-01T13:00:00Z",
                "renewal": f"{volume.held.due:%FT%TZ}",
                "token_ends": "2030-01-01T13:00:00Z",
                "trouble": None,
            }
        ],
    }
    assert TOKEN not in str(found)
    sections = {section.title: section for section in status_sections(found)}
    assert {"CSI driver istio-auth", "Volume of shop/web-0"} <= sections.keys()


def test_volumes_on_a_disk_are_refused_unless_that_is_accepted(tmp_path: Path) -> None:
    csi_settings = CSISettings(endpoint=tmp_path / "csi.sock", volumes_folder=Path("/var/lib/csi-of-a-test"))
    config = Config(csi=csi_settings)
    with pytest.raises(ConfigurationError, match="keys of pods would reach a disk"):
        volumes_folder(config)
    assert volumes_folder(replace(config, allow_disk_cache=True)) == Path("/var/lib/csi-of-a-test")
    long = replace(csi_settings, volumes_folder=Path("/" + "x" * 60))
    with pytest.raises(ConfigurationError, match="too long for a Unix socket"):
        volumes_folder(replace(config, allow_disk_cache=True, csi=long))


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [
        ({"driver": "Istio Auth"}, "no name of a CSI driver"),
        ({"audience": ""}, "csi.audience is empty"),
        ({"kubelet_folder": Path("kubelet")}, "no absolute path"),
    ],
)
def test_settings_that_can_not_be_are_refused(wrong: dict[str, object], reason: str) -> None:
    with pytest.raises(ConfigurationError, match=reason):
        CSISettings(**wrong)  # type: ignore[arg-type]  # fields, by name


def test_an_agent_that_asks_no_ca_has_no_volumes(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"mounted and csi\.endpoint exclude each other"):
        Config(mounted=tmp_path, csi=CSISettings(endpoint=tmp_path / "csi.sock"))
