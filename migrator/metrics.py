"""`--metrics FILE`: what a drain did, for node_exporter's textfile collector.

Reads the lines of the log (`logbook`), of which it is one more way out, and writes the file when that closes: always,
so that the exit code of a drain that went wrong is seen too. Owns the names; they are an interface, which README lists.
The form is that of https://prometheus.io/docs/instrumenting/exposition_formats/ (text).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from migrator import errors
from migrator.logbook import Fields
from migrator.outfile import Outfile

OUTCOMES = ("moved", "leftovers", "already", "failed", "stopped", "recover", "left", "missing")
HELP = {
    "processes": "Processes of the plan by what became of them in the last run; missing: entries without any",
    "downtime_seconds": "Downtimes of the processes that moved, together",
    "longest_downtime_seconds": "The longest downtime of a process that moved",
    "bytes": "Memory that was sent for all processes, moved or not",
    "wire_bytes": "The same, as it was on the wire",
    "duration_seconds": "How long the last run took",
    "end_timestamp_seconds": "When the last run ended, in seconds since the epoch",
    "exit_code": "Exit code of the last run",
}
"""Metric, without `migrate_drain_` -> what it is. All are gauges: they are about one run."""


class Metrics:
    """A `logbook.Sink`."""

    def __init__(
        self, path: str, labels: Mapping[str, str], warn: Callable[[str], None], clock: Callable[[], float] = time.time
    ) -> None:
        """`warn` is told what could not be written. Raises UsageError for a file that can't be."""
        self._file = Outfile("--metrics", path, 0o644)  # node_exporter is not root
        self._labels = dict(labels)
        self._warn = warn
        self._clock = clock
        self._values = dict[str, float](dict.fromkeys(HELP, 0.0)) | {"exit_code": errors.MigrateError.exit_code}
        self._processes = dict.fromkeys(OUTCOMES, 0)

    def write(self, severity: int, fields: Fields) -> None:
        """Counted."""
        event = str(fields["event"])
        if event in self._processes:
            self._processes[event] += 1
        elif event == "ended" and "move" in fields:
            self._ended(outcome_of(_number(fields, "exit")), fields)
        elif event == "ended":
            self._values["exit_code"] = _number(fields, "exit")
            self._values["duration_seconds"] = _number(fields, "seconds")

    def _ended(self, outcome: str, fields: Fields) -> None:
        self._processes[outcome] += 1
        for name in ("bytes", "wire_bytes"):
            self._values[name] += _number(fields, name)
        if outcome in ("moved", "leftovers"):
            down = _number(fields, "downtime_seconds")
            self._values["downtime_seconds"] += down
            self._values["longest_downtime_seconds"] = max(self._values["longest_downtime_seconds"], down)

    def close(self) -> None:
        """Into the file."""
        self._values["end_timestamp_seconds"] = self._clock()
        if wrong := self._file.write(self.text().encode(errors="replace")):
            self._warn(wrong)

    def text(self) -> str:
        """As it is in the file."""
        said = ""
        for name, meaning in HELP.items():
            said += f"# HELP migrate_drain_{name} {meaning}.\n# TYPE migrate_drain_{name} gauge\n"
            if name == "processes":
                for outcome, number in self._processes.items():
                    said += _sample(name, {**self._labels, "outcome": outcome}, number)
            else:
                said += _sample(name, self._labels, self._values[name])
        return said


def outcome_of(exit_code: int | float) -> str:
    """One of OUTCOMES, of a process whose migration ended with this exit code."""
    if exit_code in (errors.EXIT_MIGRATED, errors.EXIT_LEFTOVERS):
        return "leftovers" if exit_code else "moved"
    if exit_code > 128:
        return "stopped"
    # where only the journals know
    return "recover" if exit_code >= errors.NotResumed.exit_code or exit_code == 1 else "failed"


def _sample(name: str, labels: Mapping[str, str], value: float) -> str:
    words = ",".join(f'{key}="{_escaped(each)}"' for key, each in labels.items())
    return f"migrate_drain_{name}{{{words}}} {value!r}\n"


def _escaped(text: str) -> str:
    return text.replace("\\", r"\\").replace('"', r"\"").replace("\n", r"\n")


def _number(fields: Fields, name: str) -> int | float:
    value = fields.get(name, 0)
    return value if isinstance(value, (int, float)) else 0
