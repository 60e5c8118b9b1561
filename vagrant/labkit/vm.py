"""The `vm` backend: two QEMU machines with Debian's own kernel.

KVM where a kernel really boots with it, emulation elsewhere. The machines are reached over SSH through
ports on the loopback address, and reach each other, and nothing else, over a private link.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import socket
import subprocess
from collections.abc import Mapping
from pathlib import Path

from labkit import cache, initrd, packages, processes, record, seed, tree
from labkit.image import Images
from labkit.run import LabError, run, say

READY_TIMEOUT = 240.0  # a boot takes about 10 s; an emulated machine on a busy CI may be far slower
PROBE_TIMEOUT = 20.0
MEMORY = "1300M"
QEMU = "qemu-system-x86_64"
OUTSIDE = "remote.type=unix,remote.path=outside.sock"


@dataclasses.dataclass(frozen=True)
class Boot:
    """What QEMU loads by itself: no boot loader, no menu, no waiting."""

    kernel: Path
    initrd: Path


def require() -> None:
    """What must be true before anything is built."""
    if os.uname().machine != "x86_64":
        raise LabError("the vm backend knows x86_64 only", hint="use --backend netns")
    packages.need_qemu()


def boot_files(recipe: tree.Recipe) -> Boot:
    """The kernel and the initrd for this kind of machine. Under the build lock."""
    root = tree.built(recipe)
    folder = cache.place() / "images"
    folder.mkdir(exist_ok=True)
    files = Boot(folder / f"{recipe.name}-kernel", folder / f"{recipe.name}-initrd")
    key = cache.digest(recipe.key(), Path(initrd.__file__).read_bytes())
    if not cache.is_fresh(files.initrd, key):
        cache.mark_stale(files.initrd)
        shutil.copyfile(initrd.kernel(root), files.kernel)
        files.initrd.write_bytes(initrd.build(root))
        cache.mark_fresh(files.initrd, key)
    return files


def accelerator(boot: Boot) -> str:
    """ "kvm" if a kernel boots with it, else "tcg". /dev/kvm can be there and not run one: so try, and remember."""
    device = Path("/dev/kvm")
    if not os.access(device, os.R_OK | os.W_OK):
        return "tcg"
    known = cache.place() / "accelerator"
    key = cache.digest(os.uname().release, str(os.geteuid()), run([QEMU, "--version"]))
    if not cache.is_fresh(known, key):
        known.write_text("kvm" if _boots(boot, "kvm") else "tcg")
        cache.mark_fresh(known, key)
        say(f"the machines run with {known.read_text()}")
    return known.read_text()


def _boots(boot: Boot, name: str) -> bool:
    command = [QEMU, *machine_arguments(name, boot, "lab.probe"), "-serial", "stdio", "-no-reboot"]
    try:
        said = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=PROBE_TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    return initrd.PROBE_ANSWER in said.stdout.decode(errors="replace")


def machine_arguments(accelerator_name: str, boot: Boot, kernel_words: str, memory: str = MEMORY) -> list[str]:
    """What every machine of the lab has."""
    accel = (
        ["-accel", "kvm", "-cpu", "host"]
        if accelerator_name == "kvm"
        else ["-accel", "tcg,thread=multi", "-cpu", "max"]
    )
    words = f"console=ttyS0 quiet loglevel=4 net.ifnames=0 {kernel_words}"
    return [
        *("-nodefaults", "-display", "none", "-machine", "q35", *accel, "-smp", "1", "-m", memory),
        *("-device", "virtio-rng-pci"),
        *("-kernel", str(boot.kernel), "-initrd", str(boot.initrd), "-append", words),
    ]


def host_arguments(name: str, control_port: int) -> list[str]:
    """What this machine has; paths are relative to the lab's folder, as a socket's path must be short."""
    number = record.HOSTS.index(name) + 1
    side = "server=on" if number == 1 else "server=off,reconnect-ms=200"
    control = f"hostfwd=tcp:{record.CONTROL_ADDRESS}:{control_port}-:22"
    return [
        *("-drive", f"if=none,id=root,file={name}.qcow2,format=qcow2,cache=unsafe,discard=unmap"),
        *("-device", "virtio-blk-pci,drive=root"),
        *("-drive", f"if=none,id=seed,file={name}.seed,format=raw,readonly=on"),
        *("-device", "virtio-blk-pci,drive=seed"),
        *("-netdev", f"user,id=control,restrict=on,{control}"),
        *("-device", f"virtio-net-pci,netdev=control,romfile=,mac=52:54:00:00:0{number}:01"),
        *("-netdev", f"stream,id=link,{side},addr.type=unix,addr.path=link.sock"),
        *("-device", f"virtio-net-pci,netdev=link,romfile=,mac=52:54:00:00:0{number}:02"),
        # a way to nobody, but for a test that reads the frames that come out of it
        *("-netdev", f"dgram,id=outside,local.type=unix,local.path={name}.outside,{OUTSIDE}"),
        *("-device", f"virtio-net-pci,netdev=outside,romfile=,mac=52:54:00:00:0{number}:03"),
        *("-serial", f"file:{name}.log"),
    ]


def kernel_words(lab: str, name: str) -> str:
    """The host's part of the kernel's command line."""
    # mmdebstrap leaves no machine-id, and systemd would take the first boot for a first boot.
    machine_id = cache.digest(lab, name) * 2
    return f"lab.private={record.PRIVATE_ADDRESSES[name]}/24 systemd.machine_id={machine_id} systemd.show_status=0"


def start(lab: record.Lab, images: Images, boots: Mapping[str, Boot]) -> None:
    """Starts both machines, each with its own kernel; they are on their way, not ready, when this returns."""
    lab.accelerator = accelerator(boots[record.HOSTS[0]])
    for name, port in zip(record.HOSTS, _free_ports(len(record.HOSTS))):
        lab.hosts[name] = record.Host(name, port)
    lab.save()
    seed.write_for(lab)
    for name, host in lab.hosts.items():
        base: list[str | Path] = ["-b", images.of(name), "-F", "raw"]
        run(["qemu-img", "create", "-q", "-f", "qcow2", *base, lab.folder / f"{name}.qcow2"])
        command = [QEMU, "-name", marker(lab, name), *host_arguments(name, host.control_port)]
        words = kernel_words(lab.name, name)
        command += machine_arguments(lab.accelerator, boots[name], words, lab.memory or MEMORY)
        with (lab.folder / f"{name}.qemu.log").open("wb") as log:
            started = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=lab.folder, start_new_session=True
            )
        host.process = processes.identity(started.pid)
        lab.save()


def marker(lab: record.Lab, name: str) -> str:
    """An argument that only this machine's QEMU has: it is found by it when a start was cut short."""
    return f"{name}@{lab.folder}"


def stop(lab: record.Lab) -> None:
    """Ends both machines at once: their disks go too, so there is nothing to shut down for."""
    for name in record.HOSTS:
        for process in processes.with_argument(marker(lab, name)):
            if not processes.kill(process):
                raise LabError(f"{name} does not end (process {process.pid})")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        listeners = [stack.enter_context(socket.socket()) for _ in range(count)]
        for listener in listeners:
            listener.bind((record.CONTROL_ADDRESS, 0))
        return [listener.getsockname()[1] for listener in listeners]
