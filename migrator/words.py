"""Sizes, times, obstacles and their kinds, errors and reports as people read them.

Owns the wording and its escaping: facts in, text out. Refuses to know where it goes; that is `migrator.output`'s.
"""

from __future__ import annotations

import json
import math
import re
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from migrator.errors import MigrateError, UsageError
from migrator.phases import Report

if TYPE_CHECKING:
    from migrator.config import Setting
    from migrator.kinds import Kind
    from migrator.obstacle import Obstacle
    from migrator.recovery import Outcome

WIDEST_CELL = 44
"""Table cells longer than this do not push the columns of the other rows apart."""


def escape(text: str) -> str:
    """Text as it may go to a terminal: bytes that were no text, control and invisible characters as escapes."""
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def bytes_text(size: float) -> str:
    """A size as people read it: 812 B, 38 MiB, 1.1 MiB, 1.02 GiB."""
    if size < 1024:
        return f"{size:.0f} B"
    for unit in ("KiB", "MiB", "GiB"):
        size /= 1024
        if size < 1000 or unit == "GiB":
            break
    decimals = 2 if unit == "GiB" and size < 100 else 1 if size < 10 else 0
    return f"{size:.{decimals}f} {unit}"


def seconds_text(seconds: float, *, upper: bool = False) -> str:
    """A time as people read it: 0.12 s, 3.4 s, 2 min 05 s. An `upper` bound is never rounded down."""
    digits = 2 if seconds < 1 else 1 if seconds < 60 else 0
    if upper:
        seconds = math.ceil(round(seconds * 10**digits, 6)) / 10**digits
    if seconds < 60:
        return f"{seconds:.{digits}f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def count(number: int, thing: str) -> str:
    """So many of a thing: 1 obstacle, 2 obstacles."""
    return f"{number} {thing}" if number == 1 else f"{number} {thing}s"


def round_label(number: int, final: bool) -> str:
    """The name of a round."""
    return "freeze" if final else f"pre-copy {number}"


def pid_text(pid: int, inside: int) -> str:
    """A PID on the target, and that in the namespace that the process has there; `inside` is 0 where it has none."""
    return f"pid {pid} ({inside} in a PID namespace of its own)" if inside else f"pid {pid}"


def summary(report: Report) -> str:
    """The last line of a migration that arrived or was rehearsed; nothing for others, since the error says it all."""
    if report.outcome == "migrated":
        where = f"{escape(report.target)} as {pid_text(report.target_pid, report.inside_pid)}"
        what, pause = f"running on {where}", "down"
    elif report.outcome == "rehearsed":
        what, pause = f"pid {report.pid} can move to {escape(report.target)}, and runs on here", "paused"
    else:
        return ""
    return (
        f"{what}: {pause} {seconds_text(report.downtime_seconds, upper=True)}{_predicted(report)}, "
        f"total {seconds_text(report.total_seconds)}, "
        f"{bytes_text(report.bytes)} in {bytes_text(report.wire_bytes)} on the wire\n"
        + (f"its unit: {escape(report.unit)}\n" if report.unit and report.outcome == "migrated" else "")
        + (f"its terminal: {escape(report.terminal)}\n" if report.terminal else "")
    )


def recovered(outcome: Outcome) -> str:
    """What `migrate recover` did, where the process is, and by what its terminal is shown."""
    text = f"{escape(outcome.text)}\n"
    if outcome.terminal:
        text += f"its terminal: {escape(outcome.terminal)}\n"
    if outcome.hangs_up_seconds:
        text += f"it gets SIGHUP within {outcome.hangs_up_seconds:.0f} s unless somebody shows it so\n"
    return text


def _predicted(report: Report) -> str:
    predicted = report.predicted_downtime_seconds
    return f" (predicted {seconds_text(predicted)})" if predicted > 0 else ""


def error_text(error: MigrateError) -> str:
    """`migrate: what failed`, and below it hint, log and where the process is (who mistypes a command knows that)."""
    lines = [escape(line) for line in error.message.splitlines()] or [type(error).__name__]
    text = f"migrate: {lines[0]}\n" + "".join(f"  {line}\n" for line in lines[1:])
    where = "" if isinstance(error, UsageError) else error.where
    for label, value in (("hint: ", error.hint), ("log: ", error.log), ("", where)):
        text += f"  {label}{escape(value)}\n" if value else ""
    return text


def obstacle_table(obstacles: Sequence[Obstacle], columns: int = 0) -> str:
    """Obstacles as an aligned table, each remedy on a line of its own; stacked and folded where `columns` are too few.

    `columns` 0 means any width: a line for an obstacle, another for its remedy. A row: host, id, stops or warns,
    object, problem.
    """
    rows = [
        (
            escape(item.host), escape(item.id), "stops" if item.stops else "warns", escape(item.object),
            escape(item.problem),
        )
        for item in obstacles
    ]  # fmt: skip
    widths = [max(min(len(row[index]), WIDEST_CELL) for row in rows) for index in range(4)]
    width = sum(widths) + 8 + max(len(row[4]) for row in rows)
    text = ""
    for row, item in zip(rows, obstacles, strict=True):
        if columns and width > columns:
            text += fold("  ".join(row[:4]), columns, "") + fold(row[4], columns)
        else:
            cells = [f"{cell:<{cell_width}}" for cell, cell_width in zip(row[:4], widths, strict=True)]
            text += "  ".join([*cells, row[4]]).rstrip() + "\n"
        text += fold(escape(item.remedy), columns) if item.remedy else ""
    return text


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows of cells below their heads, aligned."""
    lines = [tuple(head), *(tuple(map(escape, row)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    cells = ("  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "".join(f"{line.rstrip()}\n" for line in cells)


def explanation(kind: Kind, columns: int = 0) -> str:
    """A kind of obstacle at length, as `migrate explain` says it."""
    what = "stops a migration" if kind.stops else "a warning"
    # fields of a template stand for what is found when it happens
    remedy = re.sub(r"\{(\w+)[^}]*\}", lambda field: field[1].upper(), kind.remedy)
    return (
        f"{kind.id} ({what})\n\n"
        + fold(kind.title[:1].upper() + kind.title[1:] + ".", columns, "")
        + "\n" + fold(kind.explanation, columns, "")
        + "\n" + fold(f"Remedy: {remedy}", columns, "")
    )  # fmt: skip


def kinds_list(kinds: Iterable[Kind]) -> str:
    """Every kind on a line: id, stops or warns, title."""
    known = list(kinds)
    width = max(len(kind.id) for kind in known)
    return "".join(f"{kind.id:<{width}}  {'stops' if kind.stops else 'warns'}  {kind.title}\n" for kind in known)


def configuration(files: Mapping[str, bool], settings: Mapping[str, Setting]) -> str:
    """Settings as they may stand in a file, each with where it is from; above them the files that were looked for.

    What JSON writes is TOML too, for all that a setting can be.
    """
    lines = {key: escape(f"{key} = {json.dumps(setting.raw, ensure_ascii=False)}") for key, setting in settings.items()}
    width = min(max(map(len, lines.values())), WIDEST_CELL)
    return "".join(
        [f"# {escape(path)}{'' if there else ': not there'}\n" for path, there in files.items()]
        + [f"{lines[key]:<{width}}  # {escape(setting.where)}\n" for key, setting in settings.items()]
    )


def fold(text: str, columns: int, indent: str = "    ") -> str:
    """Lines of at most so many columns, broken at spaces only: a path or a command stays in one piece."""
    if not columns or len(indent + text) <= columns:
        return (indent + text).rstrip() + "\n"
    lines = textwrap.wrap(
        text, max(columns, 20), initial_indent=indent, subsequent_indent=indent, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip
    return "\n".join(lines) + "\n"


def _escaped(char: str) -> str:
    code = ord(char)
    if 0xDC80 <= code <= 0xDCFF:  # surrogateescape: a byte that was no UTF-8
        return f"\\x{code - 0xDC00:02x}"
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"
