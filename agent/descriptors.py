"""What the processes of a tree hold: open descriptors, mappings, executable, working directory, root, and memory.

Owns /proc/PID/{fd,fdinfo,maps,map_files,exe,cwd,root}. Judges nothing: what of it stands in the way of a move is
`peculiar.py`'s to say, and how much memory a process has `memory.py`'s.

A file is known by device and inode, never by the text of a link: a name may really end in ` (deleted)`, and the device
number in /proc/PID/maps is not the one that stat gives on btrfs and overlayfs.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Optional, Union

from agent import elf, mounts
from agent.memory import private_memory, shared_since_fork
from agent.protocol import FileFacts

DELETED = " (deleted)"
_AIO = "/[aio]" + DELETED
_O_PATH = 0o10000000
_FLAGS = re.compile(rb"^flags:\s*([0-7]+)", re.MULTILINE)
_WRITTEN = re.compile(rb"^\S+ .w.s .*$", re.MULTILINE)
_GONE = (FileNotFoundError, ProcessLookupError)

KINDS = {
    stat.S_IFREG: "regular", stat.S_IFDIR: "directory", stat.S_IFCHR: "char", stat.S_IFBLK: "block",
    stat.S_IFIFO: "fifo", stat.S_IFSOCK: "socket", stat.S_IFLNK: "link",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Opened:
    """One open descriptor."""

    pid: int
    fd: int
    link: str  # as /proc/PID/fd shows it: a path, `pipe:[123]`, `socket:[123]`, `anon_inode:[eventpoll]`
    status: os.stat_result
    writing: bool
    locks: tuple[str, ...]  # kind and mode, e.g. "FLOCK WRITE"
    pty: Optional[int]  # of a pty's master: the number of its slave
    direct: bool = False  # O_DIRECT: of a pipe, that it keeps packets apart
    appending: bool = False  # O_APPEND

    @property
    def inode(self) -> int:
        """Its inode number: what names a pipe or a socket."""
        return self.status.st_ino


@dataclasses.dataclass(frozen=True)
class Mapped:
    """One file that is mapped, however many mappings it has in this process."""

    pid: int
    link: str
    status: os.stat_result
    executable: bool
    writing: bool  # shared and writable: stores reach the file


@dataclasses.dataclass(frozen=True)
class Line:
    """One line of /proc/PID/maps."""

    start: int
    end: int
    permissions: str
    device: bytes
    inode: int
    path: bytes


def parse_maps(data: bytes) -> Iterator[Line]:
    """Lines of a maps file (proc_pid_maps(5)); lines that are none are passed over."""
    for line in data.split(b"\n"):
        words = line.split(None, 5)
        start, dash, end = words[0].partition(b"-") if len(words) >= 5 else (b"", b"", b"")
        try:
            addresses, inode = (int(start, 16), int(end, 16)), int(words[4]) if dash else 0
        except (ValueError, IndexError):
            continue
        path = words[5] if len(words) == 6 else b""
        yield Line(*addresses, words[1].decode("ascii", "replace"), words[3], inode, path)


def status_field(status: bytes, name: bytes) -> str:
    """A field of /proc/PID/status, stripped; "" where it is not there. The kernel escapes newlines in names."""
    found = re.search(rb"^" + name + rb":[ \t]*(.*)$", status, re.MULTILINE)
    return found.group(1).decode("ascii", "replace").strip() if found else ""


def name_of(pid: int) -> str:
    """A process as people know it: `sshd (pid 123)`; only the number when it is gone."""
    name = status_field(_status(pid), b"Name")
    return f"{name} (pid {pid})" if name else f"pid {pid}"


def names_of(pids: Sequence[int]) -> str:
    """Some of them by `name_of`, and how many more there are."""
    shown = ", ".join(name_of(pid) for pid in pids[:3])
    return f"{shown} and {len(pids) - 3} more" if len(pids) > 3 else shown


def _status(pid: int) -> bytes:
    try:
        return _read(f"/proc/{pid}/status")
    except OSError:
        return b""


def opened(pid: int) -> Iterator[Opened]:
    """Open descriptors of a process; those that are closed meanwhile are left out."""
    try:
        numbers = sorted(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
    except OSError:
        return
    for number in numbers:
        path = f"/proc/{pid}/fd/{number}"
        try:
            link, status = os.readlink(path), os.stat(path)
            information = _read(f"/proc/{pid}/fdinfo/{number}")
        except OSError:
            continue
        found = _FLAGS.search(information)
        flags = int(found[1], 8) if found else 0
        pty = status_field(information, b"tty-index") if b"tty-index" in information else ""
        locks = _locks(information) if b"lock:" in information else ()
        writing = flags & os.O_ACCMODE != os.O_RDONLY and not flags & _O_PATH
        slave = int(pty) if pty else None
        yield Opened(
            pid, number, link, status, writing, locks, slave,
            direct=bool(flags & os.O_DIRECT), appending=bool(flags & os.O_APPEND),
        )  # fmt: skip


def _locks(information: bytes) -> tuple[str, ...]:
    """Locks in an fdinfo, e.g. `lock:\t1: FLOCK  ADVISORY  WRITE 359 00:13:11691 0 EOF`."""
    found = re.findall(rb"^lock:\s*\d+:\s+(\S+)\s+\S+\s+(\S+)", information, re.MULTILINE)
    return tuple(sorted({b" ".join(words).decode("ascii", "replace") for words in found}))


def mapped(pid: int, *, written_only: bool = False) -> Iterator[Mapped]:
    """Files that a process has mapped, each once; on request only those that its stores reach."""
    try:
        data = _read(f"/proc/{pid}/maps")
    except OSError:
        return
    if written_only:  # in the freeze, of every process of the tree: parsing the others would take longer than all else
        data = b"\n".join(_WRITTEN.findall(data))
    lines = list(parse_maps(data))
    groups: dict[tuple[bytes, int, bytes], list[Line]] = {}
    for line in lines:
        # the first System V segment has inode 0: its number is that of the segment
        if line.path.startswith(b"/") or (line.inode and line.path):
            groups.setdefault((line.device, line.inode, line.path), []).append(line)
    for group in groups.values():
        writing = any("w" in line.permissions and "s" in line.permissions for line in group)
        found = _mapped_file(pid, group[0]) if writing or not written_only else None
        if found is not None:
            executable = any("x" in line.permissions for line in group)
            yield Mapped(pid, *found, executable, writing)


def _mapped_file(pid: int, line: Line) -> Optional[tuple[str, os.stat_result]]:
    exact = f"/proc/{pid}/map_files/{line.start:x}-{line.end:x}"
    try:
        return os.readlink(exact), os.stat(exact)
    except _GONE:
        pass  # unmapped meanwhile, or one of a kind that has no link: what the line says must do
    except PermissionError:
        pass  # map_files wants CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE; without it, what the line says must do
    path = os.fsdecode(line.path.replace(b"\\012", b"\n"))
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return (path, status) if status.st_ino == line.inode else None


@functools.cache
def shmem_device() -> int:
    """The device number of the kernel's own tmpfs: anonymous shared memory, System V segments and memfds lie there."""
    descriptor = os.memfd_create("migrate")
    try:
        return os.fstat(descriptor).st_dev
    finally:
        os.close(descriptor)


def is_memory(link: str, status: os.stat_result) -> bool:
    """Whether it is no file but shared memory that criu dumps: on the kernel's own tmpfs, or on its own hugetlbfs."""
    if status.st_dev == shmem_device():
        return True
    return status.st_nlink == 0 and link.startswith(("/anon_hugepage", "/memfd:", "/SYSV"))


def is_pty_slave(status: os.stat_result) -> bool:
    """Whether it is /dev/pts/N: majors 136 to 143 (Documentation/admin-guide/devices.txt)."""
    return stat.S_ISCHR(status.st_mode) and 136 <= os.major(status.st_rdev) <= 143


def fate(link: str, status: os.stat_result, root: str = "") -> tuple[str, str]:
    """The path of a file without any ` (deleted)` of the kernel's, and what became of that name.

    "" when it still leads to the file; "ghost" when no name does; "link-remap" when only other names do;
    "dead-process" for what was below /proc/PID of one that has ended. `root` is put before the path to look it up, for
    a process of another mount namespace.
    """
    bare = link[: -len(DELETED)] if link.endswith(DELETED) else link
    if status.st_nlink == 0:
        return bare, "ghost"
    if is_pty_slave(status):
        return bare, ""  # devpts makes and removes names by itself; criu asks nothing of them
    try:
        named = os.stat(root + link, follow_symlinks=not stat.S_ISLNK(status.st_mode))
    except (FileNotFoundError, NotADirectoryError):
        return bare, "dead-process" if re.match(r"/proc/\d+(/|$)", bare) else "link-remap"
    except (OSError, ValueError):
        return (
            link,
            "",
        )  # the path can't be asked (a FUSE file system that shuts root out): so it stays
    if (named.st_dev, named.st_ino) == (status.st_dev, status.st_ino):
        return link, ""
    return bare, "link-remap"


def facts(
    path: str,
    status: os.stat_result,
    uses: Iterable[str],
    *,
    deleted: bool = False,
    names: Optional[Mapping[int, str]] = None,
) -> FileFacts:
    """A status as facts. `build_id` is read when it is a file that is executed. `names` are those of the mounts."""
    kind = KINDS.get(stat.S_IFMT(status.st_mode), "missing")
    used = tuple(sorted(uses))
    wants_id = kind == "regular" and not deleted and not {"exe", "exec"}.isdisjoint(used)
    return FileFacts(
        path=path, kind=kind, size=status.st_size, mode=stat.S_IMODE(status.st_mode), uid=status.st_uid,
        gid=status.st_gid, mtime_ns=status.st_mtime_ns, rdev=status.st_rdev, uses=used, deleted=deleted,
        link_count=status.st_nlink, build_id=elf.build_id(path) if wants_id else "",
        mount=(names or {}).get(status.st_dev, ""), allocated=min(status.st_size, status.st_blocks * 512),
    )  # fmt: skip


@dataclasses.dataclass
class _Entry:
    status: os.stat_result
    fate: str
    uses: set[str]
    pid: int


class Holdings:
    """All that a tree holds; its files once each, however many processes use them."""

    def __init__(self) -> None:
        self.opened: list[Opened] = []
        self.mapped: list[Mapped] = []
        self.memory = 0
        self.copied_on_write = 0
        self._segments: dict[tuple[str, int, int], int] = {}
        self._entries: dict[tuple[str, bool], _Entry] = {}
        self._fates: dict[tuple[str, int, int], tuple[str, str]] = {}

    def add(self, pid: int) -> None:
        """What one process holds. What is gone meanwhile is left out."""
        root = "" if same_namespace(pid, "mnt") else f"/proc/{pid}/root"
        for use in ("exe", "cwd", "root"):
            path = f"/proc/{pid}/{use}"
            try:
                self._note(pid, os.readlink(path), os.stat(path), {use}, root)
            except OSError:
                continue
        for mapping in mapped(pid):
            if mapping.link == _AIO and os.major(mapping.status.st_dev) == 0:
                continue  # the ring of io_setup(2): criu makes it anew
            self.mapped.append(mapping)
            if is_memory(mapping.link, mapping.status):
                self._segment(mapping.link, mapping.status)
                continue
            if not mapping.link.startswith("/"):
                continue  # the rings of io_uring, a socket's: no file
            uses = {"map"} | ({"exec"} if mapping.executable else set()) | ({"write"} if mapping.writing else set())
            self._note(pid, mapping.link, mapping.status, uses, root)
        for one in opened(pid):
            self.opened.append(one)
            if not one.link.startswith("/"):
                continue
            if is_memory(one.link, one.status):
                self._segment(one.link, one.status)
                continue
            self._note(pid, one.link, one.status, {"open"} | ({"write"} if one.writing else set()), root)
        self.memory += private_memory(pid)
        self.copied_on_write += shared_since_fork(pid)

    def _segment(self, link: str, status: os.stat_result) -> None:
        # blocks count what is allocated, swapped pages too; criu dumps a segment once, however many processes map it
        blocks = status.st_blocks * 512
        key = (link, status.st_dev, status.st_ino)  # the number of a System V segment may be another one's inode too
        self.memory += blocks - self._segments.get(key, 0)
        self._segments[key] = blocks

    def _note(self, pid: int, link: str, status: os.stat_result, uses: set[str], root: str) -> None:
        key = (root + link, status.st_dev, status.st_ino)
        if key not in self._fates:
            self._fates[key] = fate(link, status, root)
        path, became = self._fates[key]
        entry = self._entries.setdefault((path, bool(became)), _Entry(status, became, set(), pid))
        entry.uses |= uses

    def files(self) -> Iterator[FileFacts]:
        """Every file system object that has, or had, a path."""
        names = mounts.names(mounts.mountinfo())
        for (path, _), entry in self._entries.items():
            yield facts(path, entry.status, entry.uses, deleted=bool(entry.fate), names=names)

    def fates(self) -> Iterator[tuple[str, str, int, os.stat_result]]:
        """(path, what became of it, pid of one that holds it, status) of each whose name is gone (see `fate`)."""
        for (path, _), entry in self._entries.items():
            if entry.fate:
                yield path, entry.fate, entry.pid, entry.status


def collect(pids: Iterable[int]) -> Holdings:
    """What these processes hold."""
    holdings = Holdings()
    for pid in pids:
        holdings.add(pid)
    return holdings


def same_namespace(pid: int, kind: str) -> bool:
    """Whether a process is in our own namespace of this kind. One that is gone counts so."""
    return namespace(pid, kind) in ("", namespace("self", kind))


def namespace(pid: Union[int, str], kind: str) -> str:
    """What names a process's namespace of this kind, e.g. `mnt:[4026531841]`; "" when it is gone, or has none."""
    try:
        return os.readlink(f"/proc/{pid}/ns/{kind}")
    except OSError:
        return ""


def _read(path: str) -> bytes:
    # not by a file object, which asks for size and position as well: a tree may have many thousand descriptors
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = b""
        while more := os.read(descriptor, 1 << 16):
            data += more
        return data
    finally:
        os.close(descriptor)
