"""Results as an SVG, drawn with the standard library: the downtimes on one scale, and how far every figure is from
its goal. Both scales are logarithmic: what is compared differs by factors. Pure."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from xml.etree import ElementTree

from tests.bench.rows import Result, median
from tests.bench.table import number

WIDTH = 900
LEFT = 300
RIGHT = 110
LINE = 22
GOOD, BAD, PLAIN, INK, FAINT = "#2b7a4b", "#b3382c", "#5b6f8f", "#222222", "#cccccc"
FONT = "Helvetica, Arial, sans-serif"


@dataclasses.dataclass(frozen=True)
class Bar:
    """One line of a panel: a value on its scale, and how it is called."""

    label: str
    value: float
    shown: str
    colour: str


def downtimes(results: Sequence[Result]) -> list[Bar]:
    """The rows that are measured in seconds; those of several sizes have a bar for each."""
    bars = []
    for result in results:
        if result.value is None or (result.unit != "s" and result.row != "flatness"):
            continue
        kinds = result.samples if result.row == "flatness" else {"": [result.value]}
        for name, values in kinds.items():
            label = " ".join(filter(None, (result.row, name, f"({result.backend})")))
            bars.append(Bar(label, median(values), f"{number(median(values))} s", PLAIN))
    return bars


def distances(results: Sequence[Result]) -> list[Bar]:
    """Every figure that has a goal, as a factor from it; 1 is the goal itself."""
    bars = []
    for result in results:
        if result.value is None or result.goal is None:
            continue
        label = f"{result.row} ({result.backend}), {result.goal} {result.unit}".replace("<=", "≤").replace(">=", "≥")
        part = min(max(result.goal.part(result.value), 1e-3), 1e3)
        bars.append(Bar(label, part, number(result.value), GOOD if result.met else BAD))
    return bars


def svg(results: Sequence[Result], machine: str) -> str:
    """The whole picture."""
    panels = [
        ("Downtime, seconds", downtimes(results)),
        ("From the goal (line), left of it is met", distances(results)),
    ]
    height = 60 + sum(50 + LINE * len(bars) for _, bars in panels if bars)
    root = ElementTree.Element(
        "svg", {"xmlns": "http://www.w3.org/2000/svg", "viewBox": f"0 0 {WIDTH} {height}", "font-family": FONT}
    )
    ElementTree.SubElement(root, "rect", {"width": str(WIDTH), "height": str(height), "fill": "white"})
    _write(root, 16, 26, "migrate: vagrant/lab bench", size=16)
    _write(root, 16, 44, machine, size=11)
    top = 60
    for title, bars in panels:
        if bars:
            top = _panel(root, top, title, bars, line_at=1.0 if bars[0].colour != PLAIN else None)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n"


def _panel(root: ElementTree.Element, top: int, title: str, bars: Sequence[Bar], line_at: float | None) -> int:
    _write(root, 16, top + 20, title, size=13)
    values = [bar.value for bar in bars] + ([line_at] if line_at else [])
    low, high = math.floor(math.log10(min(values))), math.ceil(math.log10(max(values)) + 1e-9)
    high = max(high, low + 1)

    def across(value: float) -> float:
        return LEFT + (math.log10(value) - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    bottom = top + 36 + LINE * len(bars)
    for power in range(low, high + 1):
        _line(root, across(10.0**power), top + 30, bottom, FAINT)
        _write(root, across(10.0**power), top + 26, number(10.0**power), size=9, anchor="middle")
    for index, bar in enumerate(bars):
        y = top + 36 + LINE * index
        end = across(bar.value)
        box = {"x": str(LEFT), "y": str(y), "width": f"{max(end - LEFT, 1):.1f}", "height": str(LINE - 8)}
        ElementTree.SubElement(root, "rect", {**box, "fill": bar.colour})
        _write(root, LEFT - 8, y + 11, bar.label, size=11, anchor="end")
        _write(root, end + 6, y + 11, bar.shown, size=11)
    if line_at:
        _line(root, across(line_at), top + 30, bottom, INK)
    return bottom + 14


def _line(root: ElementTree.Element, x: float, top: int, bottom: int, colour: str) -> None:
    ends = {"x1": f"{x:.1f}", "x2": f"{x:.1f}", "y1": str(top), "y2": str(bottom)}
    ElementTree.SubElement(root, "line", {**ends, "stroke": colour})


def _write(root: ElementTree.Element, x: float, y: float, words: str, *, size: int, anchor: str = "start") -> None:
    place = {"x": f"{x:.1f}", "y": f"{y:.1f}", "font-size": str(size), "fill": INK, "text-anchor": anchor}
    ElementTree.SubElement(root, "text", place).text = words
