"""Under which conditions this host lets processes run: limits, security modules, cgroups, memory policy. Looks only."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Union

from agent import mounts, traits
from agent.protocol import Conditions, HugePages, Limit, Peculiarity

_SYS, _PROC, _PTS = Path("/sys"), Path("/proc"), Path("/dev/pts")
_LIMITS = ("memory.max", "memory.high", "memory.swap.max", "cpu.max", "io.max", "cpuset.cpus")
"""Files of a version 2 cgroup that limit it (Documentation/admin-guide/cgroup-v2.rst). Not pids.max: systemd sets one
for whatever it starts, and few ever come near it."""
_LIMITS_V1 = {
    "memory": ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes"),
    "cpu": ("cpu.cfs_quota_us",),
    "cpuset": ("cpuset.cpus",),
}
"""The same of version 1, by controller (Documentation/admin-guide/cgroup-v1)."""
_NO_LIMIT_V1 = 1 << 62
"""Above it, a number of bytes is none: what the kernel shows is the largest number of pages."""
_CAP_SYS_RESOURCE = 24


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
        limits=_binding_limits(),
        pid_namespaces=(_PROC / "self/ns/pid").exists() and _text(_PROC / "sys/user/max_pid_namespaces") != "0",
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


def limits(pids: Iterable[Union[int, str]]) -> tuple[Limit, ...]:
    """Of each hard limit the highest that one of these processes has (proc_pid_limits(5))."""
    highest: dict[str, int] = {}
    for pid in pids:
        for name, hard in re.findall(r"^(Max .+?)  +\S+ +(\d+|unlimited)", _text(_PROC / str(pid) / "limits"), re.M):
            value = -1 if hard == "unlimited" else int(hard)
            highest[name] = -1 if -1 in (value, highest.get(name)) else max(value, highest.get(name, 0))
    return tuple(Limit(name, hard) for name, hard in highest.items())


def _binding_limits() -> tuple[Limit, ...]:
    """Our own, where not even root may exceed them: in a container without CAP_SYS_RESOURCE."""
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", _text(_PROC / "self/status"), re.MULTILINE)
    if found is None or int(found[1], 16) >> _CAP_SYS_RESOURCE & 1:
        return ()
    return limits(["self"])


def of_tasks(pids: Iterable[int]) -> Iterator[Peculiarity]:
    """What these processes' labels and cgroups hold them to; each label and cgroup once for each process."""
    lsms = _text(_SYS / "kernel/security/lsm").split(",")
    controllers = {
        option: mount.point for mount in mounts.parse(mounts.mountinfo()) if mount.type == "cgroup"
        for option in mount.options
    }  # fmt: skip
    module = next((name for name in ("apparmor", "selinux") if name in lsms), "")
    for pid in pids:
        label = _text(_PROC / str(pid) / "attr/current").strip("\0 \n")
        if module and label and not label.startswith("unconfined"):
            yield Peculiarity("lsm-label", pid, re.sub(r" \(\w+\)$", "", label), module)
        if re.search(r"^Seccomp:\s+2$", _text(_PROC / str(pid) / "status"), re.MULTILINE):
            yield Peculiarity("seccomp", pid, "seccomp filter")
        for path, limiting in _limited(_text(_PROC / str(pid) / "cgroup"), controllers):
            yield Peculiarity("cgroup-limits", pid, path, limiting)


def _limited(cgroup: str, controllers: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """The cgroups, from a process's own upwards, that limit anything, with their limits.

    `cgroup` is a /proc/PID/cgroup; `controllers` says where those of version 1 are mounted.
    """
    for line in cgroup.splitlines():
        _, names, path = line.split(":", 2) if line.count(":") >= 2 else ("", "", "")
        for name in names.split(","):
            root = _SYS / "fs/cgroup" if line.startswith("0::") else Path(controllers.get(name, ""))
            files = _LIMITS if line.startswith("0::") else _LIMITS_V1.get(name, ())
            if not path.startswith("/") or not files or not str(root).startswith("/"):
                continue
            for directory in (Path(path), *Path(path).parents):
                said = [text for one in files if (text := _limit(root, str(directory), one))]
                if said and str(directory) != "/":
                    yield str(directory), ", ".join(said)


def _limit(root: Path, directory: str, name: str) -> str:
    """What one file of a cgroup says, with its name; "" where it limits nothing."""
    value = _text(root / directory.lstrip("/") / name)
    if not value or value.split()[0] in ("max", "-1"):
        return ""
    if name.endswith("_in_bytes") and value.isdigit() and int(value) > _NO_LIMIT_V1:
        return ""
    if name == "cpuset.cpus" and value == _text(root / name):  # of version 1: every group has its own list
        return ""
    return f"{name} {value}"


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
