"""agent/mounts.py: texts of the kernel, and our own mounts."""

from __future__ import annotations

import os

from agent import mounts

TEXT = r"""22 1 259:2 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:45 / /mnt/a\040b rw master:2 - nfs4 server:/export\011x rw,vers=4.2
31 22 0:46 /sub /mnt/c rw - fuse.sshfs user@host: rw
nonsense
32 22 x:y / /z rw - tmpfs tmpfs rw
"""


def test_mounts_are_read_with_any_optional_fields() -> None:
    first, second, third = mounts.parse(TEXT)
    assert first == mounts.Mount(os.makedev(259, 2), "/", "ext4", "/dev/sda1", ("rw",))
    assert second.options == ("rw", "vers=4.2")
    assert (second.point, second.name) == ("/mnt/a b", "nfs4 server:/export\tx")
    assert (third.device, third.type) == (os.makedev(0, 46), "fuse.sshfs")
    assert mounts.names(TEXT)[os.makedev(259, 2)] == "ext4 /dev/sda1"


def test_our_own_proc_is_a_mount() -> None:
    assert mounts.names(mounts.mountinfo())[os.stat("/proc").st_dev].startswith("proc ")
