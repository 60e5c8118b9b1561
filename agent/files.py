"""The files of a tree on this host: what it holds at their paths, and which numbers of the tree are taken. Looks only.

How files come along is `sending.py`'s and `placing.py`'s.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from agent import accounts, addresses, conditions, descriptors, durable, elf, host, mounts, process, service
from agent.protocol import Check, FileFacts, TargetCheck, TaskFacts

_CHUNK = 1 << 18


def check(request: Check, directory: Path) -> TargetCheck:
    """What this host holds of what a tree needs. `directory` is where images go when memory does not suffice."""
    bound, names = _bound_sockets(), mounts.names(mounts.mountinfo())
    return TargetCheck(
        files=tuple(_look(asked, bound, names, digests=request.digests) for asked in request.files),
        taken=_taken(request.ids),
        memory_available=host.memory_available(),
        disk_available=host.disk_available(directory),
        disk_volatile=durable.volatile(directory),
        accounts=accounts.answers(request.accounts),
        addresses=addresses.answers(request.addresses),
        missing_labels=conditions.missing_labels(request.labels),
        taken_terminals=conditions.taken_terminals(request.terminals),
        active_units=service.active(request.units),
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
    known = {"uses": tuple(sorted(uses)), "build_id": build_id, "digest": content, "room": _room(asked)}
    return FileFacts(**{**vars(found), **known})


def _room(asked: FileFacts) -> int:
    """Bytes that root may still write beside the files of a directory; -1 for anything else."""
    if "parent" not in asked.uses:
        return -1
    try:
        found = os.statvfs(asked.path)
    except OSError:
        return -1
    return found.f_bfree * found.f_frsize


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
