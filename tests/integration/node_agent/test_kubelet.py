"""The kubelet is asked over real TLS: only the right one is believed, and it can not make us wait or grow."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path

import pytest

from istio_auth.errors import NotReady
from istio_auth.pem import write_certificates
from node_agent.attest.kubelet import Kubelet
from node_agent.attest.pod import Place
from tests.fakes.authority import FakeAuthority
from tests.fakes.key_server import Answer, compressed, cut_off, dripping, endless, says, silent
from tests.fakes.pod_lister import TOKEN, UID, PodLister, pod

SHORT = timedelta(milliseconds=500)
AMPLE = timedelta(seconds=60)
LISTED = json.dumps({"kind": "PodList", "items": [pod()]})


@pytest.fixture
async def lister(tmp_path: Path) -> AsyncIterator[PodLister]:
    async with PodLister(tmp_path) as lister:
        lister.pods = [pod()]
        yield lister


async def told(lister: PodLister, *, within: timedelta = AMPLE, **changes: object) -> str:
    """A pod's name, as the kubelet tells it."""
    settings = lister.settings(**changes)
    assert settings.kubelet is not None
    pods = await Kubelet(settings, settings.kubelet, timeout=within).pods()
    return next(str(each) for each in pods.selectors(Place(UID, None), containers=False) if each.value[:4] == "pod:")


async def refusal(lister: PodLister, *, within: timedelta = AMPLE, **changes: object) -> str:
    """Why the kubelet can not be asked; nothing of token or answer is in it."""
    with pytest.raises(NotReady) as caught:
        await told(lister, within=within, **changes)
    text = str(caught.value)
    assert TOKEN not in text
    assert "secret" not in text
    return text


async def test_pods_are_told_for_our_token(lister: PodLister) -> None:
    assert await told(lister) == "k8s:pod:web-0"


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (says(LISTED, status=401), "status 401: it does not know our token"),
        (says(LISTED, status=403), "status 403: our account needs `get` on nodes/pods, or on nodes/proxy"),
        (says(LISTED, status=500), "status 500"),
        (says(LISTED, status=302, Location="https://localhost:1/pods"), "status 302"),
        (says("<html>secret</html>"), "no JSON"),
        (says('{"kind":"Status"}'), "no PodList"),
        (says('{"kind":"PodList","kind":"PodList","items":[]}'), "a name occurs twice"),
        (says("[" * 100_000), "no JSON"),
        (compressed(LISTED.encode()), "no JSON"),
        (cut_off(LISTED.encode(), promised=100_000), "can not be asked"),
        (endless(b" " * (1 << 20)), "more than 16777216 bytes"),
    ],
)
async def test_an_answer_without_pods_is_a_reason_to_come_again(lister: PodLister, answer: Answer, reason: str) -> None:
    lister.answer = answer
    assert reason in await refusal(lister)
    lister.answer = None
    assert await told(lister) == "k8s:pod:web-0"


@pytest.mark.parametrize("answer", [silent, dripping(b'{"kind":')])
async def test_a_slow_answer_is_not_waited_for(lister: PodLister, answer: Answer) -> None:
    lister.answer = answer
    assert "does not answer within 0.5 s" in await refusal(lister, within=SHORT)


async def test_somebody_else_in_the_kubelets_place_is_told_nothing(lister: PodLister, tmp_path: Path) -> None:
    ours = tmp_path / "ca.pem"
    ours.write_bytes(write_certificates([FakeAuthority("cluster.test").root]))
    assert "certificate" in await refusal(lister, kubelet_ca=ours)
    assert "not valid for 'node-1'" in await refusal(lister, kubelet_name="node-1")
    assert lister.asked == 0
    assert await told(lister) == "k8s:pod:web-0"


async def test_a_kubelet_can_be_known_by_its_nodes_name_and_by_its_own_certificate(tmp_path: Path) -> None:
    async with PodLister(tmp_path, dns_name="node-1") as lister:
        lister.pods = [pod()]
        assert await told(lister, kubelet_name="node-1") == "k8s:pod:web-0"
        assert "not valid for 'localhost'" in await refusal(lister)
        pinned = tmp_path / "kubelet.crt"
        pinned.write_bytes(write_certificates([lister.certificate]))
        assert await told(lister, kubelet_name="node-1", kubelet_ca=pinned) == "k8s:pod:web-0"


async def test_a_token_that_is_renewed_is_the_one_that_is_shown(lister: PodLister) -> None:
    lister.token.write_text("an-old-one")
    assert "status 401" in await refusal(lister)
    lister.token.write_text(f"{TOKEN}\n")
    assert await told(lister) == "k8s:pod:web-0"


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "can not read"), ("", "holds no token"), ("two words", "holds no token")]
)
async def test_without_a_token_it_is_said_which_file_has_none(
    lister: PodLister, content: str | None, reason: str
) -> None:
    lister.token.unlink() if content is None else lister.token.write_text(content)
    text = await refusal(lister)
    assert reason in text
    assert str(lister.token) in text


@pytest.mark.parametrize("content", ["no certificates", ""])
async def test_without_a_ca_nobody_is_asked(lister: PodLister, content: str) -> None:
    lister.ca.write_text(content)
    assert "kubelet-ca.pem holds no certificates" in await refusal(lister)
    assert lister.asked == 0


async def test_a_kubelet_that_is_away_is_a_reason_to_come_again(lister: PodLister) -> None:
    await lister.stop()
    text = await refusal(lister)
    assert f"the kubelet at localhost:{lister.port} can not be asked" in text
    await lister.start()
    assert await told(lister) == "k8s:pod:web-0"
