"""Fsynced record of each migration: what this host has decided, readable after any crash. It acts on nothing.

One directory a migration below the state directory, and in it `journal`: a JSON object a line, `record` first, so that
the hold script can read it in sh. The names in capitals are the commit's own (DESIGN: the commit, exactly); those in
small letters are facts for recovery. A line without its newline was never written, nor was one that ends with a `?`:
whoever comes after a writer that died over a line ends it so. Nothing that others have written is ever taken away.

The agent that owns a migration holds a lock on the file for as long as it lives: who gets the lock knows that the owner
is gone.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import fcntl
import json
import math
import os
import re
import time
from pathlib import Path
from typing import Any, Optional

from agent.disk import to_disk

STATE_DIRECTORY = Path("/var/lib/migrate")
KEPT = 50
"""So many finished migrations keep their journal and logs."""


ROOM = 64 * 1024
"""Bytes that a journal gets first: a disk that fills up later cannot keep a decision from being written."""

TORN = "?"
"""What is put at the end of a line whose writer died over it: records end with a brace."""

_ID = re.compile(r"\d{8}-\d{6}-[0-9a-f]{6}", re.ASCII)
_KEEP_SIZE = 1  # FALLOC_FL_KEEP_SIZE, linux/falloc.h
_libc = ctypes.CDLL(None, use_errno=True)


class Record(str, enum.Enum):
    """The decisions, in the order in which each host may write them."""

    BEGIN = "BEGIN"  # source: the tree is locked
    FROZEN = "FROZEN"
    COMMIT = "COMMIT"
    KILLED = "KILLED"
    PREPARED = "PREPARED"  # target
    HELD = "HELD"
    RESUMING = "RESUMING"
    RESUMED = "RESUMED"
    ABORT = "ABORT"
    DEPOSED = "DEPOSED"  # source: undone here, and given to the target meanwhile by an operator's word
    DONE = "DONE"


MAY_FOLLOW = {
    "source": {
        None: {Record.BEGIN},
        Record.BEGIN: {Record.FROZEN, Record.ABORT},
        Record.FROZEN: {Record.COMMIT, Record.ABORT},
        Record.COMMIT: {Record.KILLED},
        Record.KILLED: {Record.DONE},
        Record.ABORT: {Record.DONE, Record.DEPOSED},
        Record.DEPOSED: {Record.KILLED},
        Record.DONE: set[Record](),
    },
    "target": {
        None: {Record.PREPARED},
        Record.PREPARED: {Record.HELD, Record.ABORT},
        Record.HELD: {Record.HELD, Record.RESUMING, Record.ABORT},
        Record.RESUMING: {Record.RESUMED},
        Record.RESUMED: {Record.DONE},
        Record.ABORT: {Record.DONE},
        Record.DONE: set[Record](),
    },
}
"""Role -> last decision -> what may be decided next. The order of a migration stands here and nowhere else."""

FIRST = {"source": "BEGIN", "target": "PREPARED"}
"""The first line of a journal, by role."""


class JournalError(Exception):
    """The journal forbids this act, is not there, or belongs to a living agent."""


class Damaged(JournalError):
    """What stands in the journal no agent has written: its disk is damaged, or somebody has edited it."""


class IdTaken(JournalError):
    """This host has had a migration of this id before."""


class WrongOrder(Exception):
    """A command that makes no sense at this point of a migration."""


def _reserve(descriptor: int) -> None:
    """Give a file its blocks without a byte in it. Raises OSError where there is no room."""
    if _libc.fallocate(descriptor, _KEEP_SIZE, ctypes.c_long(0), ctypes.c_long(ROOM)) != 0:
        number = ctypes.get_errno()
        if number not in (errno.EOPNOTSUPP, errno.ENOSYS):  # a file system that can't (NFS, say): then without
            raise OSError(number, os.strerror(number), f"/proc/self/fd/{descriptor}")


def check_name(migration: str) -> str:
    """A migration's id is one path component of letters, digits and dashes; anything else raises JournalError."""
    if not migration or len(migration) > 64 or not all(c.isascii() and (c.isalnum() or c == "-") for c in migration):
        raise JournalError(f"{migration!r} is not the id of a migration")
    return migration


_KINDS: dict[str, type] = {
    "id": str, "role": str, "peer": str, "boot": str, "directory": str, "shared": str, "terminal": str, "path": str,
    "root": int, "pid": int, "start": int, "number": int, "namespace": int, "on_disk": bool, "durable": bool,
    "options": dict, "time": float, "address": str, "word": str, "scope": dict, "logged": list, "lost": bool,
    "images": str, "locks": str, "ice": str, "keep": str, "unit": str, "main": int, "watchdog": int, "ptys": list,
    "table": str,
}  # fmt: skip
_NUMBERS = ("agent",)
_PROGRAM = frozenset(("pid", "start"))
_NEEDED = {"criu": _PROGRAM, "hook": _PROGRAM, "rsync": _PROGRAM, "lock": {"table"}, "address": {"address"}}
"""What lines must say that others read: of a program, whether it lives; of an address that moves, what to undo."""
_PAIRS = ("tasks",)
_LARGEST = 1 << 63
"""Details of lines by their types: others are read by nobody but who wrote them."""


def _read(path: Path, number: int, line: bytes) -> dict[str, Any]:
    """One line. Raises Damaged."""
    try:
        said = json.loads(line)
        name = said["record"]
        well = isinstance(name, str) and (not name.isupper() or name in Record.__members__)
        well &= _NEEDED.get(name, set()) <= said.keys()
        for key, value in said.items():
            well &= type(value) is _KINDS.get(key, type(value)) and not (type(value) is int and abs(value) >= _LARGEST)
            well &= type(value) is not float or math.isfinite(value)
            well &= key not in _NUMBERS or _numbers(value)
            well &= key != "migrate" or value is None or _numbers(value)
            well &= key != "floating" or (isinstance(value, list) and all(map(_moves, value)))
            well &= key not in _PAIRS or (isinstance(value, list) and all(map(_numbers, value)))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        well = False
    if not well:
        raise Damaged(f"{path} is damaged in line {number}: mend that line, or end the migration by hand")
    return dict(said)


def _numbers(value: object) -> bool:
    return (
        isinstance(value, list) and len(value) == 2 and all(type(one) is int and 0 <= one < _LARGEST for one in value)
    )


def _moves(value: object) -> bool:
    """Whether it is an address, its prefix and an interface."""
    return isinstance(value, list) and [type(one) for one in value] == [str, int, str]


def check_id(migration: str) -> str:
    """An id as `migrate` makes it, which no file or directory of anybody else is called: where a migration's directory
    is removed, nothing else can be meant. Anything else raises JournalError."""
    if not _ID.fullmatch(migration):
        raise JournalError(f"{migration[:80]!r} is not the id of a migration")
    return migration


class Journal:
    """One migration's journal, open. Made by `create` or `load`."""

    def __init__(self, directory: Path, descriptor: int, lines: list[dict[str, Any]]) -> None:
        self.directory = directory
        self.path = directory / "journal"
        self._descriptor = descriptor
        self._lines = lines

    @classmethod
    def create(cls, state: Path, migration: str, role: str, **details: object) -> Journal:
        """Begin a migration's journal and lock it. Raises IdTaken when the id was used before on this host."""
        directory = state / check_name(migration)
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            directory.mkdir(mode=0o700)
        except FileExistsError:
            raise IdTaken(f"migration {migration} was here before: {directory}") from None
        descriptor = os.open(directory / "journal", os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND, 0o600)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            _reserve(descriptor)
        except OSError as error:
            os.close(descriptor)
            (directory / "journal").unlink()
            directory.rmdir()
            raise OSError(error.errno, os.strerror(error.errno or 0), str(state)) from None
        journal = cls(directory, descriptor, [])
        journal._append({"record": FIRST[role], "time": time.time(), "role": role, "id": migration, **details})
        to_disk(directory)
        to_disk(state)
        return journal

    @classmethod
    def load(cls, state: Path, migration: str) -> Journal:
        """Open the journal of an earlier migration for reading. Raises JournalError when there is none."""
        directory = state / check_name(migration)
        try:
            descriptor = os.open(directory / "journal", os.O_RDWR | os.O_APPEND)
        except FileNotFoundError:
            raise JournalError(f"this host has no journal of migration {migration} in {state}") from None
        journal = cls(directory, descriptor, [])
        try:
            journal.reload()
            if not journal._lines:
                raise JournalError(f"the journal of migration {migration} is empty: it never began")
            begun = journal._lines[0]["record"] == FIRST.get(journal.role)
            if not begun or journal.migration != migration:
                raise Damaged(f"{journal.path} is damaged: its first line is not that of migration {migration}")
        except BaseException:
            journal.close()
            raise
        return journal

    def reload(self) -> int:
        """Read what another agent has written since; the number of bytes of a torn last line.

        Raises Damaged.
        """
        with open(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            whole, _, torn = file.read().rpartition(b"\n")
        lines = enumerate(whole.split(b"\n"), 1)
        self._lines = [_read(self.path, at, line) for at, line in lines if line and not line.endswith(TORN.encode())]
        if self._lines and not set(self.records) <= MAY_FOLLOW.get(self.role, {}).keys():
            raise Damaged(f"{self.path} is damaged: it has records that are not for a {self.role}")
        return len(torn)

    def take_over(self) -> None:
        """Become the owner, of what stands there now. Raises JournalError while another agent lives that owns it."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise JournalError(f"another agent is still at work on migration {self.migration}") from None
        if self.reload():
            # the next record must begin a line of its own. Not cut off: the hook may be appending its ABORT just now
            os.write(self._descriptor, f"{TORN}\n".encode())

    @property
    def owned_elsewhere(self) -> bool:
        """Whether a living agent owns this journal (asked of one that was loaded)."""
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        return False

    @property
    def migration(self) -> str:
        """Its id."""
        return str(self._lines[0].get("id"))

    @property
    def role(self) -> str:
        """source or target."""
        return str(self._lines[0].get("role"))

    @property
    def first(self) -> dict[str, Any]:
        """What it began with. Raises Damaged where that is not all there."""
        missing = [name for name in ("peer", "root", "boot") if name not in self._lines[0]]
        if missing:
            raise Damaged(f"{self.path} is damaged: its first line does not say {missing[0]}")
        return self._lines[0]

    @property
    def lines(self) -> tuple[dict[str, Any], ...]:
        """Decisions and facts as they stand there, oldest first."""
        return tuple(self._lines)

    @property
    def records(self) -> tuple[Record, ...]:
        """The decisions so far, oldest first."""
        return tuple(Record(line["record"]) for line in self._lines if line["record"].isupper())

    @property
    def last(self) -> Optional[Record]:
        """The latest decision."""
        records = self.records
        return records[-1] if records else None

    def has(self, record: Record) -> bool:
        """Whether this was ever decided."""
        return record in self.records

    def facts(self, name: str) -> dict[str, Any]:
        """The newest line of this name, decision or fact; empty when there is none."""
        return next((line for line in reversed(self._lines) if line["record"] == name), {})

    def all_facts(self, name: str) -> list[dict[str, Any]]:
        """Every line of this name, oldest first."""
        return [line for line in self._lines if line["record"] == name]

    def may(self, record: Record) -> bool:
        """Whether the order of decisions allows this one now."""
        if record is Record.DEPOSED and not self.has(Record.FROZEN):
            return False  # no target ever had all of it
        return record in MAY_FOLLOW[self.role][self.last]

    def write(self, record: Record, **details: object) -> None:
        """Decide: on return the record is on disk. Raises JournalError when the order forbids it."""
        last = self.last
        if not self.may(record):
            raise JournalError(f"{record.value} may not follow {last.value if last else 'nothing'}")
        self._append({"record": record.value, "time": time.time(), **details})
        if record is Record.DONE:
            # nothing follows: what was reserved and not needed goes back
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size)

    def note(self, name: str, **details: object) -> None:
        """Keep a fact for recovery, as durable as a decision. `name` is in small letters."""
        self._append({"record": name, "time": time.time(), **details})

    def jot(self, name: str, **details: object) -> None:
        """Keep a fact that says nothing any more after a reboot, so that nobody has to wait for the disk."""
        self._append({"record": name, "time": time.time(), **details}, durable=False)

    def _append(self, line: dict[str, Any], *, durable: bool = True) -> None:
        data = json.dumps(line, separators=(",", ":")).encode("ascii") + b"\n"
        written = os.write(self._descriptor, data)
        if written != len(data):
            # a torn line counts as never written (see load); take it back so that the next one is whole
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
            raise JournalError(f"the disk is full: {self.path} can't be written")
        try:
            if durable:
                os.fsync(self._descriptor)
        except OSError:
            # not on disk, so not decided: nor may the hook, or another agent, read it in the file
            os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
            raise
        self._lines.append(line)

    def close(self) -> None:
        """Give the lock back."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def unfinished(state: Path) -> tuple[str, ...]:
    """Ids of the migrations here that have no DONE, newest first. Of a damaged journal nobody knows that it has one."""
    found: list[tuple[float, str]] = []
    for path in journals(state):
        try:
            journal = Journal.load(state, path.parent.name)
        except Damaged:
            found.append((path.stat().st_mtime, path.parent.name))
            continue
        except (JournalError, OSError):
            continue
        if not journal.has(Record.DONE):
            found.append((path.stat().st_mtime, journal.migration))
        journal.close()
    return tuple(name for _, name in sorted(found, reverse=True))


def journals(state: Path) -> list[Path]:
    """The journal of every migration that was ever here and is not forgotten."""
    try:
        return [entry / "journal" for entry in state.iterdir() if (entry / "journal").is_file()]
    except FileNotFoundError:
        return []


def prune(state: Path, keep: int = KEPT) -> None:
    """Forget the oldest finished migrations beyond `keep`: their journal and logs."""
    finished: list[tuple[float, Path]] = []
    open_ones = set(unfinished(state))
    for path in journals(state):
        if path.parent.name not in open_ones:
            finished.append((path.stat().st_mtime, path.parent))
    for _, directory in sorted(finished, reverse=True)[keep:]:
        for file in directory.iterdir():
            if not file.is_dir():
                file.unlink()
        try:
            directory.rmdir()
        except OSError:  # something that is not ours lies in there: leave it
            continue
