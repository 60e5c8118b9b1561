"""What earlier migrations to a host cost, kept on the source so that the next prediction of downtime is a measured one.

Owns one small JSON file and the smoothing of what stands in it. It is a memory, never a need: missing, damaged, absurd,
unreadable or unwritable, it gives typical figures and says so in the log; two migrations that end at once may lose one
measurement, and never the file, which is replaced whole.

It lies in `/var/lib/migrate` for root, else in the user's own state directory (XDG_STATE_HOME, by default
`~/.local/state`), since `migrate` may run as a plain user while only its agents are root.

    {"version": 1, "hosts": {"root@db2": {"fixed_seconds": 0.061, …, "samples": 4}}}
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import logging
import math
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from migrator.kept import NAME as REPORTS
from migrator.kept import Reports
from migrator.phases import Round
from migrator.precopy import SHORTEST_INTERVAL, TELLING, Costs, rate
from migrator.replacing import replace

STATE_OF_ROOT = Path("/var/lib/migrate")
NAME = "history.json"
VERSION = 1
LARGEST = 256 * 1024
"""Bytes; a larger file is none of ours."""
HOSTS = 200
"""So many hosts are remembered; the one that was longest not migrated to is forgotten first."""

SMOOTHING = 0.3
"""Weight of the newest measurement, once there are some; before, each counts the same, the typical figure too."""
_MIB = 1024 * 1024
_PLAUSIBLE = {
    "fixed_seconds": (0.001, 60.0),
    "restore_seconds": (0.001, 60.0),
    "restore_rate": (_MIB, 1024 * 1024.0 * _MIB),
    "rate": (_MIB / 16, 1024 * 1024.0 * _MIB),
    "disk_rate": (_MIB / 16, 1024 * 1024.0 * _MIB),
}
"""What a measurement may be: seconds, bytes a second. Anything else is a fault of a clock, or of an editor."""

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one migration cost. Times in seconds, sizes in bytes."""

    downtime: float
    restore: float
    memory: int
    """Restored before the tree ran; 0 where it was filled in afterwards."""
    rounds: Sequence[Round]
    """The final dump is the last one."""
    disk: float = 0.0
    """Until what the final dump brought was on the target's disk; 0 where that was not ordered."""


class History:
    """The costs of migrations by target. Nothing it does raises OSError or ValueError."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        """None: nothing is kept."""

    @property
    def reports(self) -> Reports:
        """The reports of the same user's migrations, which lie beside the file."""
        return Reports(self._path and self._path.parent / REPORTS)

    def costs(self, host: str) -> Costs:
        """What a migration to this host costs beside its dirty pages; typical figures where none are known."""
        return _costs(self._read().get(host, {}))

    def learn(self, host: str, measured: Measured) -> None:
        """Smooth a migration's figures into those of its target."""
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            with _locked(self._path.parent):
                hosts = self._read()
                before = hosts.pop(host, {})  # and in again, as the newest
                hosts[host] = smoothed(before, measured)
                for oldest in list(hosts)[:-HOSTS]:
                    del hosts[oldest]
                replace(self._path, json.dumps({"version": VERSION, "hosts": hosts}, indent=1) + "\n")
        except OSError as error:
            log.debug("the costs of this migration are not kept: %s", error)

    def _read(self) -> dict[str, dict[str, float]]:
        if self._path is None:
            return {}
        try:
            content = json.loads(_content(self._path))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            log.debug("the costs of earlier migrations are not known: %s: %s", self._path, error)
            return {}
        hosts = content.get("hosts") if isinstance(content, dict) and content.get("version") == VERSION else None
        if not isinstance(hosts, dict):
            return {}
        return {host: _plausible(values) for host, values in hosts.items() if isinstance(values, dict)}


def of_user(environment: Mapping[str, str], uid: int) -> History:
    """The history of whoever runs `migrate`. Without a home there is none."""
    if uid == 0:
        return History(STATE_OF_ROOT / NAME)
    state, home = environment.get("XDG_STATE_HOME", ""), environment.get("HOME", "")
    if os.path.isabs(state):  # a relative one is to be ignored (XDG base directory specification)
        return History(Path(state) / "migrate" / NAME)
    return History(Path(home) / ".local" / "state" / "migrate" / NAME if os.path.isabs(home) else None)


def smoothed(before: Mapping[str, float], measured: Measured) -> dict[str, float]:
    """The figures of a host after one more migration to it. What it could not tell stays as it was."""
    samples = before.get("samples", 0)
    weight = max(SMOOTHING, 1 / (samples + 2))
    known = _costs(before)
    told = {name: value for name, value in _told(known, measured).items() if _is_plausible(name, value)}
    after = dict(before)
    for name, value in told.items():
        old = getattr(known, name) or value
        after[name] = old + weight * (value - old)
    after["samples"] = min(samples + 1, 1_000_000)
    return after


def _told(known: Costs, measured: Measured) -> dict[str, float]:
    """What one migration tells of each figure."""
    told: dict[str, float] = {}
    *before, final = measured.rounds
    largest = max(measured.rounds, key=lambda done: done.bytes)
    if largest.bytes >= TELLING and largest.seconds > 0:
        told["rate"] = largest.bytes / max(largest.seconds - largest.disk_seconds, SHORTEST_INTERVAL)
        if (disk := measured.disk if largest is final else largest.disk_seconds) > 0:
            told["disk_rate"] = largest.bytes / disk
    if before or final.bytes < TELLING:  # else nearly all of the freeze was memory, and the rest would be its error
        seizing = min((done.frozen_seconds for done in before), default=0.0)
        transfer = final.bytes / rate(before, known)
        told["fixed_seconds"] = max(measured.downtime - measured.restore - transfer - seizing, 0.001)
    if measured.memory < TELLING:
        told["restore_seconds"] = measured.restore
    elif measured.restore > known.restore_seconds:
        told["restore_rate"] = measured.memory / (measured.restore - known.restore_seconds)
    return told


def _costs(values: Mapping[str, float]) -> Costs:
    known: dict[str, Any] = {name: value for name, value in values.items() if name in _PLAUSIBLE}
    return dataclasses.replace(Costs(), **known)


def _plausible(values: Mapping[str, Any]) -> dict[str, float]:
    """What of a host's entry makes sense."""
    kept = {name: value for name, value in values.items() if _is_plausible(name, value)}
    samples = values.get("samples")
    if kept and type(samples) is int and 0 < samples <= 1_000_000:
        kept["samples"] = samples
    return kept


def _is_plausible(name: str, value: object) -> bool:
    least, most = _PLAUSIBLE.get(name, (math.inf, -math.inf))
    return isinstance(value, (int, float)) and type(value) is not bool and least <= value <= most


def _content(path: Path) -> bytes:
    """The file's. Raises OSError, also for what is no ordinary file (a FIFO would never end), or far too large."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with open(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or status.st_size > LARGEST:
            raise OSError("no file of ours")
        return file.read(LARGEST)


@contextlib.contextmanager
def _locked(directory: Path) -> Iterator[None]:
    """Alone among those that replace a file here. Raises BlockingIOError when another one is at it."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
