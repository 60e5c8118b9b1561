"""Processes of ours on this host, told by their command lines, whoever started them and when. It signals none.

What a crash has left has no parent that knows it and perhaps no journal: only its own words say what it is. They are
compared as whole arguments in their places, so that an editor or a `grep` that names our files is none of ours.
"""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Optional

from agent import process
from agent.settings import Settings
from agent.throttle import SCRIPT

AGENT, HOOK, PAGER, RELAY, GUARD, MAKER, HOLDER = "agent", "hook", "pager", "relay", "guard", "maker", "holder"
PAGE_SERVER = "page-server"
_CRIU = ("dump", "pre-dump", "restore", PAGE_SERVER, "dedup")
_ALONE = "--no-default-config"
"""The first option of each criu of ours, and of nobody else's (criu.py)."""
_ROLES = {"pager": (PAGER, 2), "relay": (RELAY, 1), "namespace": (MAKER, 1), "holder": (HOLDER, 1)}
"""Word of `__main__` -> what it makes of a process, and which argument behind it names the migration."""
_ARCHIVE = re.compile(r"/agent-[0-9a-f]{16}\.pyz$")
_WRITES = 0o3
"""O_ACCMODE."""


@dataclasses.dataclass(frozen=True)
class Process:
    """One of them."""

    kind: str
    pid: int
    start: int
    migration: str  # "" where its words do not say


def migration_of(word: str, settings: Settings) -> str:
    """The migration that a path of ours belongs to; "" for any other word."""
    for place in (settings.state, settings.run):
        if word.startswith(f"{place}/"):
            name = word[len(str(place)) + 1 :].split("/")[0]
            return re.sub(r"\.(socket|terminal)$", "", name)
    return ""


def classify(words: Sequence[str], settings: Settings) -> Optional[tuple[str, str]]:
    """(kind, migration) of a process with this command line; None when it is none of ours."""
    if os.path.basename(words[0]) == "sudo":
        return None  # it goes with what it has started
    if len(words) == 2 and os.path.basename(words[1]) in ("hold", SCRIPT):
        name = migration_of(words[1], settings)
        kind = HOOK if os.path.basename(words[1]) == "hold" else GUARD
        return (kind, name) if words[1] == str(settings.state / name / os.path.basename(words[1])) else None
    if "serve" in words and "--build" in words:
        ours = any(_ARCHIVE.search(word) or "migrate-boot" in word for word in words)
        return (AGENT, "") if ours else None
    for place, word in enumerate(words):
        kind, argument = _ROLES.get(word, ("", 0))
        if kind and place + argument < len(words) and (name := migration_of(words[place + argument], settings)):
            return kind, name
    for before, word in zip(words, words[1:]):
        if word == _ALONE and before in _CRIU:
            name = next(filter(None, (migration_of(each, settings) for each in words)), "")
            return (before if before == PAGE_SERVER else f"criu {before}"), name
    return None


def processes(settings: Settings) -> list[Process]:
    """All of them but ourselves. Those in another PID namespace, a container say, only where we have their journal."""
    found = []
    here = _namespace(os.getpid())
    for pid in process.pids():
        words = _words(pid)
        known = classify(words, settings) if words and pid != os.getpid() else None
        if known is None:
            continue
        kind, name = known
        if _namespace(pid) != here and not (name and (settings.state / name).is_dir()):
            continue
        try:
            if not process.is_zombie(pid):
                found.append(Process(kind, pid, process.start_time(pid), name))
        except process.NoSuchProcess:
            continue
    return found


def hook_below(pid: int, script: str) -> dict[str, int]:
    """PID and start time, as journals keep them, of the hook that a criu, started by `pid` or `pid` itself, is in.

    Nearest first: the hook is a child of criu, and what criu has restored can be large. Zeros where there is none.
    """
    row = [pid]
    while row:
        row = [child for each in row for child in process.children(each)]
        for child in row:
            if _words(child)[1:2] == [script]:
                try:
                    return {"pid": child, "start": process.start_time(child)}
                except process.NoSuchProcess:
                    continue
    return {"pid": 0, "start": 0}


def _words(pid: int) -> list[str]:
    try:
        data = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return []
    return [os.fsdecode(word) for word in data.split(b"\0")[:-1]]


def _namespace(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")
    except OSError:
        return ""


class Descriptors:
    """What every process has open, read once."""

    def __init__(self) -> None:
        self._open: dict[str, list[tuple[int, str]]] = {}
        for pid in process.pids():
            try:
                names = os.listdir(f"/proc/{pid}/fd")
            except OSError:
                continue
            for name in names:
                try:
                    self._open.setdefault(os.readlink(f"/proc/{pid}/fd/{name}"), []).append((pid, name))
                except OSError:
                    continue

    def holders(self, path: Path) -> set[int]:
        """The processes that have this file open."""
        return {pid for pid, _ in self._open.get(str(path), [])}

    def attended(self, pid: int) -> bool:
        """Whether anybody is there who could still speak to an agent: who has the other end of its input."""
        try:
            ours = os.readlink(f"/proc/{pid}/fd/0")
            if not ours.startswith("pipe:"):
                return process.read_stat(pid).ppid > 1
        except OSError:
            return False
        return any(other != pid and _may_write(other, name) for other, name in self._open.get(ours, []))


def _may_write(pid: int, descriptor: str) -> bool:
    try:
        lines = Path(f"/proc/{pid}/fdinfo/{descriptor}").read_text().splitlines()
    except OSError:
        return False
    flags = next((int(line.split()[1], 8) for line in lines if line.startswith("flags:")), 0)
    return flags & _WRITES != os.O_RDONLY
