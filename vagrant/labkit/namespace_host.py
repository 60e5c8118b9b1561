"""Turns itself into a host: new namespaces, a root file system of its own, and then its init.

A program by itself (standard library only, one JSON argument), started by netns.py as root:

    {"image": …, "seed": …, "mount_point": …, "cgroup": …, "hostname": …, "init": …, "shared": …,
     "control": DESCRIPTOR}

It prints the process number of the host's init and leaves; the init goes on to pivot into the image. Every
mount is made inside the host's own mount namespace: when its last process is gone, so are the mounts and
the loop device below them.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

libc = ctypes.CDLL(None, use_errno=True)

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS = 0x00020000, 0x02000000, 0x04000000
CLONE_NEWIPC, CLONE_NEWPID, CLONE_NEWNET = 0x08000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 8, 0x1000, 0x4000, 1 << 18
MNT_DETACH = 2
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}[os.uname().machine]

DEVICES = ("null", "zero", "full", "random", "urandom", "tty", "fuse", "net/tun", "userfaultfd")


def check(result: int, what: str) -> None:
    """libc's way of failing, as an exception."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def mount(source: str, target: Path, kind: str, flags: int = 0, data: str = "") -> None:
    """mount(2)"""
    target.mkdir(parents=True, exist_ok=True)
    words = (source.encode(), str(target).encode(), kind.encode(), flags, data.encode())
    check(libc.mount(*words), f"mount {kind} on {target}")


def mount_image(image: str, root: Path) -> None:
    """A loop mount: mount(8) sets the device to go away with the mount."""
    subprocess.run(["mount", "-t", "ext4", "-o", "loop,noatime", image, str(root)], check=True)


def mount_kernel_file_systems(root: Path) -> None:
    """What every Linux has mounted when its first service starts."""
    safe = MS_NOSUID | MS_NODEV | MS_NOEXEC
    mount("proc", root / "proc", "proc", safe)
    mount("sysfs", root / "sys", "sysfs", safe)
    mount("cgroup2", root / "sys/fs/cgroup", "cgroup2", safe)
    mount("tmpfs", root / "run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=755")
    mount("tmpfs", root / "tmp", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    mount("tmpfs", root / "dev", "tmpfs", MS_NOSUID, "mode=755")
    mount("devpts", root / "dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=620,gid=5")
    mount("tmpfs", root / "dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777")
    mount("mqueue", root / "dev/mqueue", "mqueue", safe)


def make_devices(root: Path) -> None:
    """The usual nodes, with the numbers that they have on this machine."""
    for name in DEVICES:
        ours = Path("/dev", name)
        if ours.exists():
            node = root / "dev" / name
            node.parent.mkdir(exist_ok=True)
            mode = 0o600 if name == "userfaultfd" else 0o666
            os.mknod(node, stat.S_IFCHR | mode, ours.stat().st_rdev)
            node.chmod(mode)
    links = {"ptmx": "pts/ptmx", "fd": "/proc/self/fd", "stdin": "/proc/self/fd/0"}
    links |= {"stdout": "/proc/self/fd/1", "stderr": "/proc/self/fd/2"}
    for name, target in links.items():
        (root / "dev" / name).symlink_to(target)


def pivot(root: Path) -> None:
    """Makes the image the root, and lets go of the machine's file systems."""
    os.chdir(root)
    # The same folder twice: the old root then lies on top of the new one, and is taken off.
    check(libc.syscall(SYS_PIVOT_ROOT, b".", b"."), "pivot_root")
    check(libc.umount2(b".", MNT_DETACH), "umount of the old root")
    os.chdir("/")


def become_init(wanted: dict[str, Any]) -> None:
    """Runs as process 1 of the new namespaces; ends in exec."""
    os.setsid()
    socket.sethostname(wanted["hostname"])
    check(libc.mount(None, b"/", None, MS_REC | MS_PRIVATE, None), "making mounts private")
    root = Path(wanted["mount_point"])
    mount_image(wanted["image"], root)
    with Path(wanted["seed"]).open("rb") as seed:  # tar inside, so that names become the host's numbers
        subprocess.run(["chroot", str(root), "tar", "-C", "/", "-xf", "-"], stdin=seed, check=True)
    mount_kernel_file_systems(root)
    shared = root / "srv/shared"
    shared.mkdir(exist_ok=True)
    mount(wanted["shared"], shared, "", MS_BIND)
    make_devices(root)
    init = root / "run/lab-init.py"
    init.write_text(Path(wanted["init"]).read_text())
    pivot(root)
    # A group below the host's top: cgroup v2 lets only groups without processes hand controllers down.
    own_group = Path("/sys/fs/cgroup/init")
    own_group.mkdir()
    (own_group / "cgroup.procs").write_text("0")
    os.set_inheritable(wanted["control"], True)
    environment = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
    os.execve("/usr/bin/python3", ["init", "-I", "/run/lab-init.py", str(wanted["control"])], environment)


def main() -> None:
    """Joins the cgroup, makes the namespaces, forks the init, says its number."""
    wanted = json.loads(sys.argv[1])
    Path(wanted["cgroup"], "cgroup.procs").write_text("0")  # before the namespace: its root is where we are
    flags = CLONE_NEWNS | CLONE_NEWCGROUP | CLONE_NEWUTS | CLONE_NEWIPC | CLONE_NEWPID | CLONE_NEWNET
    check(libc.unshare(flags), "unshare")
    child = os.fork()
    if child == 0:
        os.dup2(2, 1)  # whoever waits for our output waits for the number only
        become_init(wanted)
    print(child, flush=True)


if __name__ == "__main__":
    main()
