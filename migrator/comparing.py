"""Two reports side by side: what is compared, and the table of it.

Pure. A figure that one of the two does not have is a dash there, and has no ratio.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from migrator.chart import COLUMNS, date_text, outcome_text, rate, rate_text, short_time, shortened
from migrator.phases import Report, Span
from migrator.words import bytes_text, fold

SECONDS, BYTES, RATE, NUMBER, WORDS = "s", "B", "B/s", "", "words"
LABEL = 20


@dataclasses.dataclass(frozen=True)
class Row:
    """One figure of both: its name in the report, its name for people, its unit; None where there is none."""

    name: str
    label: str
    unit: str
    a: float | str | None
    b: float | str | None

    @property
    def ratio(self) -> float | None:
        """b / a."""
        if isinstance(self.a, str) or isinstance(self.b, str) or not self.a or self.b is None:
            return None
        return self.b / self.a


def rows(a: Report, b: Report) -> list[Row]:
    """Everything that is compared, in the order in which it is shown."""
    return [
        Row("id", "id", WORDS, a.id, b.id),
        Row("started", "date", WORDS, date_text(a) or None, date_text(b) or None),
        Row("name", "process", WORDS, a.name or None, b.name or None),
        Row("target", "target", WORDS, a.target, b.target),
        Row("outcome", "outcome", WORDS, outcome_text(a), outcome_text(b)),
        _seconds("downtime_seconds", "downtime", a, b),
        *_spans("freeze", a.freeze, b.freeze),
        _seconds("predicted_downtime_seconds", "predicted", a, b),
        _seconds("total_seconds", "total", a, b),
        *_spans("phases", a.phases, b.phases),
        Row("rounds", "rounds", NUMBER, len(a.rounds) or None, len(b.rounds) or None),
        _figure("bytes", "sent", BYTES, a, b),
        _figure("wire_bytes", "on the wire", BYTES, a, b),
        Row("first_rate", "first round at", RATE, _first_rate(a), _first_rate(b)),
        Row("dirty_rate", "last dirtied at", RATE, _dirty_rate(a), _dirty_rate(b)),
        _figure("fill_bytes", "filled in", BYTES, a, b),
        Row("fill_rate", "filled in at", RATE, _fill_rate(a), _fill_rate(b)),
        _figure("faults", "pages waited for", NUMBER, a, b),
        _seconds("longest_fault_seconds", "the longest wait", a, b),
        _figure("target_peak_bytes", "peak on target", BYTES, a, b),
        _figure("files_bytes", "files came along", BYTES, a, b),
        _figure("files_frozen_bytes", "  in the freeze", BYTES, a, b),
    ]


def table(a: Report, b: Report, columns: int = 0) -> str:
    """The rows that either has, in lines of at most so many columns (0: 80)."""
    room = columns or COLUMNS
    shown = [row for row in rows(a, b) if row.a is not None or row.b is not None]
    cells = [
        ("", "A", "B", "B / A"),
        *((row.label, *map(_cell, (row, row), (row.a, row.b)), _ratio(row)) for row in shown),
    ]
    widths = [LABEL, max(len(cell[1]) for cell in cells), max(len(cell[2]) for cell in cells)]
    if sum(widths) + 4 + len("  1000 x") > room:
        return "".join(
            fold(f"{label}: " * bool(label) + f"{one} | {two} {more}", room, "") for label, one, two, more in cells
        )
    return "".join(
        f"{label:<{LABEL}}  {one:>{widths[1]}}  {two:>{widths[2]}}  {more:>6}".rstrip() + "\n"
        for label, one, two, more in cells
    )


def _cell(row: Row, value: float | str | None) -> str:
    if value is None:
        return "-"
    if isinstance(value, str):
        return shortened(value)
    if row.unit == SECONDS:
        return short_time(value)
    return {BYTES: bytes_text(value), RATE: rate_text(value)}.get(row.unit, f"{value:.0f}")


def _ratio(row: Row) -> str:
    ratio = row.ratio
    return "" if ratio is None else f"{ratio:.2g} x" if ratio < 10 else f"{ratio:.0f} x"


def _figure(name: str, label: str, unit: str, a: Report, b: Report) -> Row:
    return Row(name, label, unit, getattr(a, name) or None, getattr(b, name) or None)


def _seconds(name: str, label: str, a: Report, b: Report) -> Row:
    return _figure(name, label, SECONDS, a, b)


def _spans(name: str, a: Sequence[Span], b: Sequence[Span]) -> list[Row]:
    """A row for each name of either, in the order of the one that has more of them."""
    first, second = ({span.name: span.seconds for span in spans} for spans in (a, b))
    order = list(dict.fromkeys([*first, *second] if len(first) >= len(second) else [*second, *first]))
    return [Row(f"{name}.{each}", f"  {shortened(each)}", SECONDS, first.get(each), second.get(each)) for each in order]


def _first_rate(report: Report) -> float | None:
    return (rate(report.rounds[0]) or None) if report.rounds else None


def _dirty_rate(report: Report) -> float | None:
    return (report.rounds[-1].dirty_rate or None) if report.rounds else None


def _fill_rate(report: Report) -> float | None:
    return report.fill_bytes / report.fill_seconds if report.fill_bytes and report.fill_seconds > 0 else None
