"""Phase, Report and what observers are told. Pure data: nothing here touches a host."""

from __future__ import annotations

import dataclasses
import enum
import logging
from collections.abc import Callable
from typing import Protocol


class Phase(str, enum.Enum):
    """The phases of a migration in their order; COMMIT is the point of no return (DESIGN: the commit, exactly)."""

    CONNECT = "connect"
    PREFLIGHT = "preflight"
    PRECOPY = "pre-copy"
    FREEZE = "freeze"
    RESTORE = "restore"
    COMMIT = "commit"
    RESUME = "resume"
    FILL = "fill"
    CLEAN = "clean"
    ROLLBACK = "roll back"  # of a rehearsal, in the place of COMMIT and all that follows


@dataclasses.dataclass(frozen=True)
class Round:
    """One pre-copy round, or the final dump (the last of the list)."""

    pages: int
    bytes: int
    wire_bytes: int
    seconds: float
    frozen_seconds: float
    started_seconds: float = 0.0  # since the migration's start
    dirty_rate: float = 0.0  # bytes a second that the tree changed since the round before; 0 for the first one
    disk_seconds: float = 0.0  # of `seconds`, those until it was on the target's disk, where that was ordered


@dataclasses.dataclass(frozen=True)
class Span:
    """A stretch of a migration by the source's clock, in seconds since the migration's start."""

    name: str
    started_seconds: float
    seconds: float


REPORT_VERSION = 1
"""Of the report as JSON: fields may be added to it; it grows when one changes its meaning, or goes."""


@dataclasses.dataclass(frozen=True)
class Report:
    """What a migration was, for people and for scripts: the last event of `--json`. Times in seconds."""

    id: str
    outcome: str  # migrated, rehearsed, undone, not-resumed, in-doubt, memory-lost
    pid: int
    target_pid: int
    source: str
    target: str
    rounds: tuple[Round, ...]
    downtime_seconds: float  # from before the freeze is asked for, to the word that the tree runs (again): see README
    freeze_seconds: float
    restore_seconds: float
    total_seconds: float
    bytes: int
    wire_bytes: int
    resume: str = "eager"
    leftovers: tuple[str, ...] = ()
    fill_seconds: float = 0.0
    faults: int = 0
    longest_fault_seconds: float = 0.0
    target_peak_bytes: int = 0  # images and the tree's own memory together, at their highest after the resume
    predicted_downtime_seconds: float = 0.0  # when the freeze was decided; 0 where it never came to that
    files_bytes: int = 0  # of the content of files that came along, in the freeze too
    files_frozen_bytes: int = 0
    files_seconds: float = 0.0  # from the hold of the tree to the files in their places, beside all else that goes then
    namespaces: bool = False  # it has a PID namespace of its own there, or would have had
    inside_pid: int = 0  # its PID in that namespace, once it runs there
    terminal: str = ""  # the command that shows its terminal, where that is held on the target
    unit: str = ""  # the unit of systemd that it runs in there, where its own was to move, or would have run in
    version: int = REPORT_VERSION
    started: str = ""  # date and time, ISO 8601 with the zone of the source
    name: str = ""  # of the root process, as the kernel has it
    error: str = ""  # class and message, where it failed
    phases: tuple[Span, ...] = ()  # one after the other, and "undo" where all was taken back
    freeze: tuple[Span, ...] = ()  # dump, images, restore, commit, resume, or thaw: together the downtime
    max_downtime_seconds: float = 0.0  # what was allowed
    fill_bytes: int = 0  # filled in after the resume
    disk_seconds: float = 0.0  # of the freeze: until all was on the target's disk, beside the restore (--durable)


class Observer(Protocol):
    """Whoever wants to see a migration happen: a progress bar, a JSON writer, a test that breaks things on cue.

    `phase` is awaited before the phase's first act, so that an observer can hold a migration at a known point.
    """

    def started(self, migration: str) -> None:
        """A migration begins; this is its id, in the journals too. A second attempt has another one."""

    async def phase(self, phase: Phase) -> None:
        """The migration is about to enter this phase."""

    def note(self, text: str) -> None:
        """A line that the operator should read."""

    def detail(self, text: str) -> None:
        """A line for -v: a criu command, a measurement."""

    def round_started(self, number: int, expected_bytes: int, final: bool) -> None:
        """A round begins; `expected_bytes` is 0 where unknown."""

    def transferred(self, sent_bytes: int) -> None:
        """So many bytes of the current round have gone out since it started, counted before they are compressed."""

    def round_done(self, number: int, result: Round, final: bool) -> None:
        """A round has arrived whole."""

    def report(self, report: Report) -> None:
        """It is over."""


class Careful:
    """An observer around another one, whose failure changes nothing of what happens to the process.

    The first failure is kept in `error`, to be raised when all is done: it is a bug, and no reason to leave a tree that
    was committed nowhere, or one that is being undone frozen.
    """

    def __init__(self, inner: Observer) -> None:
        self._inner = inner
        self.error: Exception | None = None

    def started(self, migration: str) -> None:
        """As the other one's."""
        self._try(self._inner.started, migration)

    async def phase(self, phase: Phase) -> None:
        """Cancelling gets through."""
        try:
            await self._inner.phase(phase)
        except Exception as error:
            self._failed(error)

    def note(self, text: str) -> None:
        """As the other one's."""
        self._try(self._inner.note, text)

    def detail(self, text: str) -> None:
        """As the other one's."""
        self._try(self._inner.detail, text)

    def round_started(self, number: int, expected_bytes: int, final: bool) -> None:
        """As the other one's."""
        self._try(self._inner.round_started, number, expected_bytes, final)

    def transferred(self, sent_bytes: int) -> None:
        """As the other one's."""
        self._try(self._inner.transferred, sent_bytes)

    def round_done(self, number: int, result: Round, final: bool) -> None:
        """As the other one's."""
        self._try(self._inner.round_done, number, result, final)

    def report(self, report: Report) -> None:
        """As the other one's."""
        self._try(self._inner.report, report)

    def _try(self, act: Callable[..., None], *arguments: object) -> None:
        try:
            act(*arguments)
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        logging.getLogger(__name__).error("an observer failed", exc_info=error)
        self.error = self.error or error
