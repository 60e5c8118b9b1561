"""The first user space of a machine: a busybox that finds the disk, unpacks the host's seed and starts systemd.

Debian's own initrd would boot unaided, but costs an emulated machine 13 seconds. This one loads the few
modules that the lab's machines need, and does the lab's own set-up where it costs least.
"""

from __future__ import annotations

import lzma
from pathlib import Path

MODULES = ("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng")
PROBE_ANSWER = "this accelerator boots"

INIT = f"""#!/bin/busybox sh
# lab.probe: say that we came this far, and power off.
# lab.private=ADDRESS/LENGTH: the host's address on the private network.
export PATH=/bin
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec > /dev/console 2>&1
for module in /modules/*; do insmod $module; done
private=
for word in $(cat /proc/cmdline); do
    case $word in
        lab.probe) echo '{PROBE_ANSWER}' > /dev/console; poweroff -f ;;
        lab.private=*) private=${{word#lab.private=}} ;;
    esac
done
# The names are the kernel's own, as udev does not run; the numbers in the MAC say which is which (vm.py).
ip link set lo up
for nic in /sys/class/net/eth*; do
    name=${{nic##*/}}
    case $(cat $nic/address) in
        *:01) ip addr add 10.0.2.15/24 dev $name; ip link set $name up; ip route add default via 10.0.2.2 ;;
        *:02) ip addr add $private dev $name; ip link set $name up ;;
    esac
done
mount -t ext4 -o noatime /dev/vda /root || exec sh
mkdir /dev/net
mknod /dev/net/tun c 10 200
mount --move /dev /root/dev
chroot /root tar -C / -xf /dev/vdb
umount /proc /sys
exec switch_root /root /sbin/init
"""


def needed_modules(dependencies: str, wanted: tuple[str, ...]) -> list[str]:
    """The files of these modules in the order of loading, from the text of modules.dep; built-in ones are not there."""
    lines = [line.partition(":") for line in dependencies.splitlines()]
    files = {_module_name(path): (path, needs.split()) for path, _, needs in lines}
    order: list[str] = []
    for name in wanted:
        if name in files:
            path, needs = files[name]
            # modules.dep lists what is needed with the deepest need last.
            order += [file for file in (*reversed(needs), path) if file not in order]
    return order


def _module_name(path: str) -> str:
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def cpio(files: dict[str, tuple[int, bytes]]) -> bytes:
    """An archive in the kernel's initrd format: path -> (mode with its type, content)."""
    output = bytearray()
    for number, (path, (mode, content)) in enumerate([*files.items(), ("TRAILER!!!", (0, b""))], start=1):
        name = path.encode() + b"\0"
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name), 0)
        output += b"070701" + b"".join(b"%08X" % field for field in fields) + name
        output += b"\0" * (-len(output) % 4)
        output += content
        output += b"\0" * (-len(output) % 4)
    return bytes(output)


def build(tree: Path) -> bytes:
    """The initrd for this tree's kernel."""
    modules = kernel_modules(tree)
    files: dict[str, tuple[int, bytes]] = dict.fromkeys(("bin", "dev", "modules", "proc", "root", "sys"), (16877, b""))
    files["bin/busybox"] = (0o100755, (tree / "usr/bin/busybox").read_bytes())
    files["init"] = (0o100755, INIT.encode())
    for number, file in enumerate(needed_modules((modules / "modules.dep").read_text(), MODULES)):
        content = (modules / file).read_bytes()
        if file.endswith(".xz"):
            content = lzma.decompress(content)
        files[f"modules/{number:02}-{_module_name(file)}.ko"] = (0o100644, content)
    return cpio(files)


def kernel(tree: Path) -> Path:
    """The tree's kernel."""
    return sorted((tree / "boot").glob("vmlinuz-*"))[-1]


def kernel_modules(tree: Path) -> Path:
    """The folder with the modules of the tree's kernel."""
    return tree / "lib/modules" / kernel(tree).name.removeprefix("vmlinuz-")
