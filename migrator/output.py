"""Where words go: stdout and stderr behind one thread, what all ways of showing a migration share, and `--json`.

Refuses to decide anything: it is told by the engine (`phases.Observer`) and by the command line, and it never raises
for a reader that went away. Words are written by a thread of their own: a terminal stopped with Ctrl-S, or a pager that
does not read on, must not hold up a frozen process.

| mode      | stdout                                              | stderr                       |
|-----------|-----------------------------------------------------|------------------------------|
| terminal  | bars, notes, the last line                          | errors, obstacles, warnings  |
| pipe      | one line a finished step, the last line             | the same                     |
| `--quiet` | the last line                                       | the same                     |
| `--json`  | events, one a line                                  | the same, without obstacles  |

Events: started, phase, note, detail (with -v), round, obstacle, checked, kind, setting, recovered, compared, plotted,
error, report; those of `migrate status` are in `status_words`. Each is one object a line; `event` names it and `at` is
the seconds since the start. The last event of a migration is `report` (without `at`); an `error`, if there is one,
comes right before it. File names are text with `surrogateescape`: a byte that is no UTF-8 is the escape `\\udcXX`.
Everywhere else odd characters are shown escaped.
"""

from __future__ import annotations

import dataclasses
import json
import os
import queue
import select
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TextIO

from migrator import events, words
from migrator.phases import Phase, Report, Round
from migrator.report import as_json, rounded

if TYPE_CHECKING:
    from migrator.errors import MigrateError
    from migrator.kinds import Kind
    from migrator.logbook import Logbook
    from migrator.obstacle import Obstacle
    from migrator.recovery import Outcome


class Printer:
    """Two text streams behind one thread, so that whoever writes is never blocked by whoever reads."""

    def __init__(self, out: TextIO, err: TextIO) -> None:
        self._streams: dict[bool, TextIO | None] = {True: out, False: err}
        self._queue: queue.SimpleQueue[tuple[bool, str] | threading.Event | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._drain, name="printer", daemon=True)
        self._thread.start()
        self.encoding = out.encoding or "ascii"

    def write(self, text: str) -> None:
        """Text for stdout; with `flush` all of a file that tqdm needs."""
        self._queue.put((True, text))

    def flush(self) -> None:
        """Every text is flushed as soon as it is written."""

    def error(self, text: str) -> None:
        """Text for stderr."""
        self._queue.put((False, text))

    def settle(self) -> None:
        """Wait until all is written that was given so far."""
        written = threading.Event()
        self._queue.put(written)
        written.wait()

    def close(self) -> None:
        """Wait until all is written, and take no more."""
        self._queue.put(None)
        self._thread.join()

    def _drain(self) -> None:
        while (item := self._queue.get()) is not None:
            if isinstance(item, threading.Event):
                item.set()
                continue
            to_out, text = item
            stream = self._streams[to_out]
            if stream is None:
                continue
            try:
                _write(stream, text)
            except (OSError, ValueError):  # the reader is gone, or the terminal: that is no reason to stop a migration
                self._streams[to_out] = None


def _write(stream: TextIO, text: str) -> None:
    """Write past the stream's buffer where it has a descriptor: its lock must not be held by a writer that is stuck."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError):
        stream.write(text)
        return
    data = text.encode(stream.encoding or "ascii", "backslashreplace")
    while data:
        try:
            data = data[os.write(descriptor, data) :]
        except BlockingIOError:  # some programs leave a terminal non-blocking
            select.select([], [descriptor], [])


class Progress:
    """Everything that the modes share: the clock, the phase, the report that is held back until the end."""

    def __init__(self, printer: Printer, *, verbose: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        self._printer = printer
        self._verbose = verbose
        self._clock = clock
        self._start = clock()
        self._phase: Phase | None = None
        self._report: Report | None = None
        self._shown = False
        self._listeners: list[events.Listener] = []
        self.committed = False
        """Whether the point of no return has been passed."""

    # What the engine says (phases.Observer)

    def started(self, migration: str) -> None:
        """A migration begins, by this name."""

    async def phase(self, phase: Phase) -> None:
        """The migration is about to enter this phase."""
        self.enter(phase)

    def enter(self, phase: Phase) -> None:
        """The same, for whoever does not wait."""
        self._phase = phase
        self.committed = self.committed or phase is Phase.COMMIT

    def note(self, text: str) -> None:
        """A line that the operator should read."""

    def detail(self, text: str) -> None:
        """A line for -v."""

    def round_started(self, number: int, expected_bytes: int, final: bool) -> None:
        """A round begins."""

    def transferred(self, sent_bytes: int) -> None:
        """So many bytes of the current round have gone out."""

    def round_done(self, number: int, result: Round, final: bool) -> None:
        """A round has arrived whole."""

    def report(self, report: Report) -> None:
        """It is over; the report is shown by `finish`, after the error if there is one."""
        self._report = report

    def listen(self, book: Logbook) -> None:
        """It is told what has `happened`, first."""
        self._listeners.append(book.happened)

    def happened(self, event: events.Event) -> None:
        """Any of these, as a value."""
        for listener in self._listeners:
            listener(event)
        if isinstance(event, events.Transferred):  # by far the most
            self.transferred(event.bytes)
        elif isinstance(event, events.PhaseBegun):
            self.enter(event.phase)
        elif isinstance(event, events.Noted):
            (self.detail if event.detail else self.note)(event.text)
        elif isinstance(event, events.RoundBegun):
            self.round_started(event.number, event.expected_bytes, event.final)
        elif isinstance(event, events.RoundDone):
            self.round_done(event.number, event.result, event.final)
        elif isinstance(event, events.Started):
            self.started(event.id)
        else:
            self.report(event.report)

    # What the command line says

    @property
    def reported(self) -> Report | None:
        """The report, once the engine has given it."""
        return self._report

    def warn(self, text: str) -> None:
        """A line on stderr, in every mode."""
        self._printer.error(f"migrate: {words.escape(text)}\n")

    def obstacles(self, obstacles: Sequence[Obstacle], *, asked: bool) -> None:
        """All of them, on stdout, when asked for (`migrate check`); else, on stderr, those that stop it."""
        shown = [obstacle for obstacle in obstacles if obstacle.stops or asked]
        if shown:
            text = words.obstacle_table(shown, self._columns())
            (self._printer.write if asked else self._printer.error)(text)

    def checked(self, pid: int, target: str, obstacles: Sequence[Obstacle], notes: Sequence[str] = ()) -> None:
        """The result of `migrate check`. Notes that say the same as an obstacle are left out."""
        said = {obstacle.note for obstacle in obstacles}
        for note in notes:
            if note not in said:
                self.note(note)
        self.obstacles(obstacles, asked=True)
        if not any(obstacle.stops for obstacle in obstacles):
            self._printer.write(f"pid {pid} can be moved to {words.escape(target)}\n")

    def explained(self, kinds: Sequence[Kind], *, at_length: bool) -> None:
        """The result of `migrate explain`: one kind at length, or the list of them."""
        if at_length:
            for kind in kinds:
                self._printer.write(words.explanation(kind, self._columns()))
        else:
            self._printer.write(words.kinds_list(kinds))

    def recovered(self, migration: str, outcome: Outcome) -> None:
        """The result of `migrate recover`: what was done, and where the process is now."""
        self._printer.write(words.recovered(outcome))

    def listed(self, reports: Sequence[Report], directory: str) -> None:
        """The result of `migrate report` without an id: the reports that are kept in a directory, newest first."""
        from migrator import chart  # late: no migration needs it

        where = words.escape(directory) or "anywhere"
        self._printer.write(chart.reports_list(reports, self._columns()) or f"no reports are kept in {where}\n")

    def pictured(self, reports: Sequence[Report]) -> None:
        """The result of `migrate report ID`, or of its --compare: a picture of one, or a table of two."""
        from migrator import chart, comparing

        first, *second = reports
        columns = self._columns()
        drawn = comparing.table(first, second[0], columns) if second else chart.picture(first, columns)
        try:
            drawn.encode(self._printer.encoding)
        except UnicodeEncodeError:
            drawn = drawn.translate(chart.PLAIN)
        self._printer.write(drawn)

    def plotted(self, path: str) -> None:
        """The picture of --plot is in this file."""
        self._printer.write(f"the picture is in {words.escape(path)}\n")

    def told(self, text: str, events: Sequence[tuple[str, dict[str, object]]]) -> None:
        """An answer to a question, for people; and what scripts get in its place: (name, fields) of events."""
        self._printer.write(text)

    def failed(self, error: MigrateError) -> None:
        """One clear paragraph on stderr: what failed, a hint, the log, and where the process is."""
        self._printer.error(words.error_text(error))

    def crashed(self, bug: BaseException) -> None:
        """The traceback of a bug, on stderr; what it means for the process is said by `failed`."""
        said = "".join(traceback.format_exception(bug))  # what a far end said may stand in it
        self._printer.error("".join(f"{words.escape(line)}\n" for line in said.splitlines()))

    def hand_over(self) -> None:
        """The terminal is about to be somebody else's: show the report now, and wait until everything is written."""
        self._show_report()
        self._printer.settle()

    def finish(self) -> None:
        """Show the report, if there is one, and wait until everything is written."""
        self._show_report()
        self._printer.close()

    def _show_report(self) -> None:
        if self._report is not None and not self._shown:
            self._shown = True
            self._printer.write(words.summary(self._report))
            for item in self._report.leftovers:
                self.warn(f"left behind: {item}")

    def _columns(self) -> int:
        return 0

    def elapsed(self) -> float:
        """Seconds since the start."""
        return self._clock() - self._start


class Quiet(Progress):
    """`--quiet`: the last line, and whatever went wrong."""


class Events(Progress):
    """`--json`: one event a line on stdout. Errors still get their line on stderr."""

    def started(self, migration: str) -> None:
        """`{"event":"started","at":…,"id":…}`"""
        self._event("started", id=migration)

    def enter(self, phase: Phase) -> None:
        """`{"event":"phase","at":…,"phase":…}`"""
        super().enter(phase)
        self._event("phase", phase=phase.value)

    def note(self, text: str) -> None:
        """`{"event":"note","at":…,"text":…}`"""
        self._event("note", text=text)

    def detail(self, text: str) -> None:
        """`{"event":"detail","at":…,"text":…}`, with -v only."""
        if self._verbose:
            self._event("detail", text=text)

    def round_done(self, number: int, result: Round, final: bool) -> None:
        """`{"event":"round","at":…,"number":…,"final":…,` and the fields of `phases.Round`."""
        self._event("round", number=number, final=final, **dataclasses.asdict(result))

    def warn(self, text: str) -> None:
        """A note, and a line on stderr."""
        self._event("note", text=text)
        super().warn(text)

    def obstacles(self, obstacles: Sequence[Obstacle], *, asked: bool) -> None:
        """`{"event":"obstacle","at":…,` and the fields of `Obstacle`; `stops` is false for a warning."""
        for obstacle in obstacles:
            self._event("obstacle", **dataclasses.asdict(obstacle))

    def explained(self, kinds: Sequence[Kind], *, at_length: bool) -> None:
        """`{"event":"kind","at":…,"id":…,"stops":…,"title":…,"explanation":…,"remedy":…}` for each.

        Words in braces in `remedy` stand for what is found when it happens.
        """
        for kind in kinds:
            self._event(
                "kind", id=kind.id, stops=kind.stops, title=kind.title, explanation=kind.explanation, remedy=kind.remedy
            )

    def checked(self, pid: int, target: str, obstacles: Sequence[Obstacle], notes: Sequence[str] = ()) -> None:
        """Notes, obstacles, then `{"event":"checked","at":…,"pid":…,"target":…,"stops":…}`: how many stop it."""
        for note in notes:
            self.note(note)
        self.obstacles(obstacles, asked=True)
        self._event("checked", pid=pid, target=target, stops=sum(obstacle.stops for obstacle in obstacles))

    def recovered(self, migration: str, outcome: Outcome) -> None:
        """`{"event":"recovered","at":…,"id":…,"course":…,"host":…,"pid":…,"text":…,"terminal":…,"hangs_up_seconds":…}`.

        pid 0: it runs on no host yet; terminal "": it has no new one.
        """
        fields = {field.name: getattr(outcome, field.name) for field in dataclasses.fields(outcome)}
        self._event("recovered", id=migration, **fields | {"course": outcome.course.value})

    def listed(self, reports: Sequence[Report], directory: str) -> None:
        """`{"event":"report",…}` for each, as that of its migration was."""
        for report in reports:
            self._printer.write(as_json(report) + "\n")

    def pictured(self, reports: Sequence[Report]) -> None:
        """`{"event":"report",…}` for each; behind two, `{"event":"compared","at":…,"rows":[…]}`.

        A row is `{"name","unit","a","b","ratio"}`; what one of them does not have is null.
        """
        from migrator import comparing

        self.listed(reports, "")
        if len(reports) == 2:
            rows = [
                {"name": row.name, "unit": row.unit, "a": row.a, "b": row.b, "ratio": row.ratio}
                for row in comparing.rows(reports[0], reports[1])
            ]
            self._event("compared", rows=rows)

    def plotted(self, path: str) -> None:
        """`{"event":"plotted","at":…,"path":…}`"""
        self._event("plotted", path=path)

    def told(self, text: str, events: Sequence[tuple[str, dict[str, object]]]) -> None:
        """The events (`status_words` and `status` say which there are)."""
        for name, fields in events:
            self._event(name, **fields)

    def failed(self, error: MigrateError) -> None:
        """`{"event":"error","at":…,"error":…,"exit_code":…,"message":…,"hint":…,"log":…,"where":…}`"""
        self._event(
            "error",
            error=type(error).__name__,
            exit_code=error.exit_code,
            message=error.message,
            hint=error.hint,
            log=error.log,
            where=error.where,
        )
        super().failed(error)

    def finish(self) -> None:
        """`{"event":"report",` and the fields of `phases.Report`: the last event."""
        if self._report is not None:
            self._printer.write(as_json(self._report) + "\n")
        self._printer.close()

    def _event(self, name: str, /, **fields: object) -> None:
        self._dump({"event": name, "at": self.elapsed(), **fields})

    def _dump(self, event: dict[str, object]) -> None:
        self._printer.write(json.dumps(rounded(event)) + "\n")
