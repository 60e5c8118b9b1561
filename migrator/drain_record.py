"""What became of each process in one run of a drain: for the log, the report and the picture.

Stands between the drain and whoever shows it, and passes all on. Decides nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from migrator import chart, events
from migrator.drain import Audience, Checked, Job
from migrator.errors import EXIT_LEFTOVERS, EXIT_MIGRATED, MigrateError
from migrator.lanes import Lane
from migrator.logbook import Fields, Logbook
from migrator.phases import Observer, Report
from migrator.runbook import Move
from migrator.standing import Standing


class Attempt:
    """One process on its way to one target."""

    def __init__(self, job: Job, target: str, clock: Callable[[], float]) -> None:
        self.job = job
        self.target = target
        self.began = clock()
        """Seconds since the drain's start."""
        self.report: Report | None = None
        self.standing: Standing | None = None
        """How it ended; None where another target was tried after it, and where it was stopped."""

        self._clock = clock
        self.ended = 0.0
        """Seconds since the drain's start, once there is a report or a standing."""

    def happened(self, event: events.Event) -> None:
        """A listener for `events`."""
        if isinstance(event, events.Ended):
            self.report = event.report
            self.ended = self._clock()

    def is_over(self, standing: Standing) -> None:
        """It ended like this."""
        self.standing = standing
        self.ended = self.ended or self._clock()

    def lane(self) -> Lane:
        """As it is drawn."""
        report, label = self.report, f"{self.job.label} → {self.target}"
        if report is None:
            return Lane(label, self.began, max(self.ended, self.began), self._outcome())
        start = self.ended - report.total_seconds  # a migration that is tried twice has the second one's times
        frozen = None
        if report.freeze:
            begin, end = chart.frozen(report)
            frozen = (start + begin, start + end)
        return Lane(label, start, self.ended, self._outcome(), frozen, report.outcome == "migrated")

    def _outcome(self) -> str:
        if self.standing is None:
            return "stopped" if self.report is None else chart.outcome_text(self.report)
        if self.standing.exit_code in (EXIT_MIGRATED, EXIT_LEFTOVERS):
            return "leftovers" if self.standing.exit_code else "moved"
        return f"exit {self.standing.exit_code}: {self.standing.message}"


class Record:
    """`drain.Audience` in front of another one."""

    def __init__(
        self, audience: Audience, book: Logbook, *, returning: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._audience = audience
        self._book = book
        self._other = "source" if returning else "target"
        self._clock = clock
        self._start = clock()
        self._errors: dict[str, MigrateError] = {}
        self.attempts: list[Attempt] = []
        """In the order in which they began."""

    @property
    def reports(self) -> tuple[Report, ...]:
        """Of all that came so far, those that were undone too."""
        return tuple(one.report for one in self.attempts if one.report is not None)

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """Of all that came so far."""
        return tuple(one.lane() for one in self.attempts)

    @property
    def expected(self) -> int:
        """As the other one's."""
        return self._audience.expected

    @expected.setter
    def expected(self, number: int) -> None:
        self._audience.expected = number

    def observer(self, job: Job, target: str) -> Observer:
        """Heard by the log, too."""
        attempt = Attempt(job, target, self._seconds)
        self.attempts.append(attempt)
        part = self._book.part(job.standing.key, self._about(job, target))
        return events.Both(self._audience.observer(job, target), events.Telling(part.happened, attempt.happened))

    def failed_to_move(self, job: Job, error: MigrateError) -> None:
        """Said in its last line."""
        self._errors[job.standing.key] = error
        self._audience.failed_to_move(job, error)

    def ended(self, job: Job, standing: Standing) -> None:
        """Its last line."""
        key = standing.key
        for attempt in self.attempts[::-1]:
            if attempt.job.standing.key == key:
                attempt.is_over(standing)
                break
        about = self._about(job, standing.target)
        self._book.part_ended(key, about, standing.exit_code, self._errors.pop(key, None))
        self._audience.ended(job, standing)

    def left(self, job: Job, why: str) -> None:
        """A line."""
        self._book.line("left", {**self._about(job, ""), "message": why}, warns=True)
        self._audience.left(job, why)

    def missing(self, move: Move, why: str) -> None:
        """A line."""
        self._book.line("missing", {"move": move.name, "message": why}, warns=True)
        self._audience.missing(move, why)

    def already(self, job: Job) -> None:
        """A line."""
        self._book.line("already", self._about(job, job.standing.target))
        self._audience.already(job)

    def note(self, text: str) -> None:
        """A line."""
        self._book.line("note", {"message": text})
        self._audience.note(text)

    def checked_all(self, checks: Sequence[Checked]) -> None:
        """A line for each."""
        for one in checks:
            about = self._about(one.job, one.target)
            self._book.line("checked", {**about, "exit": one.exit_code}, warns=one.exit_code != 0)
        self._audience.checked_all(checks)

    def _seconds(self) -> float:
        return self._clock() - self._start

    def _about(self, job: Job, other: str) -> Fields:
        about: dict[str, str | int | float] = {"move": job.move.name, "pid": job.found.pid}
        return about | ({self._other: other} if other else {})
