"""What we put on this host's file systems in one migration, so that all of it can be taken back.

Owns the temporary and saved names beside the files (`.migrate-*`). Replaces nothing that it has not saved before, and
takes back nothing that somebody else has replaced since. With a record on disk (JSON, one act a line, written before
the act) another process can take back what a dead agent did.
"""

from __future__ import annotations

import dataclasses
import json
import os
import secrets
import stat
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Optional

from agent import anchor
from agent.disk import to_disk

PREFIX = ".migrate-"


@dataclasses.dataclass
class _Entry:
    temporary: str  # where it lies until it is placed: there no longer, so it was
    saved: str  # where that lies which was there before; "" where there was nothing
    identity: tuple[int, int]  # device and inode of what we put there


class Ledger:
    """The files of one migration on this host, by paths without links in their directories (`anchor.settled`)."""

    def __init__(self, record: Optional[Path] = None) -> None:
        self._record = record
        self._entries: dict[str, _Entry] = {}
        self._temporary: set[str] = set()
        self._damaged = False

    @classmethod
    def read(cls, record: Path) -> Ledger:
        """The ledger that a record tells of; an empty one where there is none. A torn last line was never acted on.

        A line that is no act of ours is not acted on either: `undo` and `keep` name the record then.
        """
        ledger = cls(record)
        try:
            lines = record.read_bytes().split(b"\n")[:-1]
        except FileNotFoundError:
            return ledger
        for line in lines:
            try:
                ledger._did(json.loads(line))
            except (ValueError, KeyError, TypeError, RecursionError):
                ledger._damaged = True
        return ledger

    def _did(self, act: dict[str, Any]) -> None:
        """One line of a record. Raises KeyError, TypeError or ValueError for what is no act of ours."""
        if act["act"] == "temporary":
            self._temporary.add(_ours(act["name"]))
        elif act["act"] == "place":
            path, temporary, saved = act["path"], _ours(act["temporary"]), act["saved"] and _ours(act["saved"])
            self._entries[path] = _Entry(temporary, saved, (int(act["device"]), int(act["inode"])))
            self._temporary.discard(saved)
        elif act["act"] == "forget":
            self._entries.pop(act["path"], None)
        else:
            raise ValueError("no act of ours")

    @property
    def names(self) -> set[str]:
        """All temporary and saved names, wherever they lie."""
        placed = {name for entry in self._entries.values() for name in (entry.temporary, entry.saved) if name}
        return self._temporary | placed

    def _write(self, *acts: dict[str, object], durable: bool = False) -> None:
        if self._record is None or not acts:
            return
        with self._record.open("a") as file:
            file.write("".join(json.dumps(act) + "\n" for act in acts))
            file.flush()
            if durable:
                os.fsync(file.fileno())

    def temporary_beside(self, path: str) -> str:
        """A new name in the same directory, for `place` later. The caller makes the file."""
        name = os.path.join(os.path.dirname(path), PREFIX + secrets.token_hex(8))
        self._write({"act": "temporary", "name": name})
        self._temporary.add(name)
        return name

    def ready(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Be ready to rename these files, each (temporary, path), save what is there, and have it on disk. OSError.

        Before the freeze, and for all at once: with a record for each that would take longer than all else. Those that
        are ready already are left out.
        """
        acts: list[dict[str, object]] = []
        entries = {}
        for temporary, path in pairs:
            if path in self._entries:
                continue
            saved = ""
            with anchor.at(path) as here:
                if os.path.lexists(here):
                    saved = self.temporary_beside(path)
                    os.link(here, anchor.beside(here, saved), follow_symlinks=False)
                status = os.lstat(anchor.beside(here, temporary))
            entries[path] = _Entry(temporary, saved, (status.st_dev, status.st_ino))
            act = {"act": "place", "path": path, "temporary": temporary, "saved": saved}
            acts.append({**act, "device": status.st_dev, "inode": status.st_ino})
        self._write(*acts, durable=True)
        self._entries.update(entries)
        self._temporary -= {entry.saved for entry in entries.values()}

    def place(self, path: str) -> None:
        """Rename a file that is ready to its path. Raises OSError."""
        temporary = self._entries[path].temporary
        with anchor.at(path) as here:
            os.rename(anchor.beside(here, temporary), here)
        self._temporary.discard(temporary)

    @property
    def beside(self) -> tuple[str, ...]:
        """The temporary and saved names that are there now."""
        names = {name for entry in self._entries.values() for name in (entry.temporary, entry.saved) if name}
        return tuple(name for name in sorted(names | self._temporary) if os.path.lexists(name))

    @property
    def placed(self) -> tuple[str, ...]:
        """The paths that hold what we put there."""
        return tuple(path for path, entry in sorted(self._entries.items()) if _identity(path) == entry.identity)

    def take_back(self, path: str) -> str:
        """Make one path what it was before; what could not be done, in words, or "". Does nothing if it is not ours."""
        entry = self._entries.get(path)
        if entry is None:
            return ""
        try:
            with anchor.at(path) as here:
                there, saved = _identity(here), entry.saved and anchor.beside(here, entry.saved)
                if os.path.lexists(anchor.beside(here, entry.temporary)):
                    left = _remove(entry.saved) if entry.saved else ""  # it never came to the rename
                    if left:
                        return left
                elif there not in (entry.identity, None):
                    return _put_aside(path, entry.saved)
                elif saved and os.path.lexists(saved):
                    os.replace(saved, here)
                elif there is not None and not saved:
                    os.unlink(here)
        except OSError as error:
            return f"{path}: could not be made what it was before: {error.strerror}"
        self._write({"act": "forget", "path": path})
        del self._entries[path]
        return ""

    def undo(self) -> tuple[str, ...]:
        """Make every path what it was before. What could not be done, in words."""
        left = [self.take_back(path) for path in list(self._entries)]
        return tuple(filter(None, left)) + self._remove_temporary()

    def settle(self) -> tuple[str, ...]:
        """Put what came on disk. What could not be done, in words."""
        return tuple(filter(None, (_settled(path, entry.identity) for path, entry in self._entries.items())))

    def keep(self) -> tuple[str, ...]:
        """The migration succeeded: put what came on disk, remove what was saved. What could not be done, in words."""
        left = self.settle()
        self._temporary |= {entry.saved for entry in self._entries.values() if entry.saved}
        self._entries.clear()
        return left + self._remove_temporary()

    def _remove_temporary(self) -> tuple[str, ...]:
        left = [_remove(name) for name in sorted(self._temporary)]
        self._temporary.clear()
        if self._damaged:
            left.append(f"{self._record} is damaged: look for {PREFIX}* beside the files that came along")
        return tuple(filter(None, left))


def _ours(name: str) -> str:
    """A name that we may have made up. Raises ValueError for any other."""
    if not os.path.isabs(name) or "\0" in name or not os.path.basename(name).startswith(PREFIX):
        raise ValueError(f"{name!r} is no name of ours")
    return name


def _settled(path: str, identity: tuple[int, int]) -> str:
    """Content and name; what did not get there, in words. What the tree has replaced since is its own business."""
    try:
        with anchor.at(path) as here:
            if _identity(here) != identity or not stat.S_ISREG(os.lstat(here).st_mode):
                return ""
            for name in (here, os.path.dirname(here)):
                to_disk(name)
    except FileNotFoundError:
        return ""
    except OSError as error:
        return f"{path}: may not be on disk yet: {error.strerror}"
    return ""


def _put_aside(path: str, saved: str) -> str:
    hint = f"; what was there before lies in {saved}" if saved else ""
    return f"{path}: somebody else replaced it after it was copied here, so it stays{hint}"


def _identity(path: str) -> Optional[tuple[int, int]]:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return (status.st_dev, status.st_ino)


def _remove(name: str) -> str:
    try:
        with anchor.at(name) as here:
            os.unlink(here)
    except FileNotFoundError:
        pass
    except OSError as error:
        return f"{name}: {error.strerror}"
    return ""
