"""How far a drain has come, kept on disk: what has moved where, so that it can go on, and bring everything back.

One JSON file a plan, named after the plan's path, replaced as a whole. Refuses to guess: what can't be read is an
error, since it may be the only list of where the processes are.
"""

from __future__ import annotations

import dataclasses
import enum
import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from migrator import errors

VERSION = 1
LARGEST = 16 << 20
"""Bytes of a file."""
_MOST = 1 << 63
_SHOWN = 80


class Stage(str, enum.Enum):
    """Where a process of a plan is."""

    WAITING = "waiting"
    MOVING = "moving"
    MOVED = "moved"
    FAILED = "failed"  # and it runs where it was, or what its exit code says
    RETURNED = "returned"


@dataclasses.dataclass(frozen=True)
class Standing:
    """One process of a plan."""

    move: str
    """The plan's name of it."""
    pid: int
    started: int
    """Clock ticks since boot."""
    boot: str
    """Id of the boot in which it ran here."""
    name: str
    stage: Stage = Stage.WAITING
    target: str = ""
    target_pid: int = 0
    migration: str = ""
    downtime: float = 0.0
    """Seconds."""
    seconds: float = 0.0
    """From its connection to its end."""
    exit_code: int = 0
    message: str = ""

    @property
    def key(self) -> str:
        """What it is known by: one process, for ever."""
        return f"{self.boot}/{self.pid}/{self.started}"


class Ledger:
    """The processes of one plan, on disk as soon as one of them changes."""

    def __init__(self, path: Path, plan: str, entries: Mapping[str, Standing]) -> None:
        self.path = path
        self.plan = plan
        self._entries = dict(entries)

    @classmethod
    def of(cls, directory: Path, plan: Path) -> Ledger:
        """That of a plan, empty where it has none yet. Raises MigrateError where it can't be read."""
        name = str(plan.resolve())
        path = directory / f"{hashlib.sha256(os.fsencode(name)).hexdigest()[:16]}.json"
        try:
            with open(path, "rb") as file:
                text = file.read(LARGEST)
        except FileNotFoundError:
            return cls(path, name, {})
        except OSError as error:
            raise errors.StateError(f"{path} can't be read: {error.strerror}") from None
        try:
            content = json.loads(text)
            if content["version"] != VERSION:
                raise ValueError(f"its version is {content['version']!r}")
            entries = [_entry(one) for one in content["processes"]]
        except KeyError as error:
            raise _damaged(path, f"{error} is missing, or not known") from None
        except TypeError:
            raise _damaged(path, "it is no list of processes") from None
        except (ValueError, RecursionError) as error:
            raise _damaged(path, str(error)) from None
        return cls(path, name, {entry.key: entry for entry in entries})

    @property
    def entries(self) -> tuple[Standing, ...]:
        """All of them, in the order in which they were first set."""
        return tuple(self._entries.values())

    def get(self, key: str) -> Standing | None:
        """What is known of a process."""
        return self._entries.get(key)

    def set(self, entry: Standing) -> None:
        """Keep this, on disk. Raises StateError: then nothing may begin that would not be remembered."""
        self._entries[entry.key] = entry
        content = {
            "version": VERSION, "plan": self.plan, "processes": [dataclasses.asdict(one) for one in self.entries],
        }  # fmt: skip
        try:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            _replace(self.path, json.dumps(content, indent=1) + "\n")
        except OSError as error:
            raise errors.StateError(f"{self.path} can't be written: {error.strerror}") from None


def _damaged(path: Path, why: str) -> errors.StateError:
    return errors.StateError(
        f"{path} is damaged, or of another version of migrate: {why}",
        hint="it says where the plan's processes are; move it away to begin anew",
    )


_KINDS: dict[str, tuple[type, ...]] = {"int": (int,), "float": (int, float), "str": (str,), "Stage": (str,)}


_NEEDED = ("move", "pid", "started", "boot", "name", "stage")


def _entry(values: Any) -> Standing:
    """Raises ValueError, KeyError."""
    if not isinstance(values, dict):
        raise ValueError(f"a process is {str(values)[:_SHOWN]}")
    kinds = {field.name: field.type for field in dataclasses.fields(Standing)}
    if missing := [name for name in _NEEDED if name not in values]:
        raise ValueError(f"a process has no {missing[0]}")
    for name, value in values.items():
        wanted = _KINDS[str(kinds[name])]
        if not isinstance(value, wanted) or isinstance(value, bool) or not _is_measure(value):
            raise ValueError(f"{name} is {str(value)[:_SHOWN]}")
    return Standing(**{**values, "stage": Stage(values["stage"])})


def _is_measure(value: object) -> bool:
    """Text, or a number that a drain can have kept: a PID, a time, an exit code."""
    return not isinstance(value, (int, float)) or 0 <= value < _MOST


def _replace(path: Path, text: str) -> None:
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    try:
        with open(descriptor, "w", encoding="utf-8", errors="surrogateescape") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
