"""Which pod a process is in: no text breaks the reading, and none yields what is not in it."""

from __future__ import annotations

import json
from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from istio_auth.errors import MalformedError, NotAuthenticated, NotReady
from istio_auth.strict_json import JSON
from node_agent.attest.pod import Place, place_of
from node_agent.attest.pod_list import PodList

UIDS = st.uuids().map(str)
IDS = st.binary(min_size=32, max_size=32).map(bytes.hex)
NAMES = st.text(st.characters(exclude_characters="/\n\0", exclude_categories=["Cs"]), min_size=1, max_size=12)
PARTS = st.one_of(
    NAMES,
    st.sampled_from(["..", "kubepods", "kubepods.slice", "burstable", "kubepods-burstable.slice", "0::"]),
    UIDS.map("pod{}".format),
    UIDS.map(lambda uid: f"kubepods-burstable-pod{uid.replace('-', '_')}.slice"),
    IDS,
    IDS.map("cri-containerd-{}.scope".format),
)
PATHS = st.lists(PARTS, max_size=8).map(lambda parts: "/" + "/".join(parts))


@given(st.lists(st.one_of(st.text(max_size=80), PATHS.map("0::{}".format)), max_size=5), PATHS)
def test_nothing_is_read_that_is_not_there(lines: list[str], root: str) -> None:
    text = "\n".join(lines)
    with suppress(NotAuthenticated):
        found = place_of(lines, root)
        assert found is None or found.uid or found.container
        assert found is None or not found.uid or found.uid in text.replace("_", "-")
        assert found is None or not found.container or found.container in text


@given(UIDS, IDS, st.sampled_from(["", "burstable", "besteffort"]), PATHS, st.booleans())
def test_whatever_is_below_a_container_changes_nothing(
    uid: str, container: str, kind: str, below: str, cut: bool
) -> None:
    plain = f"{kind}/pod{uid}/{container}".removeprefix("/")
    names = ["kubepods", *([kind] if kind else []), f"pod{uid.replace('-', '_')}"]
    slices = "/".join(f"{'-'.join(names[: end + 1])}.slice" for end in range(len(names)))
    for own in (f"kubepods/{plain}", f"{slices}/cri-containerd-{container}.scope", *([plain] if cut else [])):
        assert place_of([f"0::{'/../..' if cut else ''}/{own}{below}"]) == Place(uid, container)


@given(st.sampled_from(["user.slice", "system.slice/x.service", "docker", "lxc"]), NAMES, PATHS)
def test_nothing_is_believed_of_a_group_that_is_not_the_kubelets(owner: str, name: str, below: str) -> None:
    with suppress(NotAuthenticated):  # something like a pod, where none can be
        assert place_of([f"0::/{owner}/{name}{below}"]) is None


VALUES: st.SearchStrategy[JSON] = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.text(max_size=8)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["metadata", "uid", "namespace", "name", "labels", "spec", "nodeName", "status", "containerStatuses"]
            ),
            inner,
            max_size=5,
        )
    ),
    max_leaves=12,
)


@given(st.lists(VALUES, max_size=4), UIDS)
def test_whatever_a_kubelet_tells_an_entry_that_is_of_no_use_hides_no_other(others: list[JSON], uid: str) -> None:
    good: JSON = {"metadata": {"uid": uid, "namespace": "shop", "name": "web-0"}, "spec": {"nodeName": "node-1"}}
    document: JSON = {"kind": "PodList", "items": [*others, good]}
    listed = PodList.of(json.loads(json.dumps(document)))
    assert "k8s:pod:web-0" in set(map(str, listed.selectors(Place(uid, None), containers=False)))
    with suppress(NotReady):
        listed.selectors(Place("another", "x"), containers=True)


@given(VALUES)
def test_what_is_no_list_of_pods_is_refused(document: JSON) -> None:
    with suppress(MalformedError):
        PodList.of(document)
        raise AssertionError(document)
