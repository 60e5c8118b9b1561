"""The `netns` backend: two hosts made of namespaces on this machine's kernel, joined by a veth pair.

Native speed and ready in a second, but it is one kernel: the machine's own, with what it lacks.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

from labkit import cgroup, packages, processes, record, seed
from labkit.image import Images
from labkit.run import CommandFailed, LabError, run

HERE = Path(__file__).resolve().parent
READY_TIMEOUT = 20.0


def require() -> None:
    """What must be true before anything is built."""
    if not packages.is_root():
        raise LabError("the netns backend needs root", hint="run the same command with sudo, or use --backend vm")
    packages.need(packages.FOR_NETNS)


def start(lab: record.Lab, images: Images) -> None:
    """Starts both hosts; they are on their way, not ready, when this returns."""
    with contextlib.ExitStack() as stack:
        control = {name: stack.enter_context(_listener()) for name in record.HOSTS}
        for name, listener in control.items():
            lab.hosts[name] = record.Host(name, listener.getsockname()[1])
        lab.save()
        seed.write_for(lab)
        for name, listener in control.items():
            _start_host(lab, name, images.of(name), listener)
            lab.save()
    _join(lab)


def _listener() -> socket.socket:
    listener = socket.socket()
    listener.bind((record.CONTROL_ADDRESS, 0))
    listener.listen(64)
    return listener


def _shared(lab: record.Lab) -> Path:
    """What both hosts see at /srv/shared, as they would with NFS."""
    shared = lab.folder / "shared"
    shared.mkdir(exist_ok=True)
    return shared


def _start_host(lab: record.Lab, name: str, image: Path, listener: socket.socket) -> None:
    disk = lab.folder / f"{name}.img"
    run(["cp", "--sparse=always", image, disk])
    mount_point = lab.folder / f"{name}.root"
    mount_point.mkdir()
    wanted = {
        "image": str(disk),
        "seed": str(lab.folder / f"{name}.seed"),
        "mount_point": str(mount_point),
        "cgroup": str(cgroup.create(lab, name)),
        "hostname": name,
        "shared": str(_shared(lab)),
        "init": str(HERE / "namespace_init.py"),
        "control": listener.fileno(),
    }
    command = [sys.executable, "-I", str(HERE / "namespace_host.py"), json.dumps(wanted)]
    with (lab.folder / f"{name}.log").open("wb") as log:
        started = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=log,
            pass_fds=[listener.fileno()],
            cwd="/",
            check=False,
        )
    if started.returncode != 0:
        raise CommandFailed(command, started.returncode, (lab.folder / f"{name}.log").read_text())
    lab.hosts[name].process = processes.identity(int(started.stdout))


def _join(lab: record.Lab) -> None:
    """The private link. Both ends are made inside the hosts, so no name on this machine is taken for a moment."""
    pids = {name: host.process.pid for name, host in lab.hosts.items() if host.process}
    ends = [["name", "eth0", "netns", str(pids[name])] for name in record.HOSTS]
    run(["ip", "link", "add", *ends[0], "type", "veth", "peer", *ends[1]])
    for name, pid in pids.items():
        commands = ["link set lo up", f"addr add {record.PRIVATE_ADDRESSES[name]}/24 dev eth0", "link set eth0 up"]
        run(["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-batch", "-"], stdin="\n".join(commands).encode())


def stop(lab: record.Lab) -> None:
    """Ends both hosts, and waits until the kernel let go of what they had."""
    for host in lab.hosts.values():
        if host.process is not None and not processes.kill(host.process):
            raise LabError(f"{host.name} does not end (process {host.process.pid})")
    cgroup.clear(lab)
    deadline = time.monotonic() + 10
    while left := loop_devices(lab.folder):
        if time.monotonic() > deadline:
            raise LabError(f"still in use: {', '.join(left)}", hint="something outside the lab holds its mounts")
        time.sleep(0.01)


def loop_devices(folder: Path) -> list[str]:
    """The loop devices whose file lies in this folder."""
    found = []
    for file in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # let go of while we looked
            if file.read_text().startswith(str(folder) + os.sep):
                found.append(file.parent.parent.name)
    return found
