"""Which pod a process is in, by control groups as real machines show them, and by those that only look like it."""

from __future__ import annotations

import pytest

from istio_auth.errors import NotAuthenticated
from node_agent.attest.pod import Place, place_of

UID = "2c48913c-b29f-11e7-9350-020968147796"
ESCAPED = UID.replace("-", "_")
OTHER = "a2830d0d-b0f0-4ff0-81b5-0ee4e299cf80"
ID = "9bca8d63d5fa610783847915bcff0ecac1273e5b4bed3f6fa1b07350e0135961"
NODE = "93529524695bb00d91c1f6dba692ea8d3550c3b94fb2463af7bc9ec82f992d26"  # a container that is a node
STATIC = "5d4e2a6f1c9b8a7f6e5d4c3b2a190807"  # of a pod that the kubelet read from a file


def place(*paths: str, root: str = "/") -> Place | None:
    return place_of([f"{number}:cpu:{path}" for number, path in enumerate(paths)], root)


@pytest.mark.parametrize(
    "path",
    [
        f"/kubepods/burstable/pod{UID}/{ID}",  # containerd and docker, cgroupfs
        f"/kubepods/besteffort/pod{UID}/{ID}",
        f"/kubepods/pod{UID}/{ID}",  # guaranteed
        f"/kubepods/burstable/pod{UID}/crio-{ID}",  # CRI-O, cgroupfs
        f"/kubepods.slice/kubepods-pod{ESCAPED}.slice/cri-containerd-{ID}.scope",
        f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{ESCAPED}.slice/cri-containerd-{ID}.scope",
        f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{ESCAPED}.slice/crio-{ID}.scope",
        f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{UID}.slice/docker-{ID}.scope",
        f"/kubepods-besteffort-pod{ESCAPED}.slice:cri-containerd:{ID}",  # the runtime without systemd driver
        f"/kubepods-burstable-pod{ESCAPED}.slice:crio:{ID}",
        f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{ESCAPED}.slice/crio-{ID}.scope/container",
        f"/kubepods/burstable/pod{UID}/{ID}/init.scope",  # systemd in the container
        f"/kubepods/burstable/pod{UID}/{ID}/docker/{NODE}",  # a container in the container
    ],
)
def test_the_groups_of_the_kubelet_and_the_runtime_name_pod_and_container(path: str) -> None:
    assert place(path) == Place(UID, ID)


@pytest.mark.parametrize(
    "path",
    [
        f"/../../pod{UID}/{ID}",
        f"/../../../burstable/pod{UID}/{ID}",
        f"/../../../../kubepods/burstable/pod{UID}/{ID}",
        f"/../../kubepods-besteffort-pod{ESCAPED}.slice/cri-containerd-{ID}.scope",
        f"/../../../kubepods-burstable.slice/kubepods-burstable-pod{ESCAPED}.slice/crio-{ID}.scope",
        f"/../../../../kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{ESCAPED}.slice/crio-{ID}.scope",
        f"/../kubepods-besteffort-pod{ESCAPED}.slice:cri-containerd:{ID}",
    ],
)
def test_an_agent_in_a_control_group_namespace_of_its_own_sees_the_paths_from_there(path: str) -> None:
    assert place(path) == Place(UID, ID)


@pytest.mark.parametrize("path", [f"/../{ID}", f"/../cri-containerd-{ID}.scope", f"/../crio-{ID}.scope/container"])
def test_of_a_container_beside_the_agents_own_only_that_is_told(path: str) -> None:
    assert place(path) == Place(None, ID)


@pytest.mark.parametrize(
    ("root", "path"),
    [
        ("/kubelet", f"/kubelet/kubepods/burstable/pod{UID}/{ID}"),
        ("/kubelet/", f"/kubelet/kubepods/burstable/pod{UID}/{ID}"),
        (f"/docker/{NODE}", f"/docker/{NODE}/kubepods/besteffort/pod{UID}/{ID}"),
        (
            "/kubelet.slice",
            f"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{ESCAPED}.slice/cri-containerd-{ID}.scope",
        ),
        (
            "/kubelet.slice",
            f"/../../kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{ESCAPED}.slice/crio-{ID}.scope",
        ),
        ("/a/kubelet", f"/../../kubelet/kubepods/burstable/pod{UID}/{ID}"),
        (
            "/system.slice/containerd.service",
            f"/system.slice/containerd.service/kubepods-burstable-pod{ESCAPED}.slice:cri-containerd:{ID}",
        ),
    ],
)
def test_where_the_kubelets_groups_begin_can_be_told(root: str, path: str) -> None:
    assert place(path, root=root) == Place(UID, ID)
    if not path.startswith("/.."):
        with pytest.raises(NotAuthenticated, match=r"kubernetes\.cgroup_root"):
            place(path, root="/elsewhere")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/",
        "/..",
        "/../..",
        "/user.slice/user-1000.slice/session-1.scope",
        "/system.slice/ssh.service",
        f"/system.slice/docker-{ID}.scope",  # a container of nobody's pod
        f"/docker/{ID}",
        "/kubepods",
        "/kubepods/burstable",
        "/kubepods.slice/kubepods-burstable.slice",
        "/../../system.slice/ssh.service",
        f"/pod{UID}/{ID}",
    ],
)
def test_who_is_in_no_pod_is_in_none(path: str) -> None:
    assert place(path) is None


@pytest.mark.parametrize(
    "path",
    [
        f"/kubepods/burstable/pod{UID}",
        f"/kubepods/burstable/pod{UID}/crio-conmon-{ID}",  # which watches the container
        f"/kubepods.slice/kubepods-pod{ESCAPED}.slice/crio-conmon-{ID}.scope",
        f"/kubepods/burstable/pod{UID}/{ID[:12]}",
        f"/kubepods/burstable/pod{UID}/x/{ID}",
    ],
)
def test_what_belongs_to_a_pod_and_is_no_container_of_it_has_none(path: str) -> None:
    assert place(path) == Place(UID, None)


def test_a_static_pods_uid_has_no_dashes() -> None:
    assert place(f"/kubepods/burstable/pod{STATIC}/{ID}") == Place(STATIC, ID)
    path = f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice/cri-containerd-{ID}.scope"
    assert place(path) == Place(STATIC, ID)


def test_hierarchies_that_are_not_the_kubelets_are_passed_over() -> None:
    path = f"/kubepods/besteffort/pod{UID}/{ID}"
    assert place(path, "/", path, "/system.slice/containerd.service", f"/kubepods/besteffort/pod{UID}") == Place(
        UID, ID
    )


def test_a_process_that_is_in_two_pods_is_in_neither() -> None:
    with pytest.raises(NotAuthenticated, match=f"disagree.*{UID}.*{OTHER}"):
        place(f"/kubepods/pod{UID}/{ID}", f"/kubepods/pod{OTHER}/{ID}")
    with pytest.raises(NotAuthenticated, match="disagree"):
        place(f"/kubepods/pod{UID}/{ID}", f"/kubepods/pod{UID}/{NODE}")


@pytest.mark.parametrize(
    "mine",
    [
        "/user.slice/user-1000.slice/user@1000.service",  # a user's own systemd
        "/system.slice/worker.service",  # a service with Delegate=
        "/machine.slice/libpod-1.scope",
        "/kubelet",  # where no kubelet was said to be
        "/x-kubepods.sliced",
    ],
)
@pytest.mark.parametrize(
    "claim",
    [
        f"/kubepods/burstable/pod{UID}/{ID}",
        f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{ESCAPED}.slice/crio-{ID}.scope",
        f"/kubepods-besteffort-pod{ESCAPED}.slice:cri-containerd:{ID}",
    ],
)
def test_whoever_makes_groups_below_his_own_is_in_no_pod_by_that(mine: str, claim: str) -> None:
    for path in (mine + claim, f"/../..{mine}{claim}"):
        with pytest.raises(NotAuthenticated, match=r"kubernetes\.cgroup_root"):
            place(path)


def test_with_a_wrong_place_for_pods_a_pods_process_is_refused_and_not_taken_for_the_machines_own() -> None:
    path = f"/kubelet/kubepods/burstable/pod{UID}/{ID}"
    assert place(path, root="/kubelet") == Place(UID, ID)
    with pytest.raises(NotAuthenticated, match=r"kubernetes\.cgroup_root"):
        place(path)


@pytest.mark.parametrize(
    "claim",
    [
        f"kubepods/burstable/pod{OTHER}/{NODE}",
        f"x\r0::/kubepods/pod{OTHER}/{NODE}",
        f"kubepods-pod{OTHER}.slice:cri-containerd:{NODE}",
        f"../pod{OTHER}/{NODE}",
    ],
)
@pytest.mark.parametrize(
    "own",
    [
        f"/kubepods/burstable/pod{UID}/{ID}",
        f"/../../pod{UID}/{ID}",
        f"/kubepods.slice/kubepods-pod{ESCAPED}.slice/cri-containerd-{ID}.scope",
        f"/kubepods-pod{ESCAPED}.slice:cri-containerd:{ID}",
    ],
)
def test_a_container_that_makes_groups_below_its_own_stays_in_its_pod(own: str, claim: str) -> None:
    assert place(f"{own}/{claim}") == Place(UID, ID)
