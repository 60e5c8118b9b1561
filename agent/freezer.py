"""The cgroup v2 freezer as the second lock on a held tree, where the tree has a cgroup to itself.

Should criu be killed in its hold, the kernel lets its tracees run; a SIGSTOP queued to each stops them, unless somebody
else's SIGCONT takes it back (a `systemctl stop` sends one). A frozen cgroup can't be talked out of it. Where the cgroup
holds anybody else (a login session, a container of more than this tree) it is left alone.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import Optional

WORD = "frozen"
"""File beside the journal that names the frozen cgroup's directory, for the hold script and for recovery."""


def cgroup_of(pid: int) -> Optional[Path]:
    """The directory of a process's cgroup v2; None for the root cgroup and where no v2 hierarchy is mounted."""
    try:
        lines = Path(f"/proc/{pid}/cgroup").read_text(errors="surrogateescape").splitlines()
        mounts = Path("/proc/self/mounts").read_text(errors="surrogateescape").splitlines()
    except (FileNotFoundError, ProcessLookupError):
        return None
    path = next((line[len("0::") :] for line in lines if line.startswith("0::")), "/")
    mount = next((fields[1] for fields in map(str.split, mounts) if fields[2] == "cgroup2"), "")
    return Path(mount + path) if mount and path != "/" and "/.." not in path else None


def _processes(cgroup: Path) -> set[int]:
    """Every process in a cgroup and below it."""
    found: set[int] = set()
    for directory, _, names in os.walk(cgroup):
        if "cgroup.procs" in names:
            found |= {int(pid) for pid in (Path(directory) / "cgroup.procs").read_text().split()}
    return found


def freeze(directory: Path, root: int, pids: Collection[int]) -> Optional[Path]:
    """Freeze the tree's cgroup if it is the tree's alone and not frozen yet; word of it is left in `directory`.

    Returns the cgroup, None where nothing was done.
    """
    cgroup = cgroup_of(root)
    if cgroup is None:
        return None
    switch = cgroup / "cgroup.freeze"
    try:
        if switch.read_text().strip() != "0" or not _processes(cgroup) <= set(pids):
            return None
        (directory / WORD).write_text(f"{cgroup}\n", errors="surrogateescape")
        switch.write_text("1")
    except OSError:
        # no v2, no freezer in it, or it has just gone: the queued SIGSTOP stands alone
        thaw(directory)
        return None
    return cgroup


def thaw(directory: Path) -> None:
    """Undo `freeze`, if it did anything."""
    try:
        cgroup = Path((directory / WORD).read_text(errors="surrogateescape").rstrip("\n"))
    except FileNotFoundError:
        return
    try:
        (cgroup / "cgroup.freeze").write_text("0")
    except OSError:
        pass  # the cgroup went with its last task
    (directory / WORD).unlink()
