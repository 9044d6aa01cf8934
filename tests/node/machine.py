"""A machine of its own for one run of the tests: namespaces that the kernel ends with it, and all that was in them.

Processes, mounts and network interfaces live in namespaces that vanish with the first process in them, however that
ends. What is not in a namespace is either seen through a mask (the kernel's settings, which a kubelet changes), or
removed from outside afterwards (control groups).
"""

from __future__ import annotations

import fcntl
import os
import socket
import struct
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

CGROUP = "ISTIO_AUTH_TEST_CGROUP"  # tells those inside where they are, and the name of their control group
ADDRESS = "192.0.2.1"  # of the machine; of those that nobody has (RFC 5737)
SCRATCH = Path("/mnt")
KUBELET = Path("/var/lib/kubelet")
_CGROUPS = Path("/sys/fs/cgroup")
_PREFIX = "istio-auth-node-"
_NAMESPACES = ("--mount", "--mount-proc", "--propagation", "private", "--net", "--pid", "--ipc", "--uts")
_SETTINGS = {  # as a kubelet wants them
    "vm/overcommit_memory": "1",
    "vm/panic_on_oom": "0",
    "kernel/panic": "10",
    "kernel/panic_on_oops": "1",
    "kernel/keys/root_maxkeys": "1000000",
    "kernel/keys/root_maxbytes": "25000000",
}
_SIOCSIFADDR, _SIOCGIFFLAGS, _SIOCSIFFLAGS, _IFF_UP = 0x8916, 0x8913, 0x8914, 1  # <linux/sockios.h>, <linux/if.h>


def run(command: Sequence[object]) -> int:
    """Run a command on a machine of its own, as root; its exit code. Nothing of it is left afterwards."""
    name = f"{_PREFIX}{os.getpid()}"
    _remove_cgroups(of_the_dead=True)
    inside = (sys.executable, "-m", "tests.node.machine", *map(str, command))
    # The one ends when we do, the other when that one does, and all the rest with it.
    alone = ("setpriv", "--pdeathsig", "KILL", "unshare", "--kill-child", *_NAMESPACES)
    try:
        return subprocess.run((*alone, *inside), env=os.environ | {CGROUP: name}, check=False).returncode
    finally:
        _remove_cgroups(name)


def cgroup() -> str | None:
    """The name of the control group of this machine, made if need be; None if we are on no machine of our own."""
    if (name := os.environ.get(CGROUP)) is None:
        return None
    for hierarchy in _hierarchies():
        (hierarchy / name).mkdir(exist_ok=True)
        for setting in ("cpuset.cpus", "cpuset.mems"):  # of version 1, where children start without
            if (here := hierarchy / name / setting).exists() and not here.read_text().strip():
                here.write_text((hierarchy / setting).read_text())
    return name


def main() -> int:
    """Furnish the machine, and become the command that is to run on it."""
    _mount_memory(SCRATCH)
    _mount_memory(Path("/run"))
    os.environ |= {"TMPDIR": str(SCRATCH), "KUBECACHEDIR": str(SCRATCH / "kubectl")}
    for folder in ("/var", "/opt"):
        _let_changes_be_ours(Path(folder))
    KUBELET.mkdir(exist_ok=True)
    _mount_memory(KUBELET)
    for name, value in _SETTINGS.items():
        mask = SCRATCH / "settings" / name
        mask.parent.mkdir(parents=True, exist_ok=True)
        mask.write_text(f"{value}\n")
        _mount("--bind", mask, Path("/proc/sys") / name)
    _mount("--make-rshared", "/")  # so that what a pod mounts for its node is seen there
    _raise_loopback()
    os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606  # there is no shell to start it with


def _mount(*words: object) -> None:
    subprocess.run(("mount", *map(str, words)), check=True)


def _mount_memory(folder: Path) -> None:
    _mount("-t", "tmpfs", "-o", "mode=0755", "scratch", folder)


def _let_changes_be_ours(folder: Path) -> None:
    """Whoever writes there changes nothing of the real machine."""
    changes, work = (SCRATCH / kind / folder.name for kind in ("changes", "work"))
    for each in (changes, work):
        each.mkdir(parents=True)
    _mount("-t", "overlay", "-o", f"lowerdir={folder},upperdir={changes},workdir={work}", "scratch", folder)


def _raise_loopback() -> None:
    """Let loopback work, with one more address, which is not of loopback."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        name = struct.pack("16s", b"lo")
        flags = struct.unpack_from("h", fcntl.ioctl(any_socket, _SIOCGIFFLAGS, name + bytes(24)), 16)[0]
        fcntl.ioctl(any_socket, _SIOCSIFFLAGS, name + struct.pack("h22x", flags | _IFF_UP))
        address = struct.pack("16sHH4s16x", b"lo:1", socket.AF_INET, 0, socket.inet_aton(ADDRESS))
        fcntl.ioctl(any_socket, _SIOCSIFADDR, address)


def _hierarchies() -> list[Path]:
    """The control groups' file systems: one in version 2, in version 1 one for each controller."""
    if (_CGROUPS / "cgroup.controllers").exists():
        return [_CGROUPS]
    return [path for path in sorted(_CGROUPS.iterdir()) if path.is_dir() and not path.is_symlink()]


def _remove_cgroups(name: str = "", *, of_the_dead: bool = False) -> None:
    for hierarchy in _hierarchies():
        for path in hierarchy.glob(f"{name or _PREFIX + '*'}"):
            if of_the_dead and Path("/proc", path.name.removeprefix(_PREFIX)).exists():
                continue
            for folder, _, _ in os.walk(path, topdown=False):
                with suppress(OSError):  # a process is not gone yet: the next run removes it
                    Path(folder).rmdir()


if __name__ == "__main__":
    sys.exit(main())
