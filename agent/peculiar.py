"""What is odd about a tree: everything that decides whether, or with which options, criu can move it.

Finds and names; `migrator.plan` judges. Kinds, with what `object` and `detail` say:

    shell-job        the root's session; the root is not its leader
    zombie-leader    a process whose first thread has ended while others live
    tracer           the debugger or strace that traces a task
    namespace        which one differs from ours: mnt, net, pid, user…
    capability       what criu lacks here to dump a task: CAP_SYS_RESOURCE, of another user than ours
    chroot           the root directory that differs from ours
    ghost            path of a deleted file that is still held; its size in bytes
    link-remap       path that no longer leads to the file that is held, though others do
    mqueue           name of a POSIX message queue
    dead-process     path below /proc/PID of a process that has ended; criu makes a helper of that PID on restore
    network-file     path on a network file system; its type
    file-lock        path of a locked file; kind and mode of the locks
    device           device that criu knows nothing of; its kind and numbers
    terminal         tty whose other end is not in the tree; what it is, and who is attached to it
    pty              number of a pseudo-terminal whose master is in the tree
    hugetlb          name and inode of memory in huge pages; its size and that of its pages, in bytes
    sysv-shm         System V shared memory segment
    sysv-ipc         number of a System V semaphore set, message queue or segment that nobody has attached; which
    io-uring, pidfd  such a descriptor
    pidfd-outside    process outside of the tree that a pidfd means
    anon-inode       descriptor of a kind that criu refuses: perf events, BPF programs, userfaultfd, KVM…
    inet-socket      number of sockets of IP, listening or not
    listen           address and port of TCP; "only-ipv6", "shared", both or neither
    receive          address and port that a UDP socket is bound to; the same
    watch            path that inotify or fanotify watches; which of them
    watch-lost       inode that they watch, and that no path leads to
    lsm-label        label of AppArmor or SELinux; which of them
    seccomp          a task has a filter of system calls
    cgroup-limits    cgroup that a task is in; its limits
    affinity         processors that a thread is bound to, as a list
    personality      of a task, in hexadecimal
    scheduling       policy of a thread that criu cannot set
    eventfd-semaphore  an eventfd that counts as a semaphore
    tcp-established  `local -> remote`, or only `local` of one that waits to be accepted; state
    socket-kind      protocol of sockets that criu refuses
    external-unix    name of the peer, or of the processes that hold it; "stream" or "dgram"
    journal          inode of a stream to journald; whose lines they are, by name
    unix-path        path that a socket is bound to
    unix-moved       where the file of a socket lies that was bound to another path; that path
    unix-name        name that is no path, which a socket is bound to; "stream", "dgram" or "seqpacket"
    unix-waiting     socket at which a connection of the tree waits to be accepted, with data
    packet-pipe      pipe that keeps packets apart
    thread-apart     thread that has something of its own; what
    uninterruptible  thread that no signal wakes; where in the kernel it sleeps
    external-pipe    pipe or FIFO; the processes outside of the tree that hold it
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Union

from agent import apart, carried, conditions, connections, inside, systemv, terminals, traits, watches
from agent.descriptors import (
    Holdings,
    Mapped,
    Opened,
    is_memory,
    name_of,
    names_of,
    namespace,
    same_namespace,
    status_field,
)
from agent.mounts import mountinfo, parse
from agent.protocol import Peculiarity, TaskFacts

_NAMESPACES = ("mnt", "pid", "net", "ipc", "uts", "user", "cgroup")
_MEMORY_MAJOR, _AUXILIARY_MAJOR, _MISC_MAJOR = 1, 5, 10
_TUN_MINOR, _AUTOFS_MINOR = 200, 235
# criu/files.c, dump_one_file
_ANONYMOUS_KNOWN = {
    "[eventfd]", "[eventpoll]", "inotify", "[fanotify]", "[signalfd]", "[timerfd]",
}  # fmt: skip
_NETWORK_FILE_SYSTEMS = {
    "nfs", "nfs4", "cifs", "smb3", "ceph", "9p", "virtiofs", "lustre", "gpfs", "beegfs", "ocfs2", "gfs2", "afs",
    "orangefs", "pvfs2", "glusterfs",
}  # fmt: skip
_CAP_SYS_RESOURCE = 24


def of_tasks(tasks: Sequence[TaskFacts], holdings: Holdings) -> list[Peculiarity]:
    """All that is odd about these tasks (root first) and what they hold. Each kind and object is named once."""
    found: dict[tuple[str, str], Peculiarity] = {}
    for source in (
        _of_processes(tasks), _of_files(holdings), _of_devices(holdings), _of_anonymous(tasks, holdings),
        connections.of_sockets(tasks, holdings), connections.of_unix(holdings), connections.of_pipes(tasks, holdings),
        apart.of_threads(tasks),
        watches.watched(holdings.opened), conditions.of_tasks(task.pid for task in tasks),
        traits.of_tasks(tasks, holdings.opened), systemv.used(task.pid for task in tasks),
    ):  # fmt: skip
        for one in source:
            found.setdefault((one.kind, one.object), one)
    return list(found.values())


def _of_processes(tasks: Sequence[TaskFacts]) -> Iterator[Peculiarity]:
    root = tasks[0]
    home = inside.home_of(root.pid)
    alone = carried.of_tree(task.pid for task in tasks)
    if root.sid != root.pid:
        yield Peculiarity("shell-job", root.pid, str(root.sid), name_of(root.sid))
    for task in tasks:
        if task.state == "Z" and len(task.tids) > 1:
            yield Peculiarity("zombie-leader", task.pid, str(task.pid), task.name)
        tracer = int(status_field(_status(task.pid), b"TracerPid") or "0")
        if tracer:
            yield Peculiarity("tracer", task.pid, str(tracer), name_of(tracer))
        # criu reads limits with prlimit(2), which for a process of another user wants this
        if task.uid != os.getuid() and not _has_capability(_CAP_SYS_RESOURCE):
            yield Peculiarity("capability", task.pid, "CAP_SYS_RESOURCE", f"{task.name} of uid {task.uid}")
        for kind in _NAMESPACES:
            if kind not in alone and inside.own_namespace(task.pid, kind, home):
                yield Peculiarity("namespace", task.pid, kind, task.name)
        # criu restores every tree into a time namespace of its own, so that its clocks go on; from there it can move
        # again, as long as all of it is in one
        times = {namespace(root.pid, "time"), namespace(task.pid, "time"), namespace(task.pid, "time_for_children")}
        if len(times - {""}) > 1:
            yield Peculiarity("namespace", task.pid, "time", task.name)
        if not inside.own_namespace(task.pid, "mnt", home):
            try:
                theirs, ours = os.stat(f"/proc/{task.pid}/root"), os.stat(f"/proc/{home or 'self'}/root")
                if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino):
                    yield Peculiarity("chroot", task.pid, os.readlink(f"/proc/{task.pid}/root"), task.name)
            except OSError:
                continue


def _status(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/status").read_bytes()
    except OSError:
        return b""


def _has_capability(number: int) -> bool:
    return bool(int(status_field(_status(os.getpid()), b"CapEff") or "0", 16) >> number & 1)


# --- files -----------------------------------------------------------------------------------------------------------


def _of_files(holdings: Holdings) -> Iterator[Peculiarity]:
    queues = {mount.device for mount in parse(mountinfo()) if mount.type == "mqueue"}
    for path, became, pid, status in holdings.fates():
        if status.st_dev in queues:
            yield Peculiarity("mqueue", pid, path)
            continue
        yield Peculiarity(became, pid, path, str(status.st_size if stat.S_ISREG(status.st_mode) else 0))
    mounts = network_mounts(mountinfo())
    for one in holdings.opened:
        if is_memory(one.link, one.status):
            yield from _in_huge_pages(one)
        if one.locks:
            yield Peculiarity("file-lock", one.pid, one.link, ", ".join(one.locks))
        if one.status.st_dev in mounts and one.link.startswith("/"):
            yield Peculiarity("network-file", one.pid, one.link, mounts[one.status.st_dev])
    for mapping in holdings.mapped:
        if mapping.status.st_dev in mounts:
            yield Peculiarity("network-file", mapping.pid, mapping.link, mounts[mapping.status.st_dev])
        if is_memory(mapping.link, mapping.status):
            if mapping.link.startswith("/SYSV"):
                if same_namespace(mapping.pid, "ipc"):  # else it belongs to a namespace, which is judged as a whole
                    yield Peculiarity("sysv-shm", mapping.pid, mapping.link.split(" ")[0])
            else:
                yield from _in_huge_pages(mapping)


def _in_huge_pages(one: Union[Opened, Mapped]) -> Iterator[Peculiarity]:
    """Memory that is mapped or held open, if it is of hugetlbfs: that tells its page size, tmpfs a small one."""
    if one.status.st_blksize > 1 << 20:
        sizes = f"{one.status.st_size} {one.status.st_blksize}"
        # all that is mapped without a name has the same one
        yield Peculiarity("hugetlb", one.pid, f"{one.link.split(' ')[0]} {one.status.st_ino}", sizes)


def network_mounts(text: str) -> dict[int, str]:
    """Device number -> type of each mounted file system that other hosts see as well (proc_pid_mountinfo(5)).

    FUSE counts: nearly all that a service keeps there (glusterfs, sshfs, s3fs) lies elsewhere.
    """
    return {
        mount.device: mount.type
        for mount in parse(text)
        if mount.type in _NETWORK_FILE_SYSTEMS or mount.type.startswith("fuse.")
    }


def _of_devices(holdings: Holdings) -> Iterator[Peculiarity]:
    masters = {one.pty: one.pid for one in holdings.opened if one.pty is not None}
    for number, pid in masters.items():
        yield Peculiarity("pty", pid, str(number))
    for terminal in terminals.outside(holdings):
        yield Peculiarity("terminal", terminal.pids[0], terminal.path, f"{terminal.words} of {names_of(terminal.pids)}")
    seen = [(one.pid, one.link, one.status) for one in holdings.opened]
    for pid, link, status in seen + [(one.pid, one.link, one.status) for one in holdings.mapped]:
        major, minor = os.major(status.st_rdev), os.minor(status.st_rdev)
        if stat.S_ISCHR(status.st_mode):
            if not terminals.is_terminal(status) and not _device_known(major, minor):
                yield Peculiarity("device", pid, link, f"character device {major}:{minor}")
        elif stat.S_ISBLK(status.st_mode):
            yield Peculiarity("device", pid, link, f"block device {major}:{minor}")


def _device_known(major: int, minor: int) -> bool:
    """Whether criu takes a character device that is no terminal (criu/files.c, dump_chrdev)."""
    if major == _MEMORY_MAJOR:
        return minor in (3, 5, 7, 8, 9, 11)  # null, zero, full, random, urandom, kmsg; not mem, port and their like
    return (major, minor) in ((_AUXILIARY_MAJOR, 2), (_MISC_MAJOR, _AUTOFS_MINOR))


def _of_anonymous(tasks: Sequence[TaskFacts], holdings: Holdings) -> Iterator[Peculiarity]:
    prefix = "anon_inode:"
    family = {tid for task in tasks for tid in task.tids}
    for one in holdings.opened:
        if one.link in (f"{prefix}[pidfd]", "pidfd:[pidfd]") or one.link.startswith("pidfd:"):
            other = _meant(one)
            if other > 0 and other not in family:  # criu/pidfd.c; of one that has ended it makes another
                yield Peculiarity("pidfd-outside", one.pid, f"pid {other}", name_of(other))
    links = [(one.pid, one.link) for one in holdings.opened] + [(one.pid, one.link) for one in holdings.mapped]
    for pid, link in links:
        name = link[len(prefix) :] if link.startswith(prefix) else ""
        if name == "[pidfd]" or link.startswith("pidfd:"):
            yield Peculiarity("pidfd", pid, "pidfd")
        elif name == "[io_uring]":
            yield Peculiarity("io-uring", pid, "io_uring")
        elif name and name not in _ANONYMOUS_KNOWN:
            yield Peculiarity("anon-inode", pid, name)


def _meant(one: Opened) -> int:
    """The process or thread that a pidfd means (proc_pid_fdinfo(5)); -1 when it has ended, 0 where that is not said."""
    try:
        return int(status_field(Path(f"/proc/{one.pid}/fdinfo/{one.fd}").read_bytes(), b"Pid") or "0")
    except (OSError, ValueError):
        return 0
