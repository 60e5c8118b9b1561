"""A drain on a time axis: a lane for each process, with the stretch in which it ran nowhere; drawn in characters here.

Pure. `picture` draws the same with matplotlib.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from migrator import chart
from migrator.words import count, escape, fold, seconds_text

COLUMNS, NARROWEST = 100, 32
LABEL = 24
HERE, NOBODY, THERE = "█", "░", "▓"
LEGEND = f"{HERE} runs where it was  {NOBODY} frozen  {THERE} runs on the target"
NARROWEST_BAR = 8


@dataclasses.dataclass(frozen=True)
class Lane:
    """One process on its way to one target. Times are in seconds since the drain's start."""

    label: str
    began: float
    ended: float
    outcome: str
    """In a few words, for behind the bar."""
    frozen: tuple[float, float] | None = None
    """When nobody ran; None where it never came to that."""
    arrived: bool = False
    """Whether it runs on the target from then on, and not where it was."""

    @property
    def downtime(self) -> float:
        """Seconds."""
        return self.frozen[1] - self.frozen[0] if self.frozen else 0.0


def title(name: str, lanes: Sequence[Lane]) -> str:
    """Whose picture it is, and the figures of all together."""
    down = sum(lane.downtime for lane in lanes)
    longest = max((lane.downtime for lane in lanes), default=0.0)
    text = f"{chart.shortened(name)}: {count(len(lanes), 'migration')} in {seconds_text(length(lanes))}"
    return text + (f", down {chart.short_time(down)} in all, {chart.short_time(longest)} at most" if down else "")


def length(lanes: Sequence[Lane]) -> float:
    """From the drain's start to the last one's end, in seconds."""
    return max((lane.ended for lane in lanes), default=0.0)


def drawn(name: str, lanes: Sequence[Lane], columns: int = 0) -> str:
    """All of them in lines of at most so many columns (0: 100), 32 at least."""
    room = max(columns or COLUMNS, NARROWEST)
    text = fold(title(name, lanes), room, "")
    if not lanes:
        return text
    rows = [("", "in", "down"), *map(_figures, lanes)]
    time = max(len(cell) for _, *cells in rows for cell in cells) + 2
    width = min(max(len(label) for label, _, _ in rows), LABEL, max(room - 2 * time, 1))
    bar = room - width - 2 * time - 2
    text += "\n"
    for (label, *cells), lane in zip(rows, [None, *lanes], strict=True):
        line = label if len(label) <= width else label[: width - 1] + "…"
        line = f"{line:<{width}}" + "".join(f"{cell:>{time}}" for cell in cells)
        if lane and bar >= NARROWEST_BAR:
            line += "  " + _bar(lane, length(lanes), bar)
        text += line.rstrip() + "\n"
        if lane and lane.outcome and not lane.arrived:
            text += fold(escape(lane.outcome), room)
    return text + (fold(LEGEND, room, "") if bar >= NARROWEST_BAR else "")


def _figures(lane: Lane) -> tuple[str, str, str]:
    down = chart.short_time(lane.downtime) if lane.frozen else "-"
    return escape(lane.label), chart.short_time(lane.ended - lane.began), down


def _bar(lane: Lane, whole: float, columns: int) -> str:
    """What is there is seen, however short it is."""
    first, last = _cells(lane.began, lane.ended, whole, columns)
    cells = [" "] * first + [HERE] * (last + 1 - first)
    if lane.frozen:
        still, thawed = _cells(*lane.frozen, whole, columns)
        if lane.arrived:
            cells[thawed:] = [THERE] * (last + 1 - thawed)
        cells[still : thawed + 1] = [NOBODY] * (thawed + 1 - still)
    return "".join(cells)


def _cells(begin: float, end: float, whole: float, columns: int) -> tuple[int, int]:
    """The first and the last column that a stretch touches."""
    shares = (at / whole if whole > 0 else 0.0 for at in (begin, end))
    first, last = (min(max(int(share * columns), 0), columns - 1) for share in shares)
    return first, max(first, last)
