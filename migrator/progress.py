"""Progress for people: bars on a terminal, plain lines in a pipe.

Owns what a migration looks like while it runs, and is the only door to tqdm. Refuses to decide anything and to write by
itself: `migrator.output` has the streams, `migrator.words` the wording.
"""

from __future__ import annotations

import functools
import os
import textwrap
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TextIO

from migrator import words
from migrator.output import Events, Printer, Progress, Quiet
from migrator.phases import Phase, Round
from migrator.words import bytes_text, escape, round_label, seconds_text

if TYPE_CHECKING:
    from tqdm import tqdm

    from migrator.errors import MigrateError
    from migrator.obstacle import Obstacle

LABEL_COLUMNS = 12
BAR_COLUMNS = 22
NARROWEST_BAR = 4
RATE_COLUMNS = 18
"""Rate and seconds."""
MORE_COLUMNS = 19
"""What follows them: "  dirtied in 0.12 s", "  of 1.02 GiB"."""
REFRESH_SECONDS = 0.1
QUIET_PHASES = (Phase.PRECOPY, Phase.FREEZE)
"""Phases whose rounds speak for them; all others end with a line that says how long they took."""
ALWAYS_SHOWN = (Phase.PREFLIGHT, Phase.FILL)
"""Phases that get their line even when they had nothing to note."""


@functools.cache
def _bars() -> type[tqdm[Any]]:
    """tqdm; loaded late, since it takes a sixth of the command's start and a pipe needs none of it."""
    from tqdm import tqdm

    tqdm.monitor_interval = 0  # no watching thread: the live line is drawn when there is something to draw
    tqdm.set_lock(threading.RLock())  # and no semaphore shared with processes that we do not have
    return tqdm


def new_bar(printer: Printer, line: int) -> tqdm[Any]:
    """A bar on its own line below the cursor's, from 0 to 1, drawn when it is told to."""
    return _bars()(total=1.0, file=printer, bar_format=" ", position=line, leave=False)


class Lines(Progress):
    """For a pipe or a log: one line for every step that is finished, nothing that moves."""

    def __init__(self, printer: Printer, *, verbose: bool = False, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(printer, verbose=verbose, clock=clock)
        self._phase_start = self._start
        self._labelled = False  # the phase's name stands on the screen
        self._pending = ""  # the newest note of the phase, held so that "ok" and the time can stand on its line
        self._interval = 0.0  # seconds of the round before: what this one holds was dirtied in them

    def enter(self, phase: Phase) -> None:
        """End the phase before with its line, and begin this one."""
        self._end_phase()
        super().enter(phase)
        self._phase_start = self._clock()
        self._labelled = False

    def note(self, text: str) -> None:
        """Shown at once, or with the end of its phase when nothing else comes in between."""
        self._flush_pending()
        if self._phase is None or self._phase in QUIET_PHASES:
            self._line(self._label(), escape(text))
        else:
            self._pending = escape(text)

    def detail(self, text: str) -> None:
        """Shown with -v only."""
        if self._verbose:
            self._flush_pending()
            self._line("", escape(text))

    def round_started(self, number: int, expected_bytes: int, final: bool) -> None:
        """Nothing to show yet, but what came before is over."""
        self._flush_pending()

    def round_done(self, number: int, result: Round, final: bool) -> None:
        """One line with everything about the round; with -v a second one."""
        self._labelled = True
        self._show_round(number, result, final)
        self._interval = result.seconds
        self.detail(
            f"round {number}: {words.count(result.pages, 'page')}, {bytes_text(result.wire_bytes)} on the wire, "
            f"frozen {seconds_text(result.frozen_seconds)}"
        )

    def warn(self, text: str) -> None:
        """After whatever was being said."""
        self._flush_pending()
        super().warn(text)

    def obstacles(self, obstacles: Sequence[Obstacle], *, asked: bool) -> None:
        """After the end of the phase that found them."""
        self._end_phase("failed" if any(obstacle.stops for obstacle in obstacles) else "ok")
        super().obstacles(obstacles, asked=asked)

    def crashed(self, bug: BaseException) -> None:
        """After the end of the phase that has the bug."""
        self._end_phase("failed")
        super().crashed(bug)

    def failed(self, error: MigrateError) -> None:
        """After the end of the phase that failed."""
        self._end_phase("failed")
        super().failed(error)

    def hand_over(self) -> None:
        """End the last phase first."""
        self._end_phase()
        super().hand_over()

    def finish(self) -> None:
        """End the last phase."""
        self._end_phase()
        super().finish()

    def _show_round(self, number: int, result: Round, final: bool) -> None:
        rate, dirtied = self._round_facts(number, result)
        self._line(round_label(number, final), f"{bytes_text(result.bytes):>9}  {rate}{dirtied}")

    def _round_facts(self, number: int, result: Round) -> tuple[str, str]:
        """Rate and time; and in what time this round's pages were dirtied, from the second round on."""
        rate = result.bytes / result.seconds if result.seconds > 0 else 0.0
        dirtied = f"  dirtied in {seconds_text(self._interval)}" if number > 1 and self._interval > 0 else ""
        return f"{bytes_text(rate) + '/s':>10}  {seconds_text(result.seconds):>6}", dirtied

    def _end_phase(self, word: str = "ok") -> None:
        """Say how the phase ended, where that is worth a line; afterwards there is no phase."""
        phase = self._phase
        if phase is not None and (
            word != "ok" or (phase not in QUIET_PHASES and (self._pending or self._verbose or phase in ALWAYS_SHOWN))
        ):
            took = f"{word}  {seconds_text(self._clock() - self._phase_start)}"
            text, self._pending = self._pending, ""
            self._labelled = self._labelled and word == "ok"  # what failed is named, however much was said before
            self._line(self._label(), f"{text}   {took}" if text else took)
        self._flush_pending()
        self._phase = None

    def _flush_pending(self) -> None:
        if self._pending:
            text, self._pending = self._pending, ""
            self._line(self._label(), text)

    def _label(self) -> str:
        if self._labelled or self._phase is None:
            return ""
        self._labelled = True
        return self._phase.value

    def _line(self, label: str, text: str) -> None:
        self._printer.write(f"{label:<{LABEL_COLUMNS}}{text}".rstrip() + "\n")


class Bars(Lines):
    """For a terminal: the same lines, with a live one below them."""

    def __init__(
        self,
        printer: Printer,
        *,
        verbose: bool = False,
        clock: Callable[[], float] = time.monotonic,
        columns: Callable[[], int],
    ) -> None:
        super().__init__(printer, verbose=verbose, clock=clock)
        self._terminal_columns = columns
        self._bar: tqdm[Any] | None = None
        self._round = ("", 0, 0.0)  # label, expected bytes, start
        self._refreshed = 0.0

    def enter(self, phase: Phase) -> None:
        """A live line says what is being done."""
        super().enter(phase)
        self._show_phase()

    def note(self, text: str) -> None:
        """A held note is visible on the live line."""
        super().note(text)
        if self._pending:
            self._show_phase()

    def round_started(self, number: int, expected_bytes: int, final: bool) -> None:
        """A bar that grows to the expected bytes."""
        super().round_started(number, expected_bytes, final)
        self._round = (round_label(number, final), expected_bytes, self._clock())
        self._refreshed = 0.0
        self.transferred(0)

    def transferred(self, sent_bytes: int) -> None:
        """Grow the bar, ten times a second at most."""
        now = self._clock()
        if self._bar is None or now - self._refreshed < REFRESH_SECONDS:
            return
        self._refreshed = now
        label, expected, start = self._round
        rate = f"{bytes_text(sent_bytes / (now - start))}/s" if sent_bytes and now > start else ""
        of = f"  of {bytes_text(expected)}" if expected else ""
        self._draw_round(label, sent_bytes, expected and max(expected, sent_bytes), f"{rate:>10}", of)

    def warn(self, text: str) -> None:
        """Above the live line."""
        self._flush_pending()
        self._above(lambda: Progress.warn(self, text))

    def _show_round(self, number: int, result: Round, final: bool) -> None:
        """The full bar stays on the screen."""
        rate, dirtied = self._round_facts(number, result)
        self._draw_round(round_label(number, final), result.bytes, result.bytes, rate, dirtied)
        if self._bar is not None:
            self._bar.leave = True
        self._clear()

    def _draw_round(self, label: str, done: int, total: int, rate: str, more: str) -> None:
        """One line, narrowed to the terminal: first the bar gives way, then what follows the rate. Total 0: unknown."""
        left = f"{label:<{LABEL_COLUMNS}}{bytes_text(done):>9}  "
        room = self._columns() - 1 - len(left) - RATE_COLUMNS - 2
        if room < MORE_COLUMNS + NARROWEST_BAR:
            more = ""
        else:
            room -= MORE_COLUMNS
        self._show(left, min(BAR_COLUMNS, room), done / total if total else 0.0, "  " + rate + more)

    def _show(self, left: str, bar_columns: int, share: float, right: str) -> None:
        """Draw the live line, with a bar in it when there is room for one."""
        columns = self._columns() - 1  # the last column would make some terminals wrap
        bar = f"{{bar:{bar_columns}}}" if bar_columns >= NARROWEST_BAR else ""
        text = left.replace("{", "{{").replace("}", "}}") + bar + right.replace("{", "{{").replace("}", "}}")
        if self._bar is None:
            new = _bars()
            self._bar = new(total=1.0, initial=share, file=self._printer, bar_format=text, ncols=columns, leave=False)
        self._bar.bar_format, self._bar.ncols, self._bar.n = text, columns, share
        self._bar.refresh()

    def _end_phase(self, word: str = "ok") -> None:
        """The live line goes with its phase."""
        self._clear()
        super()._end_phase(word)

    def _flush_pending(self) -> None:
        if self._pending:
            super()._flush_pending()
            self._show_phase()

    def _show_phase(self) -> None:
        if self._phase is not None:
            label = "" if self._labelled else self._phase.value
            self._show(f"{label:<{LABEL_COLUMNS}}{self._pending or '...'}", 0, 0.0, "")

    def _line(self, label: str, text: str) -> None:
        room = self._columns() - LABEL_COLUMNS
        if label and room >= LABEL_COLUMNS:  # what has no label is a command of -v, to be pasted: it is left as it is
            text = textwrap.fill(text, room, break_long_words=False, break_on_hyphens=False).replace(
                "\n", "\n" + " " * LABEL_COLUMNS
            )
        self._above(lambda: Lines._line(self, label, text))

    def _above(self, write: Callable[[], None]) -> None:
        """Write with the live line out of the way."""
        if self._bar is None:
            write()
            return
        self._bar.clear()
        write()
        self._bar.refresh()

    def _clear(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def _columns(self) -> int:
        return self._terminal_columns()


def choose(
    out: TextIO, err: TextIO, *, quiet: bool = False, as_json: bool = False, verbose: bool = False, terminal: str = ""
) -> Progress:
    """The mode that fits: as asked, else bars where `out` is a terminal (of that TERM) that can move its cursor."""
    printer = Printer(out, err)
    if as_json:
        return Events(printer, verbose=verbose)
    if quiet:
        return Quiet(printer)
    if out.isatty() and terminal not in ("", "dumb"):
        return Bars(printer, verbose=verbose, columns=lambda: terminal_columns(out))
    return Lines(printer, verbose=verbose)


def terminal_columns(out: TextIO) -> int:
    """How wide it is."""
    try:
        return os.get_terminal_size(out.fileno()).columns or 80
    except (OSError, ValueError):
        return 80
