"""The lab's part of the cgroup v2 hierarchy: one group a host, which is also the sure way to end a host."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from labkit import cache, record
from labkit.run import LabError

TOP = "migrate-lab"


def mount_point(mounts: str) -> Path:
    """Where cgroup v2 is mounted, from the text of /proc/mounts."""
    for line in mounts.splitlines():
        fields = line.split()
        if fields[2] == "cgroup2":
            return Path(fields[1])
    raise LabError("no cgroup v2 on this machine", hint="mount -t cgroup2 none /sys/fs/cgroup")


def lab_folder(lab: record.Lab) -> Path:
    """The group that holds the groups of this lab's hosts; labs of another cache can have the same name."""
    return mount_point(Path("/proc/mounts").read_text()) / TOP / f"{lab.name}-{cache.digest(str(lab.folder))}"


def create(lab: record.Lab, host: str) -> Path:
    """Makes the host's group, with the controllers that the machine can hand down."""
    folder = lab_folder(lab) / host
    folder.mkdir(parents=True, exist_ok=True)
    for parent in (folder.parent.parent.parent, folder.parent.parent, folder.parent):
        for controller in (parent / "cgroup.controllers").read_text().split():
            # Some machines keep a controller in v1, or allow only some: a host does with what there is.
            with contextlib.suppress(OSError):
                (parent / "cgroup.subtree_control").write_text(f"+{controller}")
    return folder


def clear(lab: record.Lab, timeout: float = 10.0) -> None:
    """Ends whatever runs in the lab's groups, and removes them."""
    folder = lab_folder(lab)
    if not folder.exists():
        return
    (folder / "cgroup.kill").write_text("1")
    deadline = time.monotonic() + timeout
    while "populated 1" in (folder / "cgroup.events").read_text():
        if time.monotonic() > deadline:
            raise LabError(f"processes of lab '{lab.name}' do not end", hint=f"see {folder}")
        time.sleep(0.01)
    for inner in sorted(folder.rglob("*"), reverse=True):
        if inner.is_dir():
            inner.rmdir()
    folder.rmdir()
    with contextlib.suppress(OSError):  # another lab is still there
        folder.parent.rmdir()
