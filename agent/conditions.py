"""Under which conditions this host lets processes run: limits, security modules, cgroups, memory policy. Looks only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from agent import mounts, traits
from agent.protocol import Conditions, HugePages, Peculiarity

_SYS, _PROC, _PTS = Path("/sys"), Path("/proc"), Path("/dev/pts")
_LIMITS = ("memory.max", "memory.high", "memory.swap.max", "cpu.max", "io.max", "cpuset.cpus")
"""Files of a version 2 cgroup that limit it (Documentation/admin-guide/cgroup-v2.rst). Not pids.max: systemd sets one
for whatever it starts, and few ever come near it."""


def of_host() -> Conditions:
    """What holds for every process of this host."""
    return Conditions(
        lsms=tuple(word for word in _text(_SYS / "kernel/security/lsm").split(",") if word),
        nr_open=_number(_PROC / "sys/fs/nr_open"),
        threads_max=_number(_PROC / "sys/kernel/threads-max"),
        threads=int(_text(_PROC / "loadavg").partition("/")[2].split(" ")[0] or 0),
        overcommit=_number(_PROC / "sys/vm/overcommit_memory"),
        thp=chosen(_text(_SYS / "kernel/mm/transparent_hugepage/enabled")),
        cgroups=cgroups(mounts.mountinfo()),
        huge_pages=tuple(_huge_pages()),
        time_namespaces=(_PROC / "self/ns/time").exists(),
        seccomp=(_PROC / "sys/kernel/seccomp/actions_avail").exists(),
        cpus=traits.online(),
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace").strip()
    except OSError:
        return ""


def _number(path: Path) -> int:
    text = _text(path)
    return int(text) if text.isdigit() else 0


def chosen(text: str) -> str:
    """The word in brackets of a sysfs choice: `always [madvise] never`."""
    found = re.search(r"\[(\w+)\]", text)
    return found[1] if found else ""


def cgroups(mountinfo: str) -> str:
    """Which version of cgroups is mounted: v1, v2, both; "" where none is."""
    types = {mount.type for mount in mounts.parse(mountinfo)} & {"cgroup", "cgroup2"}
    return {0: "", 1: "v2" if "cgroup2" in types else "v1", 2: "both"}[len(types)]


def _huge_pages() -> Iterator[HugePages]:
    for directory in sorted((_SYS / "kernel/mm/hugepages").glob("hugepages-*kB")):
        size = directory.name[len("hugepages-") : -len("kB")]
        if size.isdigit():
            free, total = _number(directory / "free_hugepages"), _number(directory / "nr_hugepages")
            yield HugePages(int(size) * 1024, free, total)


def open_files_limit(pids: Iterable[int]) -> int:
    """The highest number of descriptors that one of these processes may raise its limit to."""
    highest = 0
    for pid in pids:
        found = re.search(r"^Max open files +\S+ +(\d+)", _text(_PROC / str(pid) / "limits"), re.MULTILINE)
        highest = max(highest, int(found[1]) if found else 0)
    return highest


def of_tasks(pids: Iterable[int]) -> Iterator[Peculiarity]:
    """What these processes' labels and cgroups hold them to; each label and cgroup once for each process."""
    lsms = _text(_SYS / "kernel/security/lsm").split(",")
    module = next((name for name in ("apparmor", "selinux") if name in lsms), "")
    for pid in pids:
        label = _text(_PROC / str(pid) / "attr/current").strip("\0 \n")
        if module and label and not label.startswith("unconfined"):
            yield Peculiarity("lsm-label", pid, re.sub(r" \(\w+\)$", "", label), module)
        if re.search(r"^Seccomp:\s+2$", _text(_PROC / str(pid) / "status"), re.MULTILINE):
            yield Peculiarity("seccomp", pid, "seccomp filter")
        for path, limits in _limited(_text(_PROC / str(pid) / "cgroup")):
            yield Peculiarity("cgroup-limits", pid, path, limits)


def _limited(cgroup: str) -> Iterator[tuple[str, str]]:
    """The version 2 cgroups, from a process's own upwards, that limit anything, with their limits."""
    found = re.search(r"^0::(/.*)$", cgroup, re.MULTILINE)
    path = Path(found[1]) if found else Path("/")
    root = _SYS / "fs/cgroup"
    for directory in (path, *path.parents):
        limits = [(name, _text(root / str(directory).lstrip("/") / name)) for name in _LIMITS]
        said = [f"{name} {value}" for name, value in limits if value and value.split()[0] != "max"]
        if said and str(directory) != "/":
            yield str(directory), ", ".join(said)


def missing_labels(labels: Iterable[str]) -> tuple[str, ...]:
    """Those of these AppArmor profiles that are not loaded here."""
    asked = tuple(labels)
    if not asked:
        return ()
    loaded = {line.rpartition(" (")[0] for line in _text(_SYS / "kernel/security/apparmor/profiles").splitlines()}
    return tuple(label for label in asked if label not in loaded)


def taken_terminals(numbers: Iterable[int]) -> tuple[int, ...]:
    """Those of these pseudo-terminals that are in use here."""
    return tuple(number for number in numbers if (_PTS / str(number)).exists())
