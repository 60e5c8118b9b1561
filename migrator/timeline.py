"""When what happened in a migration: the spans of its phases, and the steps of its freeze.

Owns the clock of a report. Refuses to decide anything: it is told by the engine, as every observer is, and by a word at
its place in the sequence what phases alone do not tell (the hold on the source, the end of the pause).
"""

from __future__ import annotations

import dataclasses
import datetime
import time
from collections.abc import Callable
from itertools import pairwise

from migrator.kept import Reports
from migrator.phases import Careful, Observer, Phase, Report, Span

UNDO = "undo"
"""The span in which all is taken back; it is no phase, since it follows upon any of them."""
STEPS = {Phase.RESTORE: "restore", Phase.COMMIT: "commit", Phase.RESUME: "resume", Phase.ROLLBACK: "thaw"}
"""Phases that begin while nobody runs -> the step of the freeze that begins with them."""


class Timeline(Careful):
    """An observer around another one, which also writes down when it was told what; and keeps the report."""

    def __init__(self, inner: Observer, reports: Reports, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(inner)
        self._reports = reports
        self._clock = clock
        self.began = clock()
        """The migration's start, as `time.monotonic()` has it; all of a report's times count from it."""
        self._date = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        self._phases: list[tuple[str, float]] = []
        self._steps: list[tuple[str, float]] = []
        self._thawed = 0.0

    async def phase(self, phase: Phase) -> None:
        """A phase begins, and the one before has ended."""
        now = self._clock()
        self._phases.append((phase.value, now))
        if phase in STEPS:
            self._steps.append((STEPS[phase], now))
        await super().phase(phase)

    def freezing(self) -> float:
        """The freeze is about to be asked for. Returns the time of it."""
        now = self._clock()
        self._steps.append(("dump", now))
        return now

    def held(self) -> None:
        """The tree is dumped and held on the source; what the target lacks of its images follows."""
        self._steps.append(("images", self._clock()))

    def undoing(self) -> None:
        """Everything is about to be taken back."""
        now = self._clock()
        self._phases.append((UNDO, now))
        if self._steps:
            self._steps.append(("thaw", now))

    def thawed(self) -> None:
        """The tree runs on the source again."""
        self._thawed = self._clock()

    def timed(self, report: Report) -> Report:
        """The report with date, phases and the steps of the freeze, and the pause of a migration that was undone."""
        now = self._clock()
        frozen = self._steps[0][1] if self._steps else now
        pause = report.downtime_seconds
        if report.outcome == "undone" and self._steps:
            pause = self._thawed - frozen
        runs_again = frozen + pause if pause > 0 else now  # else it stands still to this moment, for all we know
        return dataclasses.replace(
            report,
            started=self._date,
            downtime_seconds=pause,
            phases=self._spans(self._phases, now),
            freeze=self._spans(self._steps, runs_again),
        )

    def report(self, report: Report) -> None:
        """Kept before it is shown: whoever reads it finds it by its id. What fails here is a note."""
        problem = self._reports.keep(report)
        if problem:
            self.note(f"the report is not kept: {problem}")
        super().report(report)

    def _spans(self, marks: list[tuple[str, float]], end: float) -> tuple[Span, ...]:
        """From each mark to the next one, and from the last to the end; what began after it belongs to no span."""
        begun = [*((name, at) for name, at in marks if at < end), ("", end)]
        return tuple(Span(name, at - self.began, after - at) for (name, at), (_, after) in pairwise(begun))
