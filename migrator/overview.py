"""How a drain looks: a line for each process as it ends; on a terminal a bar for each that moves, and one for all.

Owns what is said of many migrations; the streams are `migrator.output`'s, the bars' library `migrator.progress`'s.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from migrator import words
from migrator.logbook import Logbook
from migrator.output import Events, Printer, Progress
from migrator.phases import Observer, Phase, Report, Round
from migrator.progress import new_bar, terminal_columns
from migrator.standing import Stage, Standing
from migrator.words import bytes_text, escape, seconds_text

if TYPE_CHECKING:
    from migrator.drain import Checked, Job
    from migrator.errors import MigrateError
    from migrator.runbook import Move

LABEL_COLUMNS = 24
REFRESH_SECONDS = 0.1


class Overview(Progress):
    """For a pipe or a log: one line for every process that has ended. Also what the other ways of showing share."""

    def __init__(self, printer: Printer, *, verbose: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(printer, verbose=verbose, clock=clock)
        self.expected = 0
        """Processes that are to be moved."""
        self.book = Logbook([], {})
        """What happens is written into it by whoever tells us of it: each process has a part of its own."""
        self._ended: list[Standing] = []
        self._before = 0
        """Processes that a former run has moved."""
        self._said: set[str] = set()

    @property
    def verbose(self) -> bool:
        """-v"""
        return self._verbose

    def listen(self, book: Logbook) -> None:
        """Its parts are to be told."""
        self.book = book

    # what the drain says (drain.Audience)

    def observer(self, job: Job, target: str) -> Observer:
        """A migration begins."""
        return _Watch(self, job.label, target)

    def failed_to_move(self, job: Job, error: MigrateError) -> None:
        """Why, on stderr."""
        obstacles = [one for one in getattr(error, "obstacles", ()) if one.stops]
        self._errors(f"{escape(job.label)}:\n")
        if obstacles:
            self._errors(words.obstacle_table(obstacles, self._columns()))
        self._errors(words.error_text(error))

    def ended(self, job: Job, standing: Standing) -> None:
        """A line for it."""
        self._ended.append(standing)
        self._line(job.label, _outcome(standing))

    def left(self, job: Job, why: str) -> None:
        """A line for it."""
        self._line(job.label, f"not moved: {escape(why)}")

    def missing(self, move: Move, why: str) -> None:
        """A note."""
        self.note(f"{move.name}: {why}")

    def already(self, job: Job) -> None:
        """A note."""
        self._before += 1
        self.note(f"{job.label}: already on {job.standing.target}")

    def said(self, label: str, text: str, *, once: bool = False) -> None:
        """What a migration says; `once`: not again for another process, since it is about the hosts."""
        if not once or text not in self._said:
            self._said.add(text)
            self._line(label, escape(text))

    def moves(self, label: str, target: str, phase: str, done: int, expected: int) -> None:
        """Where a migration stands."""

    def done(self, label: str) -> None:
        """It does not move any more."""

    def note(self, text: str) -> None:
        """A line of the drain's own."""
        self._line("", escape(text))

    def checked_all(self, checks: Sequence[Checked]) -> None:
        """One table of all preflights, and below it what stands in the way."""
        rows = [
            (one.job.label, f"pid {one.job.found.pid} {one.job.found.name}", one.target, _verdict(one))
            for one in checks
        ]
        self._printer.write(words.table(("move", "process", "target", "preflight"), rows))
        for one in checks:
            stops = [obstacle for obstacle in one.obstacles if obstacle.stops]
            if stops:
                self._printer.write(f"\n{escape(one.job.label)} to {escape(one.target)}:\n")
                self._printer.write(words.obstacle_table(stops, self._columns()))
            elif one.error is not None:
                self._printer.write(f"\n{escape(one.job.label)} to {escape(one.target)}: {escape(one.error.message)}\n")

    def over(self, exit_code: int) -> None:
        """The last line."""
        here = [one for one in self._ended if one.stage in (Stage.MOVED, Stage.RETURNED) and one.exit_code in (0, 3)]
        text = f"{self._before + len(here)} of {self.expected} moved"
        if self._before:
            text += f", {self._before} by a former run"
        if here:
            total, longest = (seconds_text(figure([one.downtime for one in here]), upper=True) for figure in (sum, max))
            text += f": down {total} in all, {longest} at most"
        self._printer.write(f"{text}, total {seconds_text(self.elapsed())}\n")

    def _line(self, label: str, text: str) -> None:
        self._printer.write(f"{escape(label):<{LABEL_COLUMNS}}{text}".rstrip() + "\n" if label else f"{text}\n")

    def _errors(self, text: str) -> None:
        self._printer.error(text)


class QuietOverview(Overview):
    """The last line, and errors."""

    def _line(self, label: str, text: str) -> None:
        """Nothing."""


class OverviewBars(Overview):
    """For a terminal: the same lines, with the bars below them."""

    def __init__(
        self, printer: Printer, *, verbose: bool = False, clock: Callable[[], float] = time.monotonic,
        columns: Callable[[], int],
    ) -> None:  # fmt: skip
        super().__init__(printer, verbose=verbose, clock=clock)
        self._width = columns
        self._all: Any | None = None
        self._bars: dict[str, Any] = {}
        self._drawn: dict[str, tuple[str, float]] = {}

    def moves(self, label: str, target: str, phase: str, done: int, expected: int) -> None:
        """Its bar, ten times a second at most unless the phase is another."""
        before, when = self._drawn.get(label, ("", 0.0))
        if phase == before and self._clock() - when < REFRESH_SECONDS:
            return
        self._drawn[label] = (phase, self._clock())
        if self._all is None:
            self._all = new_bar(self._printer, 0)
        bar = self._bars.get(label)
        if bar is None:
            taken = {-each.pos for each in self._bars.values()}
            bar = self._bars[label] = new_bar(self._printer, next(at for at in range(1, 1000) if at not in taken))
        size = f"{bytes_text(done):>9}" if done else ""
        self._draw(
            bar,
            f"{escape(label)} -> {escape(target)}",
            min(done / expected, 1.0) if expected else 0.0,
            f"{phase} {size}",
        )
        self._draw_all()

    def done(self, label: str) -> None:
        """Its bar goes."""
        self._drawn.pop(label, None)
        if bar := self._bars.pop(label, None):
            bar.close()

    def ended(self, job: Job, standing: Standing) -> None:
        """And the bar of all grows."""
        self.done(job.label)
        super().ended(job, standing)
        if self._all is not None:
            self._draw_all()

    def over(self, exit_code: int) -> None:
        """No bars any more."""
        for label in list(self._bars):
            self.done(label)
        if self._all is not None:
            self._all.close()
            self._all = None
        super().over(exit_code)

    def warn(self, text: str) -> None:
        """Above the bars."""
        self._above(lambda: Progress.warn(self, text))

    def _draw_all(self) -> None:
        done = self._before + len(self._ended)
        share = done / self.expected if self.expected else 0.0
        down = sum(one.downtime for one in self._ended)
        text = f"{done} of {self.expected}, down {seconds_text(down, upper=True)}"
        if self._all is not None:
            self._draw(self._all, "all", share, text)

    def _draw(self, bar: Any, label: str, share: float, text: str) -> None:
        columns = self._width() - 1
        room = columns - LABEL_COLUMNS - 24
        middle = f"{{bar:{min(room, 30)}}}  " if room >= 8 else ""
        left = f"{label[: LABEL_COLUMNS - 2]:<{LABEL_COLUMNS}}".replace("{", "{{").replace("}", "}}")
        bar.bar_format, bar.ncols, bar.n = left + middle + text.replace("{", "{{").replace("}", "}}"), columns, share
        bar.refresh()

    def _line(self, label: str, text: str) -> None:
        self._above(lambda: Overview._line(self, label, text))

    def _errors(self, text: str) -> None:
        self._above(lambda: Overview._errors(self, text))

    def _above(self, write: Callable[[], None]) -> None:
        bars = [*self._bars.values(), *([self._all] if self._all is not None else [])]
        for bar in bars:
            bar.clear()
        write()
        for bar in bars:
            bar.refresh()

    def _columns(self) -> int:
        return self._width()


class OverviewEvents(Overview, Events):
    """`--json`: the events of a migration, each with its `process`; then one `process` event each, last `drained`."""

    def observer(self, job: Job, target: str) -> Observer:
        """Its events carry its name."""
        return _EventsWatch(self, job.label, target)

    def failed_to_move(self, job: Job, error: MigrateError) -> None:
        """`{"event":"error","process":…,` and the fields of an error."""
        for one in getattr(error, "obstacles", ()):
            self._event("obstacle", process=job.label, **dataclasses.asdict(one))
        self._event("error", process=job.label, error=type(error).__name__, exit_code=error.exit_code,
                    message=error.message, hint=error.hint, log=error.log, where=error.where)  # fmt: skip
        self._printer.error(f"{escape(job.label)}: {words.error_text(error)}")

    def ended(self, job: Job, standing: Standing) -> None:
        """`{"event":"process","process":…,` and the fields of `standing.Standing`."""
        self._ended.append(standing)
        self._event("process", process=job.label, **dataclasses.asdict(standing))

    def left(self, job: Job, why: str) -> None:
        """`{"event":"left","process":…,"text":…}`"""
        self._event("left", process=job.label, text=why)

    def note(self, text: str) -> None:
        """`{"event":"note","text":…}`"""
        self._event("note", text=text)

    def tell(self, label: str, name: str, /, **fields: object) -> None:
        """An event of one process."""
        self._event(name, process=label, **fields)

    def checked_all(self, checks: Sequence[Checked]) -> None:
        """`{"event":"checked","process":…,"pid":…,"target":…,"stops":…,"obstacles":[…],"error":…}` for each."""
        for one in checks:
            self._event(
                "checked", process=one.job.label, pid=one.job.found.pid, target=one.target,
                stops=sum(each.stops for each in one.obstacles), exit_code=one.exit_code,
                obstacles=[dataclasses.asdict(each) for each in one.obstacles],
                error=one.error.message if one.error is not None else "",
            )  # fmt: skip

    def over(self, exit_code: int) -> None:
        """`{"event":"drained","at":…,"exit_code":…,"expected":…,"already":…,"downtime_seconds":…}`: the last event."""
        down = sum(one.downtime for one in self._ended)
        self._event("drained", exit_code=exit_code, expected=self.expected, already=self._before, downtime_seconds=down)

    def _line(self, label: str, text: str) -> None:
        """Nothing: lines are for people."""


class _Watch:
    """One migration of a drain."""

    def __init__(self, overview: Overview, label: str, target: str) -> None:
        self._overview = overview
        self._label = label
        self._target = target
        self._phase = ""
        self._expected = 0

    def started(self, migration: str) -> None:
        """Its id, with -v."""
        self.detail(f"migration {migration}")

    async def phase(self, phase: Phase) -> None:
        """It is in this phase now."""
        self._phase, self._expected = phase.value, 0
        self._overview.moves(self._label, self._target, self._phase, 0, 0)

    def note(self, text: str) -> None:
        """With the name of its process: what preflight warns of; else with -v, since a line of its own follows."""
        if self._overview.verbose or self._phase == Phase.PREFLIGHT.value:
            self._overview.said(self._label, text, once=not self._overview.verbose)

    def detail(self, text: str) -> None:
        """With -v only."""
        if self._overview.verbose:
            self._overview.said(self._label, text)

    def round_started(self, number: int, expected_bytes: int, final: bool) -> None:
        """A bar that grows to the expected bytes."""
        self._phase, self._expected = words.round_label(number, final), expected_bytes
        self._overview.moves(self._label, self._target, self._phase, 0, expected_bytes)

    def transferred(self, sent_bytes: int) -> None:
        """It grows."""
        self._overview.moves(self._label, self._target, self._phase, sent_bytes, max(self._expected, sent_bytes))

    def round_done(self, number: int, result: Round, final: bool) -> None:
        """The bar is full."""
        self._overview.moves(self._label, self._target, self._phase, result.bytes, result.bytes)

    def report(self, report: Report) -> None:
        """It does not move any more."""
        self._overview.done(self._label)


class _EventsWatch(_Watch):
    _overview: OverviewEvents

    def started(self, migration: str) -> None:
        """An event."""
        self._overview.tell(self._label, "started", id=migration)

    async def phase(self, phase: Phase) -> None:
        """An event."""
        self._overview.tell(self._label, "phase", phase=phase.value)

    def note(self, text: str) -> None:
        """An event."""
        self._overview.tell(self._label, "note", text=text)

    def detail(self, text: str) -> None:
        """An event, with -v."""
        if self._overview.verbose:
            self._overview.tell(self._label, "detail", text=text)

    def round_done(self, number: int, result: Round, final: bool) -> None:
        """An event."""
        self._overview.tell(self._label, "round", number=number, final=final, **dataclasses.asdict(result))

    def report(self, report: Report) -> None:
        """An event."""
        self._overview.tell(self._label, "report", **dataclasses.asdict(report))


def _outcome(standing: Standing) -> str:
    if standing.stage is Stage.FAILED or standing.exit_code not in (0, 3):
        return f"not moved to {escape(standing.target)}, exit {standing.exit_code}: {escape(standing.message)}"
    verb = "back" if standing.stage is Stage.RETURNED else f"running on {escape(standing.target)}"
    left = ", leftovers" if standing.exit_code else ""
    pause = seconds_text(standing.downtime, upper=True)
    return f"{verb} as pid {standing.target_pid}: down {pause}, total {seconds_text(standing.seconds)}{left}"


def _verdict(one: Checked) -> str:
    if one.error is not None:
        return f"exit {one.error.exit_code}"
    stops = sum(each.stops for each in one.obstacles)
    warns = len(one.obstacles) - stops
    if stops:
        return words.count(stops, "obstacle")
    return f"ok, {words.count(warns, 'warning')}" if warns else "ok"


def choose(
    out: TextIO, err: TextIO, *, quiet: bool = False, as_json: bool = False, verbose: bool = False, terminal: str = ""
) -> Overview:
    """The mode that fits, as `progress.choose` finds it."""
    printer = Printer(out, err)
    if as_json:
        return OverviewEvents(printer, verbose=verbose)
    if quiet:
        return QuietOverview(printer)
    if out.isatty() and terminal not in ("", "dumb"):
        return OverviewBars(printer, verbose=verbose, columns=lambda: terminal_columns(out))
    return Overview(printer, verbose=verbose)
