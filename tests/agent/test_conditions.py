"""agent/conditions.py: what this host says of itself, and texts of kernels that are not at hand."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import pytest

from agent import conditions, mounts
from agent.protocol import HugePages, Limit, Peculiarity


def write(root: Path, files: dict[str, str]) -> None:
    """Files below it, with their directories."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Another /sys and /proc."""
    monkeypatch.setattr(conditions, "_SYS", tmp_path / "sys")
    monkeypatch.setattr(conditions, "_PROC", tmp_path / "proc")
    return tmp_path


def test_this_host_says_something() -> None:
    found = conditions.of_host()
    assert found.nr_open >= 1024
    assert 0 < found.threads < found.threads_max


def test_a_host_that_says_nothing(host: Path) -> None:
    found = conditions.of_host()
    assert (found.lsms, found.nr_open, found.threads, found.thp, found.huge_pages) == ((), 0, 0, "", ())
    assert not found.pid_namespaces


def test_what_a_host_says(host: Path) -> None:
    write(host, {
        "sys/kernel/security/lsm": "lockdown,capability,apparmor", "proc/sys/fs/nr_open": "1048576\n",
        "proc/sys/kernel/threads-max": "15000\n", "proc/loadavg": "0.1 0.2 0.3 2/345 678\n",
        "proc/sys/vm/overcommit_memory": "2\n",
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
        "sys/kernel/mm/hugepages/hugepages-2048kB/free_hugepages": "7\n",
        "sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "9\n",
        "proc/sys/kernel/seccomp/actions_avail": "kill\n",
        "proc/self/ns/pid": "", "proc/sys/user/max_pid_namespaces": "7\n",
        "sys/kernel/mm/hugepages/hugepages-1048576kB/free_hugepages": "0\n",
    })  # fmt: skip
    found = conditions.of_host()
    assert found.lsms == ("lockdown", "capability", "apparmor")
    assert (found.nr_open, found.threads_max, found.threads, found.overcommit) == (1048576, 15000, 345, 2)
    assert found.thp == "madvise"
    assert set(found.huge_pages) == {HugePages(2 << 20, 7, 9), HugePages(1 << 30, 0)}
    assert (found.seccomp, found.time_namespaces, found.pid_namespaces) == (True, False, True)
    write(host, {"proc/sys/user/max_pid_namespaces": "0\n"})
    assert not conditions.of_host().pid_namespaces


@pytest.mark.parametrize(("types", "version"), [
    ([], ""), (["cgroup2"], "v2"), (["cgroup", "cgroup"], "v1"), (["cgroup", "cgroup2"], "both"),
])  # fmt: skip
def test_versions_of_cgroups(types: list[str], version: str) -> None:
    lines = [f"{30 + at} 1 0:{30 + at} / /sys/fs/cgroup/{at} rw - {kind} none rw" for at, kind in enumerate(types)]
    assert conditions.cgroups("\n".join(lines)) == version


def test_the_hard_limits_of_a_process() -> None:
    found = {limit.name: limit.hard for limit in conditions.limits([os.getpid(), 4_000_000])}
    assert found["Max open files"] == resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    assert found["Max realtime timeout"] == resource.getrlimit(resource.RLIMIT_RTTIME)[1]
    assert len(found) == 16
    assert conditions.limits([]) == ()


LIMITS = "Limit                     Soft Limit           Hard Limit           Units\n" \
    "Max cpu time              unlimited            {cpu:<20} seconds\n" \
    "Max open files            1024                 {files:<20} files\n"  # fmt: skip


def test_the_highest_of_several_processes_counts(host: Path) -> None:
    write(host, {
        "proc/7/limits": LIMITS.format(cpu="unlimited", files=4096),
        "proc/8/limits": LIMITS.format(cpu=60, files=8192),
    })  # fmt: skip
    highest = (Limit("Max cpu time", -1), Limit("Max open files", 8192))
    assert conditions.limits([7, 8]) == conditions.limits([8, 7]) == highest


@pytest.mark.parametrize(("capabilities", "bound"), [("000001fffeffffff", True), ("000001ffffffffff", False)])
def test_only_without_the_capability_do_limits_bind_root(host: Path, capabilities: str, bound: bool) -> None:
    own = LIMITS.format(cpu="unlimited", files=4096)
    write(host, {"proc/self/status": f"Name:\tx\nCapEff:\t{capabilities}\n", "proc/self/limits": own})
    expected = (Limit("Max cpu time", -1), Limit("Max open files", 4096)) if bound else ()
    assert conditions.of_host().limits == expected


def test_limits_of_version_1(host: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [
        f"{30 + at} 1 0:{30 + at} / {host}/sys/fs/cgroup/{name} rw - cgroup cgroup rw,{name}"
        for at, name in enumerate(("memory", "cpu,cpuacct", "cpuset", "pids"))
    ]
    monkeypatch.setattr(mounts, "mountinfo", lambda: "\n".join(lines))
    write(host, {
        "proc/7/cgroup": "12:pids:/a\n5:memory:/a/b\n4:cpu,cpuacct:/a\n3:cpuset:/a\n1:name=systemd:/a\n0::/init\n",
        "sys/fs/cgroup/memory/a/b/memory.limit_in_bytes": "1048576\n",
        "sys/fs/cgroup/memory/a/b/memory.memsw.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/a/memory.limit_in_bytes": "9223372036854771712\n",
        "sys/fs/cgroup/memory/memory.limit_in_bytes": "5\n",
        "sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us": "50000\n",
        "sys/fs/cgroup/cpuset/cpuset.cpus": "0-3\n", "sys/fs/cgroup/cpuset/a/cpuset.cpus": "0-1\n",
        "sys/fs/cgroup/pids/a/pids.max": "100\n",
        "proc/8/cgroup": "4:cpu,cpuacct:/b\n3:cpuset:/b\n",
        "sys/fs/cgroup/cpu,cpuacct/b/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpuset/b/cpuset.cpus": "0-3\n",
    })  # fmt: skip
    assert list(conditions.of_tasks([7, 8])) == [
        Peculiarity("cgroup-limits", 7, "/a/b", "memory.limit_in_bytes 1048576"),
        Peculiarity("cgroup-limits", 7, "/a", "cpu.cfs_quota_us 50000"),
        Peculiarity("cgroup-limits", 7, "/a", "cpuset.cpus 0-1"),
    ]


def test_labels_and_limits_of_tasks(host: Path) -> None:
    write(host, {
        "sys/kernel/security/lsm": "apparmor", "proc/7/attr/current": "/usr/bin/app (enforce)\n",
        "proc/8/attr/current": "unconfined\n", "proc/8/status": "Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t1\n",
        "proc/7/status": "Name:\tx\nSeccomp:\t0\n",
        "proc/7/cgroup": "0::/app.slice/app.scope\n", "proc/8/cgroup": "0::/\n",
        "sys/fs/cgroup/app.slice/app.scope/memory.max": "1073741824\n",
        "sys/fs/cgroup/app.slice/app.scope/cpu.max": "max 100000\n",
        "sys/fs/cgroup/app.slice/app.scope/pids.max": "100\n",
        "sys/fs/cgroup/app.slice/cpu.max": "50000 100000\n",
    })  # fmt: skip
    assert list(conditions.of_tasks([7, 8, 9])) == [
        Peculiarity("lsm-label", 7, "/usr/bin/app", "apparmor"),
        Peculiarity("cgroup-limits", 7, "/app.slice/app.scope", "memory.max 1073741824"),
        Peculiarity("cgroup-limits", 7, "/app.slice", "cpu.max 50000 100000"),
        Peculiarity("seccomp", 8, "seccomp filter"),
    ]


def test_selinux_contexts_are_labels_and_no_module_means_none(host: Path) -> None:
    context = "system_u:system_r:httpd_t:s0"
    write(host, {"sys/kernel/security/lsm": "capability,selinux", "proc/7/attr/current": context + "\0"})
    assert list(conditions.of_tasks([7])) == [Peculiarity("lsm-label", 7, context, "selinux")]
    write(host, {"sys/kernel/security/lsm": "capability"})
    assert list(conditions.of_tasks([7])) == []


def test_profiles_that_are_not_loaded(host: Path) -> None:
    write(host, {"sys/kernel/security/apparmor/profiles": "/usr/bin/app (enforce)\nother (complain)\n"})
    assert conditions.missing_labels(["/usr/bin/app", "other", "third"]) == ("third",)
    assert conditions.missing_labels([]) == ()


def test_terminals_that_are_in_use() -> None:
    master, slave = os.openpty()
    number = int(os.path.basename(os.ttyname(slave)))
    assert conditions.taken_terminals([number, 2**20 + 1]) == (number,)
    os.close(master)
    os.close(slave)
