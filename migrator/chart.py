"""A report as a picture made of characters, for a terminal; and the words that any picture of it needs.

Pure: a report and a width in, text out. Bars of one panel share a scale, which is linear. Where a row has no room for
its bar the bar goes, and where it has none for its figures they fold onto a line of their own.
"""

from __future__ import annotations

from collections.abc import Sequence

from migrator.phases import Phase, Report, Round, Span
from migrator.timeline import UNDO
from migrator.words import bytes_text, count, escape, fold, pid_text, round_label, seconds_text

COLUMNS, NARROWEST = 80, 28
"""Where the width is not known, and where it is less than that."""
LABEL = 12
SIZE = 9
TIME = 8
RATE = 11
NARROWEST_BAR = 4
WIDEST_BAR = 60
EIGHTHS = "▏▎▍▌▋▊▉█"
PLAIN = str.maketrans({**dict.fromkeys(EIGHTHS, "#"), "→": ">", "…": "."})
"""For a terminal that has no such characters."""
FAILED = "  failed"
LONGEST_NAME = 40


def picture(report: Report, columns: int = 0) -> str:
    """The whole picture in lines of at most so many columns (0: 80), 28 at least."""
    room = max(columns or COLUMNS, NARROWEST)
    text = fold(title(report), room, "") + "".join(fold(line, room, "") for line in facts(report))
    if report.phases:
        text += f"\n{_header('whole run', report.total_seconds)}\n"
        text += cascade(report.phases, 0.0, report.total_seconds, room, failed=failed_in(report))
    if report.freeze:
        start, end = frozen(report)
        text += f"\n{_header('nobody ran', end - start)}\n" + cascade(report.freeze, start, end, room)
    if report.rounds:
        text += "\n" + rounds_table(report, room)
    return text


def title(report: Report) -> str:
    """Which process went from where to where, when, and what came of it."""
    name = f" ({shortened(report.name)})" if report.name else ""
    date = f", {date_text(report)}" if report.started else ""
    where = f"{shortened(report.source)} → {shortened(report.target)}"
    return f"pid {report.pid}{name}: {where}{date}: {outcome_text(report)}"


def shortened(text: str) -> str:
    """A name that others have chosen, as it may stand in a picture."""
    shown = escape(text)
    return shown if len(shown) <= LONGEST_NAME else shown[: LONGEST_NAME - 1] + "…"


def date_text(report: Report) -> str:
    """Date and time of the source, without the zone; "" where they are not known."""
    return escape(report.started[:19].replace("T", " "))


def outcome_text(report: Report) -> str:
    """The outcome, and the phase in which it failed, if it did."""
    failed = failed_in(report)
    return escape(report.outcome) + (f" in {failed}" if failed else "")


def failed_in(report: Report) -> str:
    """The phase in which a migration ended that did not arrive; "" of others."""
    if report.outcome in ("migrated", "rehearsed"):
        return ""
    return next((escape(span.name) for span in reversed(report.phases) if span.name != UNDO), "")


def frozen(report: Report) -> tuple[float, float]:
    """From when to when nobody ran, in seconds since the migration's start."""
    last = report.freeze[-1]
    return report.freeze[0].started_seconds, last.started_seconds + last.seconds


def facts(report: Report) -> list[str]:
    """The figures that no bar shows, a line for each subject."""
    downtime = report.downtime_seconds
    pause = f"down {short_time(downtime)}{expected_text(report)}" if downtime > 0 else ""
    if report.outcome in ("undone", "rehearsed"):
        pause = f"paused {short_time(downtime)}{expected_text(report)}" if downtime > 0 else "it was never paused"
    size = f"{bytes_text(report.bytes)} in {bytes_text(report.wire_bytes)} on the wire" if report.rounds else ""
    lines = [", ".join(filter(None, (pause, f"total {seconds_text(report.total_seconds)}", size)))]
    if report.target_pid and (report.target_pid != report.pid or report.inside_pid):
        lines.append(f"there it is {pid_text(report.target_pid, report.inside_pid)}")
    if report.fill_seconds > 0:
        lines.append(f"fill: {fill_text(report)}")
    if report.files_bytes:
        lines.append(
            f"files: {bytes_text(report.files_bytes)} came along, {bytes_text(report.files_frozen_bytes)} of that in "
            f"the freeze, {short_time(report.files_seconds)} from the hold to the last in its place"
        )
    lines += [escape(line) for line in report.error.splitlines()]
    lines += [f"left behind: {escape(item)}" for item in report.leftovers]
    return [*lines, f"id {escape(report.id)}, {escape(report.resume)} resume"]


def expected_text(report: Report) -> str:
    """What was predicted and what was allowed, in brackets; "" where neither is known."""
    known = (("predicted", report.predicted_downtime_seconds), ("allowed", report.max_downtime_seconds))
    words = ", ".join(f"{word} {short_time(seconds)}" for word, seconds in known if seconds > 0)
    return f" ({words})" if words else ""


def fill_text(report: Report) -> str:
    """How memory was filled in after the resume."""
    text = seconds_text(report.fill_seconds)
    if report.fill_bytes:
        rate = bytes_text(report.fill_bytes / report.fill_seconds)
        text = f"{bytes_text(report.fill_bytes)} in {text}, {rate}/s"
    if report.faults:
        text += f"; {count(report.faults, 'page')} waited for, {short_time(report.longest_fault_seconds)} at most"
    return text


def short_time(seconds: float) -> str:
    """A time of the freeze: 0.4 ms, 31 ms, 0.12 s, 3.4 s."""
    if seconds < 0.1:
        return f"{seconds * 1000:.{1 if seconds < 0.01 else 0}f} ms"
    return seconds_text(seconds)


def rate_text(rate: float) -> str:
    """Bytes a second; "" for none."""
    return f"{bytes_text(rate)}/s" if rate > 0 else ""


def rate(done: Round) -> float:
    """Bytes a second of a round; 0 where it took no time."""
    return done.bytes / done.seconds if done.seconds > 0 else 0.0


def labelled(report: Report) -> list[tuple[str, Round]]:
    """The rounds by name: what was sent when the freeze had begun is the freeze's."""
    began = next((span.started_seconds for span in report.phases if span.name == Phase.FREEZE.value), None)
    last = len(report.rounds)
    return [
        (round_label(number, number == last and began is not None and done.started_seconds >= began), done)
        for number, done in enumerate(report.rounds, 1)
    ]


def cascade(spans: Sequence[Span], start: float, end: float, columns: int, failed: str = "") -> str:
    """Each span on a line of its own, its bar where it lies between start and end."""
    room = min(columns - LABEL - TIME - 2 - (len(FAILED) if failed else 0), WIDEST_BAR)
    whole = end - start
    text = ""
    for span in spans:
        line = f"{escape(span.name)[: LABEL - 1]:<{LABEL}}{short_time(span.seconds):>{TIME}}"
        if room >= NARROWEST_BAR and whole > 0:
            line += "  " + bar((span.started_seconds - start) / whole, span.seconds / whole, room)
        text += line.rstrip() + (FAILED if span.name == failed else "") + "\n"
    return text


def bar(offset: float, share: float, columns: int) -> str:
    """A bar of this share of the columns, that far from the left; what is there is seen, however short it is."""
    at = min(int(max(offset, 0.0) * columns), columns - 1)
    eighths = min(max(round(share * columns * 8), 1 if share > 0 else 0), (columns - at) * 8)
    whole, rest = divmod(eighths, 8)
    return " " * at + EIGHTHS[-1] * whole + (EIGHTHS[rest - 1] if rest else "")


def rounds_table(report: Report, columns: int) -> str:
    """Each round with its bytes as a bar, its rate and seconds, and the rate at which that had been written."""
    fixed = LABEL + SIZE + RATE + TIME + RATE + 1
    room = min(columns - fixed - 2, WIDEST_BAR)
    largest = max(done.bytes for done in report.rounds)
    if room < NARROWEST_BAR:
        room = 0
    gap = " " * (room + 2) if room else ""
    folded = columns < fixed
    text = f"{'rounds':<{LABEL}}{'sent':>{SIZE}}"
    text += "\n" if folded else f"{gap}{'sent at':>{RATE}}{'in':>{TIME}}{'dirtied at':>{RATE + 1}}\n"
    for label, done in labelled(report):
        left = f"{label:<{LABEL}}{bytes_text(done.bytes):>{SIZE}}"
        sent, seconds, dirtied = rate_text(rate(done)), short_time(done.seconds), rate_text(done.dirty_rate)
        if folded:
            more = f"{sent or 'sent'} in {seconds}" + (f", dirtied at {dirtied}" if dirtied else "")
            text += left + "\n" + fold(more, columns, "  ")
            continue
        drawn = f"  {bar(0.0, done.bytes / largest if largest else 0.0, room):<{room}}" if room else ""
        text += f"{left}{drawn}{sent:>{RATE}}{seconds:>{TIME}}{dirtied:>{RATE + 1}}".rstrip() + "\n"
    return text


def _header(words: str, seconds: float) -> str:
    return f"{words:<{LABEL}}{short_time(seconds):>{TIME}}"


def reports_list(reports: Sequence[Report], columns: int = 0) -> str:
    """A line for each report: id, date, PID, name, target, outcome, downtime; folded where `columns` are too few.

    `columns` 0 means any width.
    """
    rows = [("ID", "DATE", "PID", "NAME", "TARGET", "DOWN", "OUTCOME")]
    for report in reports:
        down = short_time(report.downtime_seconds) if report.downtime_seconds > 0 else "-"
        rows.append((
            escape(report.id), date_text(report) or "-", str(report.pid), shortened(report.name) or "-",
            shortened(report.target), down, outcome_text(report),
        ))  # fmt: skip
    if not reports:
        return ""
    widths = [max(len(row[index]) for row in rows) for index in range(len(rows[0]))]
    if columns and sum(widths) + 2 * len(widths) > columns:
        folded = (fold("  ".join(row[:2]), columns, "") + fold("  ".join(row[2:]), columns) for row in rows[1:])
        return "".join(folded)
    lines = ("  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "".join(line.rstrip() + "\n" for line in lines)


NOBODY = (Phase.FREEZE.value, Phase.RESTORE.value, Phase.COMMIT.value, Phase.RESUME.value)
"""Phases in which the tree stands still."""
THERE = (Phase.FILL.value, Phase.CLEAN.value)
"""Phases in which it runs on the target."""
