"""Another round, or freeze? The controller of pre-copy, as a pure function over the rounds so far.

Owns the prediction of the downtime and the rules by which pre-copy ends. Refuses to touch a host, a clock or a stream:
what it knows it is told, so that every workload can be tried out in a table.

What a round tells: round 1 carries all memory; every later round carries what was dirtied since the round before it.
CRIU takes that snapshot at the *start* of a round, so round n holds what was dirtied in about the seconds of
round n-1, and the final dump will hold those dirtied in the seconds of the last round.

Predicted downtime = fixed cost + seizing this tree + (dirty bytes / measured rate) + (memory / restore rate, where
memory is restored before the tree runs).

The rules, in their order:

1. no rounds allowed, or all of them used: freeze;
2. the prediction is within the limit: freeze;
3. the last round was almost empty (64 pages, p.haul's yardstick): freeze, another one gains nothing;
4. sending the dirty pages is less than a tenth of the predicted downtime: freeze, more rounds shorten only that part;
5. two rounds one after the other shrank by less than a tenth: freeze, the process dirties memory as fast as the link
   carries it. One such round alone is forgiven (a burst), and the first round, everything, does not count;
6. otherwise another round.
"""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Sequence

from migrator.phases import Round

FEW_PAGES = 64
"""A round of so few pages is an empty one (p.haul, `iters.py`)."""

WORTHWHILE = 0.1
"""A round is worth its time when it shrinks by at least this share (p.haul, `iters.py`)."""

SHORTEST_INTERVAL = 0.001
"""Seconds; below it no clock of a round is trusted."""

TYPICAL_FIXED_SECONDS = 0.08
"""Freeze of a tree without memory, as measured with a warm criu: dump 10 to 22 ms, restore 9 to 14 ms, images and
round trips over a warm connection, and a process' share of a busy machine."""

TYPICAL_RATE = 100 * 1024 * 1024
"""Bytes a second, where nothing has been measured yet: a gigabit link."""


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the operator allows."""

    max_downtime: float = 0.3
    """Seconds (QEMU's default)."""
    max_rounds: int = 8
    """Pre-copy rounds at most, the final dump not counted (p.haul's default); 0: no pre-copy."""


@dataclasses.dataclass(frozen=True)
class Costs:
    """What the freeze costs beside the dirty pages."""

    fixed_seconds: float = TYPICAL_FIXED_SECONDS
    """Round trips, criu's start, the images that are no memory, files copied inside the freeze."""
    rate: float = 0.0
    """Bytes a second that dump and link carry together, if known beforehand; 0: what the rounds measured."""
    memory: int = 0
    """Bytes that are restored before the tree runs; 0 when memory is filled in afterwards."""
    restore_rate: float = 0.0
    """Bytes a second of an eager restore; 0: restoring costs nothing that grows with memory."""


class Action(enum.Enum):
    """What comes next."""

    AGAIN = "again"
    FREEZE = "freeze"


@dataclasses.dataclass(frozen=True)
class Decision:
    """What comes next, and why in words for the operator."""

    action: Action
    reason: str
    predicted_downtime: float
    """Seconds, if the tree were frozen now."""
    predicted_bytes: int
    """What the next round, or the final dump, will carry."""
    within_limit: bool
    """Whether `predicted_downtime` is what the operator allows."""


def decide(rounds: Sequence[Round], limits: Limits, costs: Costs | None = None) -> Decision:
    """What to do after these pre-copy rounds (the final dump is not among them)."""
    costs = costs or Costs()
    dirty = predicted_dirty(rounds, costs.memory)
    transfer = dirty / _rate(rounds, costs)
    constant = _constant_seconds(rounds, costs)
    predicted = constant + transfer
    within = predicted <= limits.max_downtime

    def decision(action: Action, reason: str) -> Decision:
        return Decision(action, reason, predicted, dirty, within)

    limit = f"the limit of {limits.max_downtime:.2f} s"
    if limits.max_rounds == 0:
        return decision(Action.FREEZE, "no pre-copy rounds allowed")
    if not rounds:
        return decision(Action.AGAIN, "the first round carries all memory")
    if within:
        return decision(Action.FREEZE, f"predicted downtime {predicted:.2f} s is within {limit}")
    if rounds[-1].pages <= FEW_PAGES:
        return decision(
            Action.FREEZE,
            f"the last round was almost empty; predicted downtime {predicted:.2f} s, over {limit}",
        )
    if transfer < WORTHWHILE * predicted:
        return decision(
            Action.FREEZE,
            f"more rounds gain nothing: {constant:.2f} s of the predicted {predicted:.2f} s do not depend on them; "
            f"over {limit}",
        )
    if _stalled(rounds):
        return decision(
            Action.FREEZE,
            "memory is dirtied as fast as it is sent: the last two rounds shrank by less than a tenth; "
            f"predicted downtime {predicted:.2f} s, over {limit}",
        )
    if len(rounds) >= limits.max_rounds:
        return decision(
            Action.FREEZE,
            f"all {limits.max_rounds} rounds used; predicted downtime {predicted:.2f} s, over {limit}",
        )
    return decision(Action.AGAIN, f"predicted downtime {predicted:.2f} s is over {limit}")


def predicted_dirty(rounds: Sequence[Round], memory: int = 0) -> int:
    """Bytes that the next dump will hold.

    Before any round, that is all memory; after the first one it is unknown and taken as all of it again. After round 2
    one interval is known, and the next one is taken as no better, scaled up if it is longer. From round 3 on, two
    intervals show how the dirty bytes grow with time: as a power of it, between not at all (a hot set that is
    written over and over) and in proportion (new pages all the time). A straight proportion would promise too much
    for a hot set.
    """
    if not rounds:
        return memory
    if len(rounds) == 1:
        return rounds[0].bytes
    last = rounds[-1]
    ratio = max(last.seconds, SHORTEST_INTERVAL) / max(rounds[-2].seconds, SHORTEST_INTERVAL)
    exponent = 1.0 if ratio > 1 else _growth(rounds)
    return math.ceil(last.bytes * math.pow(ratio, exponent))


def _growth(rounds: Sequence[Round]) -> float:
    """The exponent of dirty bytes over time, from the last two intervals; 0 where that cannot be told."""
    if len(rounds) < 3:
        return 0.0
    earlier, later = rounds[-2], rounds[-1]
    stretch = math.log(max(rounds[-2].seconds, SHORTEST_INTERVAL) / max(rounds[-3].seconds, SHORTEST_INTERVAL))
    if min(earlier.bytes, later.bytes) <= 0 or abs(stretch) < WORTHWHILE:
        return 0.0
    return min(1.0, max(0.0, math.log(later.bytes / earlier.bytes) / stretch))


def _rate(rounds: Sequence[Round], costs: Costs) -> float:
    """Bytes a second of dump and link together: of the largest round, since small ones measure criu's start."""
    measured = max(rounds, key=lambda round_: round_.bytes, default=None)
    if measured is not None and measured.bytes > 0 and measured.seconds > 0:
        rate = measured.bytes / measured.seconds
        return min(rate, costs.rate) if costs.rate > 0 else rate
    return costs.rate if costs.rate > 0 else TYPICAL_RATE


def _constant_seconds(rounds: Sequence[Round], costs: Costs) -> float:
    """Seconds of the freeze that no further round shortens."""
    seizing = min((round_.frozen_seconds for round_ in rounds), default=0.0)
    restoring = costs.memory / costs.restore_rate if costs.restore_rate > 0 else 0.0
    return costs.fixed_seconds + seizing + restoring


def _stalled(rounds: Sequence[Round]) -> bool:
    """Whether two rounds one after the other shrank by less than a tenth."""
    sizes = [round_.bytes for round_ in rounds[1:]]
    if len(sizes) < 3:
        return False
    return all(later > (1 - WORTHWHILE) * earlier for earlier, later in zip(sizes[-3:], sizes[-2:], strict=False))
