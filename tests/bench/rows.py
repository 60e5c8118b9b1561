"""What is measured, what it must be, and what a result looks like. Pure: no host is touched here.

A result is one JSON object: {"row","value","unit","goal","met","backend","samples"}. `goal` is a comparison such as
"<= 1.2", or null where a row only gives the others something to be compared with. `samples` holds what was measured,
under the name of what it is. `value` is null where it could not be measured, and then `why` says why not.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, Optional

BACKENDS = ("netns", "vm")
"""The order in which they are measured: the quick one first."""


@dataclasses.dataclass(frozen=True)
class Goal:
    """What a value must be: at most, or at least, a bound."""

    comparison: str  # "<=" or ">="
    bound: float

    def __str__(self) -> str:
        return f"{self.comparison} {self.bound:g}"

    @classmethod
    def parse(cls, text: str) -> Goal:
        """The other way around. Raises ValueError."""
        comparison, _, bound = text.partition(" ")
        if comparison not in ("<=", ">="):
            raise ValueError(f"not a goal: {text!r}")
        return cls(comparison, float(bound))

    def met_by(self, value: float) -> bool:
        """Whether the value is good enough."""
        return value <= self.bound if self.comparison == "<=" else value >= self.bound

    def part(self, value: float) -> float:
        """How far the value is from the bound, as a factor: up to 1 is met, whichever way the comparison goes."""
        if value <= 0 or self.bound <= 0:
            return 0.0 if self.met_by(value) else float("inf")
        return value / self.bound if self.comparison == "<=" else self.bound / value


def at_most(bound: float) -> Goal:
    """A goal that a smaller value meets."""
    return Goal("<=", bound)


def at_least(bound: float) -> Goal:
    """A goal that a larger value meets."""
    return Goal(">=", bound)


@dataclasses.dataclass(frozen=True)
class Result:
    """One measured figure of a row; a row with two figures has two of these, told apart by their units."""

    row: str
    value: Optional[float]
    unit: str
    goal: Optional[Goal]
    backend: str
    samples: Mapping[str, Sequence[float]] = dataclasses.field(default_factory=dict)
    why: str = ""

    @property
    def met(self) -> Optional[bool]:
        """Whether the goal is reached; None without a goal or a value."""
        return self.goal.met_by(self.value) if self.goal is not None and self.value is not None else None

    def to_json(self) -> str:
        """One line."""
        line: dict[str, Any] = {
            "row": self.row,
            "value": self.value,
            "unit": self.unit,
            "goal": str(self.goal) if self.goal else None,
            "met": self.met,
            "backend": self.backend,
            "samples": {name: list(values) for name, values in self.samples.items()},
        }
        return json.dumps(line | ({"why": self.why} if self.why else {}))

    @classmethod
    def from_json(cls, line: str) -> Result:
        """The other way around."""
        said = json.loads(line)
        goal = Goal.parse(said["goal"]) if said["goal"] else None
        why = said.get("why", "")
        return cls(said["row"], said["value"], said["unit"], goal, said["backend"], said["samples"], why)


def not_measured(row: str, backend: str, why: str) -> Result:
    """A row that can't be measured here."""
    return Result(row, None, "", None, backend, why=why)


ROWS: Mapping[str, tuple[str, ...]] = {
    "by hand": ("netns", "vm"),
    "haul": ("netns", "vm"),
    "ours": ("netns", "vm"),
    "flatness": ("netns", "vm"),
    "stream": ("netns",),
    "stream, compressible": ("netns",),
    "fill": ("netns",),
    "target memory": ("netns",),
    "source memory": ("netns",),
    "floor": ("netns",),
    "own share": ("netns",),
    "check": ("netns",),
    "client": ("netns",),
}
"""Every row, in the order of the table, and where it is measured: what needs native speed only on netns."""


def elsewhere(chosen: Sequence[str], backends: Sequence[str]) -> list[Result]:
    """Chosen rows that none of these backends measures, each with its reason."""
    missing = [row for row in chosen if not set(ROWS[row]) & set(backends)]
    return [not_measured(row, ROWS[row][0], f"measured on {' and '.join(ROWS[row])} only") for row in missing]


def in_order(results: Sequence[Result]) -> list[Result]:
    """As the table has them: by row, then by backend; figures of one row stay in their order."""
    names = list(ROWS)
    return sorted(results, key=lambda each: (names.index(each.row), BACKENDS.index(each.backend)))


def median(values: Sequence[float]) -> float:
    """The middle one; of two, their mean."""
    return statistics.median(values)


def growth(by_size: Mapping[str, Sequence[float]]) -> float:
    """How many times longer the last size takes than the first, by their medians."""
    sizes = list(by_size.values())
    return median(sizes[-1]) / median(sizes[0])


def ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """The median of pairs that were measured one after the other, so that a machine's busy moment hits both."""
    return median([mine / other for mine, other in zip(ours, theirs)])


def compared(ours: Result, by_hand: Optional[Result], haul: Optional[Result]) -> list[Result]:
    """`ours` in parts of the other two's downtimes, which is what it is judged by."""
    found = []
    for other, unit, bound in ((by_hand, "of by hand", 1 / 40), (haul, "of haul", 1 / 5)):
        if ours.value is not None and other is not None and other.value:
            goal = at_most(bound) if ours.backend == "vm" else None
            found.append(Result(ours.row, ours.value / other.value, unit, goal, ours.backend))
    return found
