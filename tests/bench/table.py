"""Results as a table for a terminal, or for the README. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from tests.bench.rows import Result

HEADER = ("row", "on", "measured", "must be", "met", "samples")
NOTHING = "-"
SHOWN = 4
"""Samples of one kind that are shown each; of more, how many there are and between what they lie."""


def number(value: float) -> str:
    """Three digits that count."""
    if value == 0 or 1e-4 <= abs(value) < 1000:
        return f"{value:.3g}"
    return f"{value:.0f}" if abs(value) >= 1000 else f"{value:.1e}"


def _samples(result: Result) -> str:
    shown = []
    for name, values in result.samples.items():
        if len(values) > SHOWN:
            text = f"{number(min(values))}…{number(max(values))} (n={len(values)})"
        else:
            text = " ".join(map(number, values))
        shown.append(f"{name}: {text}")
    return "; ".join(shown)


def cells(result: Result) -> tuple[str, ...]:
    """One result, a text for each column."""
    if result.value is None:
        return (result.row, result.backend, NOTHING, "", "", result.why)
    goal = str(result.goal).replace("<=", "≤").replace(">=", "≥") if result.goal else NOTHING
    met = {True: "yes", False: "NO", None: ""}[result.met]
    return (result.row, result.backend, f"{number(result.value)} {result.unit}", goal, met, _samples(result))


def text(results: Sequence[Result], machine: str) -> str:
    """The whole table, aligned, the machine above it."""
    lines = [HEADER, *map(cells, results)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(HEADER))]
    shown = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
    return "\n".join([machine, "", shown[0], "  ".join("─" * width for width in widths[:-1]), *shown[1:], ""])


def markdown(results: Sequence[Result]) -> str:
    """The same without samples, for the README."""
    lines = ["| row | on | measured | must be | |", "|---|---|---|---|---|"]
    for result in results:
        row, backend, measured, goal, met, why = cells(result)
        lines.append(f"| {row} | {backend} | {measured if result.value is not None else why} | {goal} | {met} |")
    return "\n".join([*lines, ""])
