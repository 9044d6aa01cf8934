"""Volumes with files, over a kubelet's own calls: published, renewed, published again, unpublished, found again."""

from __future__ import annotations

import asyncio
import stat
import threading
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from istio_auth.errors import ConflictError, IstioAuthError, MalformedError, NotReady
from istio_auth.keys import same_key
from istio_auth.pem import read_certificates
from istio_auth.proto import csi_pb2 as csi
from istio_auth.sources.svid_files import read_together
from istio_auth.spiffe_id import SpiffeID
from istio_auth.svid import X509SVID
from istio_auth.x509_source import X509Context
from node_agent.csi.attributes import FilesForm
from node_agent.csi.folder import VolumeFolder
from node_agent.csi.pod_token import Token
from tests.fakes.ca import CAServer
from tests.fakes.certificate_client import Fault
from tests.fakes.clock import FakeClock
from tests.fakes.kubelet import OWN, Kubelet, Pod, tokens
from tests.fakes.mounts import LinkMounts
from tests.fakes.running_agent import RunningAgent
from tests.fakes.waiting import until, until_async
from tests.integration.csi.conftest import TOKEN, WEB

FILES = {"form": "files"}
POD = Pod(attributes=FILES)


def svid_at(target: Path) -> X509SVID:
    """What a careful reader finds there, who sees no half of a change."""
    chain, key = read_together({target / "cert-chain.pem": 1 << 20, target / "key.pem": 1 << 20}).values()
    assert isinstance(chain, bytes)
    assert isinstance(key, bytes)
    return X509SVID.parse(chain, key)


def kept(agent: RunningAgent) -> list[Path]:
    """What is there of volumes, beside nothing."""
    return sorted((agent.folder / "csi").iterdir())


def nothing_is_left(agent: RunningAgent, kubelet: Kubelet, pod: Pod = POD) -> bool:
    target = kubelet.target(pod)
    return not kept(agent) and not target.is_symlink() and not target.exists()


async def published(kubelet: Kubelet) -> bool:
    """Publish as a kubelet does that comes again while another call for the volume is under way."""
    try:
        await kubelet.publish(POD, TOKEN)
    except ConflictError:
        return False
    return True


def pass_time(agent: RunningAgent, duration: timedelta) -> None:
    agent.pass_time(duration)
    assert agent.agent.csi is not None
    for volume in agent.agent.csi.volumes.all():
        volume.look_again()


async def test_a_published_volume_holds_the_certificate_of_the_pods_service_account(
    agent: RunningAgent, kubelet: Kubelet, server: CAServer
) -> None:
    await kubelet.publish(POD, TOKEN)
    target = kubelet.target(POD)
    found = svid_at(target)
    assert found.id == WEB
    assert read_certificates((target / "root-cert.pem").read_bytes()) == (server.ca.root.certificate,)
    assert (target / "..data").is_symlink()
    await kubelet.unpublish(POD)
    assert nothing_is_left(agent, kubelet)
    await kubelet.unpublish(POD)


async def test_files_are_written_as_the_pod_asks(agent: RunningAgent, kubelet: Kubelet) -> None:
    attributes = FILES | {"layout": "tls", "keyEncoding": "PKCS1", "combined": "all.pem", "keyMode": "0440"}
    pod = Pod(attributes=attributes, fs_group=str(agent.folder.stat().st_gid))
    await kubelet.publish(pod, TOKEN, in_secrets=False)
    target = kubelet.target(pod)
    assert {path.name for path in target.iterdir() if path.name[0] != "."} == {
        "tls.crt",
        "tls.key",
        "ca.crt",
        "all.pem",
    }
    key = (target / "tls.key").read_bytes()
    assert key.startswith(b"-----BEGIN EC PRIVATE KEY-----")
    assert (target / "all.pem").read_bytes() == key + (target / "tls.crt").read_bytes()
    assert {stat.S_IMODE((target / name).stat().st_mode) for name in ("tls.key", "all.pem")} == {0o440}
    loaded = load_pem_private_key(key, None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    assert same_key(
        loaded.public_key(), X509SVID.parse((target / "tls.crt").read_bytes(), key).private_key.public_key()
    )


async def test_a_republish_takes_the_new_token_and_leaves_the_rest_as_it_is(
    agent: RunningAgent, kubelet: Kubelet, server: CAServer, mounts: LinkMounts
) -> None:
    await kubelet.publish(POD, TOKEN)
    before = svid_at(kubelet.target(POD))
    await kubelet.publish(POD, TOKEN)
    assert svid_at(kubelet.target(POD)).leaf == before.leaf
    assert (server.ca.signed, mounts.mounted) == (1, 1)
    with pytest.raises(MalformedError, match="published already, and with another layout"):
        await kubelet.publish(Pod(attributes=FILES | {"layout": "tls"}), TOKEN)
    assert svid_at(kubelet.target(POD)).leaf == before.leaf


async def test_a_certificate_is_renewed_with_the_token_of_the_latest_republish(
    agent: RunningAgent, kubelet: Kubelet, server: CAServer, clock: FakeClock
) -> None:
    await kubelet.publish(POD, TOKEN)
    before = svid_at(kubelet.target(POD))
    kubelet.ends = clock.now() + timedelta(hours=2)
    del server.ca.pod_tokens[TOKEN]
    server.ca.pod_tokens["the-next-token"] = WEB
    await kubelet.publish(POD, "the-next-token")
    pass_time(agent, timedelta(minutes=40))
    await until(lambda: svid_at(kubelet.target(POD)).leaf != before.leaf)
    assert svid_at(kubelet.target(POD)).id == WEB


async def test_without_a_live_token_renewal_waits_for_the_next_republish(
    agent: RunningAgent, kubelet: Kubelet, clock: FakeClock, server: CAServer
) -> None:
    kubelet.ends = clock.now() + timedelta(minutes=10)
    await kubelet.publish(POD, TOKEN)
    before = svid_at(kubelet.target(POD))
    pass_time(agent, timedelta(minutes=40))
    assert agent.agent.csi is not None
    assert "waits for the kubelet to bring a token" in str(agent.agent.csi.document())
    with pytest.raises(NotReady, match="the pod's token ended"):
        await kubelet.publish(POD, TOKEN)
    assert svid_at(kubelet.target(POD)).leaf == before.leaf
    assert server.ca.signed == 1
    kubelet.ends = clock.now() + timedelta(minutes=10)
    await kubelet.publish(POD, TOKEN)
    await until(lambda: svid_at(kubelet.target(POD)).leaf != before.leaf)


async def test_an_unpublish_waits_for_a_write_that_has_begun_and_leaves_nothing(
    agent: RunningAgent, kubelet: Kubelet, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubelet.ends = clock.now() + timedelta(hours=2)
    await kubelet.publish(POD, TOKEN)
    writing, go_on, write = threading.Event(), threading.Event(), VolumeFolder.write_files

    def slow(folder: VolumeFolder, context: X509Context, form: FilesForm) -> None:
        writing.set()
        go_on.wait(60)
        write(folder, context, form)

    monkeypatch.setattr(VolumeFolder, "write_files", slow)
    pass_time(agent, timedelta(minutes=40))
    await until(writing.is_set)
    unpublishing = asyncio.create_task(kubelet.unpublish(POD))
    assert agent.agent.csi is not None
    csi = agent.agent.csi
    await until(lambda: not list(csi.volumes.all()))
    assert kept(agent)
    go_on.set()
    await unpublishing
    assert nothing_is_left(agent, kubelet)


async def test_a_disk_that_is_full_at_a_renewal_is_told_and_tried_again(
    agent: RunningAgent, kubelet: Kubelet, clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubelet.ends = clock.now() + timedelta(hours=2)
    await kubelet.publish(POD, TOKEN)
    before, full, write = svid_at(kubelet.target(POD)), threading.Event(), VolumeFolder.write_files
    full.set()

    def failing(folder: VolumeFolder, context: X509Context, form: FilesForm) -> None:
        if full.is_set():
            raise NotReady("the disk is full")
        write(folder, context, form)

    monkeypatch.setattr(VolumeFolder, "write_files", failing)
    assert agent.agent.csi is not None
    (volume,) = agent.agent.csi.volumes.all()
    pass_time(agent, timedelta(minutes=40))
    await until(lambda: volume.trouble == "the disk is full")
    full.clear()
    await until(lambda: svid_at(kubelet.target(POD)).leaf != before.leaf)
    await until(lambda: volume.what_is_wrong() is None)


async def test_a_token_that_the_ca_refuses_gives_nothing_and_leaves_nothing(
    agent: RunningAgent, kubelet: Kubelet
) -> None:
    with pytest.raises(NotReady, match=r"there is no certificate for the pod: .*UNAUTHENTICATED"):
        await kubelet.publish(POD, "a-token-of-nobody")
    assert nothing_is_left(agent, kubelet)
    await kubelet.publish(POD, TOKEN)
    assert svid_at(kubelet.target(POD)).id == WEB


async def test_a_token_of_another_pod_gives_no_certificate_of_the_name_that_was_asked_for(
    agent: RunningAgent, kubelet: Kubelet, server: CAServer
) -> None:
    server.ca.pod_tokens["token-of-another"] = SpiffeID.parse("spiffe://cluster.local/ns/shop/sa/other")
    with pytest.raises(NotReady, match=r"refused \(name\): it names spiffe://cluster.local/ns/shop/sa/other"):
        await kubelet.publish(POD, "token-of-another")
    assert nothing_is_left(agent, kubelet)


async def test_an_answer_that_does_not_chain_to_our_bundle_is_not_mounted(
    agent: RunningAgent, kubelet: Kubelet, server: CAServer
) -> None:
    server.ca.fault = Fault.UNKNOWN_ROOT
    with pytest.raises(NotReady, match="does not chain"):
        await kubelet.publish(POD, TOKEN)
    assert nothing_is_left(agent, kubelet)


async def test_while_the_ca_is_away_a_publish_waits_as_long_as_the_kubelet_does_and_leaves_nothing(
    agent: RunningAgent, kubelet: Kubelet, server: CAServer
) -> None:
    await server.away()
    with pytest.raises(NotReady):  # the plugin's word, or where half a second is too short for that, the kubelet's own
        await kubelet.publish(POD, TOKEN, within=timedelta(seconds=2))
    await until(lambda: nothing_is_left(agent, kubelet))
    publishing = asyncio.create_task(until_async(lambda: published(kubelet)))
    await until(lambda: kept(agent))
    await server.back()
    await publishing
    assert svid_at(kubelet.target(POD)).id == WEB


async def test_a_publish_that_takes_too_long_is_told_why_and_leaves_nothing(
    agent: RunningAgent, kubelet: Kubelet, server: CAServer
) -> None:
    await agent.stop()
    agent.config = replace(agent.config, csi=replace(agent.config.csi, publish_timeout=timedelta(seconds=1)))
    await agent.start()
    await server.away()
    with pytest.raises(NotReady, match=r"there is no certificate for the pod: .*, for 1 s"):
        await kubelet.publish(POD, TOKEN)
    assert nothing_is_left(agent, kubelet)


async def test_a_failed_mount_is_undone(agent: RunningAgent, kubelet: Kubelet, mounts: LinkMounts) -> None:
    mounts.failure = NotReady("no space for mounts")
    with pytest.raises(NotReady):
        await kubelet.publish(POD, TOKEN)
    assert nothing_is_left(agent, kubelet)
    mounts.failure = None
    await kubelet.publish(POD, TOKEN)
    assert svid_at(kubelet.target(POD)).id == WEB


async def test_a_second_call_for_a_volume_is_told_to_come_again_and_other_pods_do_not_wait(
    agent: RunningAgent, kubelet: Kubelet, server: CAServer
) -> None:
    server.hang.clear()
    publishing = asyncio.create_task(kubelet.publish(POD, TOKEN))
    await until(lambda: kept(agent))
    with pytest.raises(ConflictError, match="another call for this volume is under way"):
        await kubelet.publish(POD, TOKEN)
    with pytest.raises(MalformedError, match="colour"):
        await kubelet.publish(Pod("other", attributes={"colour": "red"}), TOKEN)
    server.hang.set()
    await publishing
    assert svid_at(kubelet.target(POD)).id == WEB


async def test_what_a_kubelet_gave_up_waiting_for_goes_on_and_is_found_by_its_next_try(
    agent: RunningAgent, kubelet: Kubelet, server: CAServer
) -> None:
    server.hang.clear()
    publishing = asyncio.create_task(kubelet.publish(POD, TOKEN))
    await until(lambda: kept(agent))
    publishing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await publishing
    server.hang.set()
    await until(lambda: kubelet.target(POD).exists())
    await until_async(lambda: published(kubelet))
    assert server.ca.signed == 1


async def test_why_it_failed_when_a_kubelet_had_given_up_waiting_is_in_the_log(
    agent: RunningAgent, kubelet: Kubelet, server: CAServer, mounts: LinkMounts, clock: FakeClock
) -> None:
    await kubelet.publish(POD, TOKEN)
    assert agent.agent.csi is not None
    volumes = agent.agent.csi.volumes
    (volume,) = volumes.all()
    await kubelet.unpublish(POD)
    server.hang.clear()
    mounts.failure = NotReady("no space for mounts")
    token = Token(TOKEN, clock.now() + timedelta(hours=1))
    publishing = asyncio.create_task(volumes.publish(volume.publication, token, within=60))
    await until(lambda: kept(agent))
    with structlog.testing.capture_logs() as lines:
        publishing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await publishing
        server.hang.set()
        await until(lambda: any("no space for mounts" in str(line.get("reason")) for line in lines))
    mounts.failure = None
    await until_async(lambda: published(kubelet))


async def test_a_hundred_pods_at_once_each_get_a_key_of_their_own(agent: RunningAgent, kubelet: Kubelet) -> None:
    pods = [Pod(f"web-{number}", attributes=FILES) for number in range(100)]
    await asyncio.gather(*(kubelet.publish(pod, TOKEN, within=timedelta(seconds=60)) for pod in pods))
    found = [svid_at(kubelet.target(pod)) for pod in pods]
    assert {each.id for each in found} == {WEB}
    assert len({each.key_pem() for each in found}) == 100
    assert agent.agent.csi is not None
    dues = {volume.held.due for volume in agent.agent.csi.volumes.all() if volume.held}
    assert max(dues) - min(dues) > timedelta(minutes=3)
    await asyncio.gather(*(kubelet.unpublish(pod) for pod in pods))
    assert not kept(agent)
    assert not list(agent.agent.csi.volumes.all())


async def test_after_a_restart_volumes_are_served_from_what_was_kept_and_renewed_with_the_next_token(
    agent: RunningAgent, kubelet: Kubelet, server: CAServer, mounts: LinkMounts
) -> None:
    await kubelet.publish(POD, TOKEN)
    before = svid_at(kubelet.target(POD))
    await agent.stop()
    await server.away()
    await agent.start()
    assert svid_at(kubelet.target(POD)).leaf == before.leaf
    assert agent.agent.csi is not None
    (volume,) = agent.agent.csi.volumes.all()
    assert volume.held is not None
    assert volume.held.svid.leaf == before.leaf
    await server.back()
    pass_time(agent, timedelta(minutes=40))
    await kubelet.publish(POD, TOKEN)
    await until(lambda: svid_at(kubelet.target(POD)).leaf != before.leaf)
    assert mounts.mounted == 1
    await kubelet.unpublish(POD)
    assert nothing_is_left(agent, kubelet)


async def test_a_restart_undoes_what_was_published_by_half_and_one_bad_record_stops_no_other(
    agent: RunningAgent, kubelet: Kubelet
) -> None:
    good, half, bad = (Pod(name, attributes=FILES) for name in ("good", "half", "bad"))
    for pod in (good, half, bad):
        await kubelet.publish(pod, TOKEN)
    await agent.stop()
    kubelet.target(half).unlink()  # as if it had been killed before the mount
    (kubelet.target(bad).readlink().parent / "record.json").write_text("{")
    (agent.folder / "csi" / ("0" * 20)).mkdir()  # as if it had been killed before the record
    await agent.start()
    assert agent.agent.csi is not None
    assert [volume.publication.pod for volume in agent.agent.csi.volumes.all()] == ["shop/good"]
    assert len(kept(agent)) == 2
    for pod in (good, half, bad):
        await kubelet.publish(pod, TOKEN)
        assert svid_at(kubelet.target(pod)).id == WEB
        await kubelet.unpublish(pod)
    assert not kept(agent)


async def test_a_pod_whose_record_is_bad_keeps_its_files_until_the_ca_is_there_to_publish_anew(
    agent: RunningAgent, kubelet: Kubelet, server: CAServer
) -> None:
    await kubelet.publish(POD, TOKEN)
    target, before = kubelet.target(POD), svid_at(kubelet.target(POD))
    (target.readlink().parent / "record.json").write_text("{")
    await agent.stop()
    await server.away()
    await agent.start()
    with pytest.raises(NotReady):
        await kubelet.publish(POD, TOKEN, within=timedelta(seconds=2))
    assert svid_at(target).leaf == before.leaf
    await server.back()
    await until_async(lambda: published(kubelet))
    assert svid_at(target).leaf != before.leaf
    await kubelet.unpublish(POD)
    assert nothing_is_left(agent, kubelet)


async def test_no_token_and_no_key_is_in_a_record_and_nobody_else_may_enter(
    agent: RunningAgent, kubelet: Kubelet
) -> None:
    await kubelet.publish(POD, TOKEN)
    (path,) = kept(agent)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700
    for file in path.rglob("*"):
        if file.is_file():
            assert TOKEN not in file.read_text()
    record = (path / "record.json").read_text()
    assert "PRIVATE KEY" not in record
    assert stat.S_IMODE((path / "svid.pem").stat().st_mode) == 0o600


async def test_the_token_is_never_logged(
    agent: RunningAgent, kubelet: Kubelet, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    await kubelet.publish(POD, TOKEN)
    request = kubelet.request(POD, None)
    request.volume_context[f"{OWN}serviceAccount.tokens"] = tokens(TOKEN, kubelet.ends, "another")
    with pytest.raises(MalformedError, match="no token for the audience"):
        await kubelet.call("Node/NodePublishVolume", request, csi.NodePublishVolumeResponse)
    with pytest.raises(IstioAuthError):
        await kubelet.publish(Pod("x", attributes=FILES), f"{TOKEN}-wrong")
    said = "".join(capfd.readouterr()) + caplog.text
    assert "a volume is published" in said
    assert TOKEN not in said
