"""The files of a tree: what the target holds of them, and the way of those that come along (`--copy-files`).

`check` looks; `send` reads; `receive` is the only one that writes, and only what it was told to expect, beside an
existing file first and over it only when that one is the same, or ours (`ledger.py` knows, and can take it all back).
Never follows a link in the last component of a path, never makes a directory.

**The archive** is a PAX tar, so that `tar tv` reads it. Names are absolute. Own keywords: `MIGRATE.mtime_ns`;
`MIGRATE.gone` marks a path that is no longer there on the source; `MIGRATE.files`, on the nameless last member, is the
number of members before it, without which an archive is not whole.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import stat
import tarfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Optional

from agent import accounts, addresses, conditions, descriptors, elf, host, mounts, process
from agent.ledger import Ledger
from agent.protocol import Check, FileFacts, Moved, TargetCheck, TaskFacts

__all__ = ["FilesError", "Ledger", "check", "receive", "send"]

_MTIME, _GONE, _FILES = "MIGRATE.mtime_ns", "MIGRATE.gone", "MIGRATE.files"
_LAST = "end-of-files"
_CHUNK = 1 << 18
_SETTLED_NS = 1_000_000_000
"""A file changed less than this before it was read could change again within the same tick of its time stamps."""
_ATTEMPTS = 3


class FilesError(Exception):
    """A file could not be copied; the message names it."""


# --- check -----------------------------------------------------------------------------------------------------------


def check(request: Check, directory: Path) -> TargetCheck:
    """What this host holds of what a tree needs. `directory` is where images go when memory does not suffice."""
    bound, names = _bound_sockets(), mounts.names(mounts.mountinfo())
    return TargetCheck(
        files=tuple(_look(asked, bound, names, digests=request.digests) for asked in request.files),
        taken=_taken(request.ids),
        memory_available=host.memory_available(),
        disk_available=host.disk_available(directory),
        accounts=accounts.answers(request.accounts),
        addresses=addresses.answers(request.addresses),
        missing_labels=conditions.missing_labels(request.labels),
        taken_terminals=conditions.taken_terminals(request.terminals),
    )


def _look(asked: FileFacts, bound: set[str], names: dict[int, str], *, digests: bool) -> FileFacts:
    """What is at that path, by stat as criu will see it after opening (open_path in criu/files-reg.c)."""
    uses = set(asked.uses)
    try:
        # a descriptor that means a link itself (O_PATH and O_NOFOLLOW) is opened so again
        status = os.stat(asked.path, follow_symlinks=asked.kind != "link")
    except (OSError, ValueError):  # a NUL in a path is a ValueError
        return FileFacts(asked.path, "missing", 0, 0, 0, 0, 0, 0, tuple(sorted(uses)))
    if asked.path in bound:
        uses.add("bound")
    found = descriptors.facts(asked.path, status, uses - {"exe", "exec"}, names=names)
    build_id = elf.build_id(asked.path) if asked.build_id and found.kind == "regular" else ""
    alike = (found.kind, found.size) == (asked.kind, asked.size) and found.mtime_ns != asked.mtime_ns
    content = digest(asked.path) if digests and found.kind == "regular" and alike and "write" not in uses else ""
    return FileFacts(**{**vars(found), "uses": tuple(sorted(uses)), "build_id": build_id, "digest": content})


def digest(path: str) -> str:
    """sha256 of a file's content; "" where it can't be read."""
    found = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            while data := file.read(_CHUNK):
                found.update(data)
    except OSError:
        return ""
    return found.hexdigest()


def _bound_sockets() -> set[str]:
    """Paths of unix sockets that a process of this host is bound to (proc_pid_net(5))."""
    try:
        lines = Path("/proc/net/unix").read_bytes().split(b"\n")[1:]
    except OSError:
        return set()
    return {os.fsdecode(words[7]) for words in (line.split(None, 7) for line in lines) if len(words) == 8}


def _taken(ids: Iterable[int]) -> tuple[TaskFacts, ...]:
    """Processes whose pid, a tid, pgid or sid is one of these: each of the four keeps a number from being given out."""
    wanted = set(ids)
    found = {_owner(number) for number in wanted}
    for pid in process.pids():
        try:
            known = process.read_stat(pid)
        except process.NoSuchProcess:
            continue
        if not wanted.isdisjoint((known.pgid, known.sid)):
            found.add(pid)
    facts = []
    for pid in sorted(found - {0}):
        try:
            facts.append(process.task_facts(pid))
        except process.NoSuchProcess:
            continue
    return tuple(facts)


def _owner(number: int) -> int:
    """The process that a PID or TID belongs to; 0 where it is free. /proc/TID exists, though no listing shows it."""
    try:
        return int(descriptors.status_field(Path(f"/proc/{number}/status").read_bytes(), b"Tgid"))
    except (OSError, ValueError):
        return 0


# --- send ------------------------------------------------------------------------------------------------------------


def send(paths: Iterable[str], out: BinaryIO, already: dict[str, tuple[int, int]]) -> Moved:
    """Write an archive of those files that changed since `already` (path -> size and ctime in ns) was noted.

    The first call, with an empty `already`, fills it. Later ones are meant for the freeze and note nothing, except that
    what they sent is no longer known. A file that can't be trusted to show a change is not noted and goes again:
    one that changed within the last second, that shrank while it was read, or that anybody has mapped to write to.

    Raises FilesError, or OSError of `out`.
    """
    first = not already
    mapped: Optional[set[tuple[int, int]]] = None
    archive = tarfile.TarFile(
        fileobj=_Forward(out), mode="w", format=tarfile.PAX_FORMAT, encoding="utf-8", errors="surrogateescape"
    )
    members = files = size = 0
    for path in paths:
        for _ in range(_ATTEMPTS):
            sent = _send_one(archive, path, already.get(path))
            members += sent is not None
            if sent is None or sent.whole:
                break
        else:
            raise FilesError(f"{path}: shrank while it was read, {_ATTEMPTS} times")
        if sent is None:
            continue
        already.pop(path, None)
        if sent.status is None:
            continue
        files += 1
        size += sent.status.st_size
        if not first or sent.read_at - sent.status.st_ctime_ns < _SETTLED_NS:
            continue
        mapped = _mapped_to_write() if mapped is None else mapped
        if (sent.status.st_dev, sent.status.st_ino) not in mapped:
            already[path] = (sent.status.st_size, sent.status.st_ctime_ns)
    archive.addfile(_member(_LAST, {_FILES: str(members)}))
    archive.close()
    out.flush()
    return Moved(files, size)


class _Forward(io.RawIOBase):
    """A stream that is only ever written. tarfile's own stream mode would write once more when it is thrown away."""

    def __init__(self, out: BinaryIO) -> None:
        super().__init__()
        self._out = out
        self._position = 0

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self._position += len(data)
        return self._out.write(data)

    def tell(self) -> int:
        return self._position


class _Sent:
    """A member that was written. `status` is None for a file that is gone."""

    def __init__(self, status: Optional[os.stat_result], read_at: int = 0, whole: bool = True) -> None:
        self.status = status
        self.read_at = read_at
        self.whole = whole


class _Exactly:
    """What is asked of a file that others may write to: zeros for what is no longer there."""

    def __init__(self, descriptor: int, path: str) -> None:
        self._descriptor = descriptor
        self._path = path
        self.short = False

    def read(self, size: int = 0) -> bytes:
        """Always that many bytes, as tarfile demands."""
        parts = []
        while size:
            try:
                data = os.read(self._descriptor, size)
            except OSError as error:
                raise FilesError(f"{self._path}: {error.strerror}") from error
            if not data:
                self.short = True
                data = bytes(size)
            parts.append(data)
            size -= len(data)
        return b"".join(parts)


def _send_one(archive: tarfile.TarFile, path: str, known: Optional[tuple[int, int]]) -> Optional[_Sent]:
    """Write one file, unless it is the one that is known already: then None."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            archive.addfile(_member(path, {_GONE: "1"}))
            return _Sent(None)
        raise FilesError(f"{path}: {error.strerror}") from error
    try:
        read_at = time.time_ns()
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise FilesError(f"{path}: is no regular file any more")
        if known == (status.st_size, status.st_ctime_ns):
            return None
        member = _member(path, {_MTIME: str(status.st_mtime_ns)})
        member.size, member.mode = status.st_size, stat.S_IMODE(status.st_mode)
        member.uid, member.gid, member.mtime = status.st_uid, status.st_gid, max(0, int(status.st_mtime))
        content = _Exactly(descriptor, path)
        archive.addfile(member, content)
        return _Sent(status, read_at, not content.short)
    finally:
        os.close(descriptor)


def _member(name: str, keywords: dict[str, str]) -> tarfile.TarInfo:
    member = tarfile.TarInfo(name)
    member.pax_headers = keywords
    return member


def _mapped_to_write() -> set[tuple[int, int]]:
    """(device, inode) of each file that a process of this host has mapped shared and writable.

    Stores into a page that is dirty already leave the time stamps alone, so these may change unseen.
    """
    found = set()
    for pid in process.pids():
        for mapping in descriptors.mapped(pid, written_only=True):
            found.add((mapping.status.st_dev, mapping.status.st_ino))
    return found


# --- receive ---------------------------------------------------------------------------------------------------------


def receive(paths: Iterable[str], source: BinaryIO, ledger: Ledger) -> Moved:
    """Read an archive of `send` and put its files in place. Nothing but these paths is accepted.

    Raises FilesError, OSError with ENOSPC, or ConnectionError when the archive ends early. What was put in place until
    then stays in the ledger, for `Ledger.undo`.
    """
    allowed = set(paths)
    for path in allowed:
        if not path.startswith("/") or path != os.path.normpath(path) or path == "/":
            raise FilesError(f"{path}: not a plain absolute path")
    members = files = size = 0
    whole = False
    directories: set[str] = set()
    try:
        # its own record size: reading more at once could wait for bytes that nobody will send
        archive = tarfile.open(  # noqa: SIM115  reads a stream that is the caller's
            fileobj=source, mode="r|", bufsize=tarfile.RECORDSIZE, encoding="utf-8", errors="surrogateescape"
        )
        for member in archive:
            if whole:
                raise FilesError("the archive of files goes on after its end")
            if _FILES in member.pax_headers:
                if member.pax_headers[_FILES] != str(members):
                    raise FilesError(f"the archive announces {member.pax_headers[_FILES]} files and has {members}")
                whole = True
                continue
            members += 1
            if member.name not in allowed:
                raise FilesError(f"{member.name}: was not to be sent")
            if not member.isreg() or member.sparse is not None:
                raise FilesError(f"{member.name}: is no regular file in the archive")
            if _GONE in member.pax_headers:
                left = ledger.take_back(member.name)
                if left:
                    raise FilesError(left)
                continue
            _receive_one(archive, member, ledger)
            directories.add(os.path.dirname(member.name))
            files += 1
            size += member.size
    except tarfile.TarError as error:
        raise ConnectionError(f"the archive of files is broken: {error}") from error
    if not whole:
        raise ConnectionError("the archive of files ended early")
    for directory in directories:
        _sync_directory(directory)
    return Moved(files, size)


def _receive_one(archive: tarfile.TarFile, member: tarfile.TarInfo, ledger: Ledger) -> None:
    path = member.name
    mtime = member.pax_headers.get(_MTIME, "")
    if not mtime.lstrip("-").isdigit():
        raise FilesError(f"{path}: has no time of change in the archive")
    _refuse_different(path, member.size, int(mtime), ledger)
    content = archive.extractfile(member)
    if content is None:
        raise FilesError(f"{path}: has no content in the archive")
    temporary = ledger.temporary_beside(path)
    placed = False
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with open(descriptor, "wb", buffering=0) as file:
            while chunk := content.read(_CHUNK):
                _write(file.fileno(), chunk)
            os.fchown(file.fileno(), member.uid, member.gid)
            os.fchmod(file.fileno(), stat.S_IMODE(member.mode))  # after chown, which clears set-id bits
            os.utime(file.fileno(), ns=(int(mtime), int(mtime)))
            os.fsync(file.fileno())
        ledger.place(temporary, path)
        placed = True
    except ConnectionError:
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise OSError(errno.ENOSPC, "no room", path) from error
        raise FilesError(f"{path}: {error.strerror or error}") from error
    finally:
        if not placed:
            ledger.discard(temporary)


def _refuse_different(path: str, size: int, mtime_ns: int, ledger: Ledger) -> None:
    try:
        there = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise FilesError(f"{path}: {error.strerror}") from error
    if not stat.S_ISREG(there.st_mode):
        raise FilesError(f"{path}: is there already, and is no regular file")
    if not ledger.owns(path) and (there.st_size, there.st_mtime_ns) != (size, mtime_ns):
        raise FilesError(f"{path}: is there already and differs; move it away if it is not needed")


def _write(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]


def _sync_directory(path: str) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
