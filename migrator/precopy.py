"""Another round, or freeze? The controller of pre-copy, as a pure function over the rounds so far.

Owns the prediction of the downtime and the rules by which pre-copy ends. Refuses to touch a host, a clock or a stream:
what it knows it is told, so that every workload can be tried out in a table.

What a round tells: round 1 carries all memory; every later round carries what was dirtied since the round before it.
CRIU takes that snapshot at the *start* of a round, so round n holds what was dirtied in about the seconds of
round n-1, and the final dump will hold those dirtied in the seconds of the last round.

Predicted downtime = fixed cost + seizing this tree + (dirty bytes / rate of dump and link together) + restore (+
memory / restore rate, where memory is restored before the tree runs) (+ what the target's disk takes, where the images
have to be on it). What the rounds do not tell comes from earlier
migrations to the same host (`history`), and is typical where there were none.

The rules, in their order:

1. the prediction is within the limit: freeze;
2. no rounds are allowed: it does not converge;
3. the last round was almost empty (64 pages, p.haul's yardstick): it does not converge, another one gains nothing;
4. sending the dirty pages is less than a tenth of the predicted downtime: the same, more rounds shorten only that part;
5. two rounds one after the other shrank by less than a tenth, or all rounds are used: the process dirties memory as
   fast as the link carries it. One such round alone is forgiven (a burst), and the first, everything, does not count;
6. otherwise another round.

What does not converge is frozen all the same, or given up, as the operator wishes. If the operator wishes, rule 5 slows
the process down first, step by step: each step has two rounds to show what it does (the first of them holds what was
dirtied before the step), goes on while rounds shrink, four at most, and after the last step it is frozen.
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

TYPICAL_FIXED_SECONDS = 0.065
"""Freeze of a tree without memory, as measured with a warm criu: dump 10 to 22 ms, images and round trips over a warm
connection, and a process' share of a busy machine. Without the restore."""

TYPICAL_RESTORE_SECONDS = 0.015
"""Restore of a tree without memory, or before it is filled in: 9 to 14 ms with a warm criu."""

TYPICAL_RESTORE_RATE = 1.0 * 1024**3
"""Bytes a second of an eager `criu restore` (0.8 to 1.3 s a GiB, DESIGN)."""

TYPICAL_RATE = 100 * 1024 * 1024
"""Bytes a second, where nothing has been measured yet: a gigabit link."""

TYPICAL_DISK_RATE = 100 * 1024 * 1024
"""Bytes a second that a disk takes, where nothing has been measured yet."""

TYPICAL_DISK_SECONDS = 0.1
"""Of some ten files that are put on a hard disk one after the other."""

TELLING = 64 * 1024 * 1024
"""Bytes: only so large a round, or so much memory, tells a rate; with less, starting criu is what takes the time."""

STEPS = (0.5, 0.25, 0.1, 0.05)
"""Shares of the processor time that it used, to which a process is slowed down one after the other."""

ROUNDS_A_STEP = 4
"""Rounds at most at each of them."""


class OnNoConverge(str, enum.Enum):
    """What the operator wants done with a process whose predicted downtime does not come within the limit."""

    FREEZE = "freeze"  # move it with a longer downtime
    FAIL = "fail"  # leave it where it is
    THROTTLE = "throttle"  # slow it down first, then move it


@dataclasses.dataclass(frozen=True)
class Limits:
    """What the operator allows."""

    max_downtime: float = 0.3
    """Seconds (QEMU's default)."""
    max_rounds: int = 8
    """Pre-copy rounds at most at full speed, the final dump not counted (p.haul's default); 0: no pre-copy."""
    on_no_converge: OnNoConverge = OnNoConverge.FREEZE


@dataclasses.dataclass(frozen=True)
class Costs:
    """What the freeze costs beside the dirty pages."""

    fixed_seconds: float = TYPICAL_FIXED_SECONDS
    """Round trips, criu's start, the images that are no memory, files copied inside the freeze."""
    rate: float = 0.0
    """Bytes a second that dump and link have carried together, for as long as no round here tells it; 0: unknown."""
    held_back: bool = False
    """The rounds were slower than the link, and so than the freeze will be: what is known of the link counts too."""
    memory: int = 0
    """Bytes of the tree, before any round has counted them."""
    restore_seconds: float = TYPICAL_RESTORE_SECONDS
    """Of a restore without memory, or before it is filled in."""
    restore_rate: float = 0.0
    """Bytes a second of an eager restore; 0: memory is filled in afterwards."""
    durable: bool = False
    """What comes has to be on the target's disk before it counts."""
    disk_rate: float = 0.0
    """Bytes a second that the target's disk has taken before; 0: unknown."""


class Action(enum.Enum):
    """What comes next."""

    AGAIN = "again"
    FREEZE = "freeze"
    FAIL = "fail"
    THROTTLE = "throttle"


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
    share: float = 1.0
    """To throttle: of the processor time that the process used."""


def decide(
    rounds: Sequence[Round], limits: Limits, costs: Costs | None = None, throttled: Sequence[int] = ()
) -> Decision:
    """What to do after these pre-copy rounds (the final dump is not among them).

    `throttled` says how many rounds were done when each of the `STEPS` so far was taken.
    """
    costs = costs or Costs()
    since = len(rounds) - throttled[-1] if throttled else len(rounds)  # rounds since the speed last changed
    dirty = predicted_dirty(rounds, costs.memory, since - 1 if throttled else since)
    transfer = dirty / rate(rounds, costs)
    constant = _constant_seconds(rounds, costs) + _disk_seconds(rounds, costs, dirty)
    predicted = constant + transfer
    within = predicted <= limits.max_downtime
    policy = limits.on_no_converge
    over = f"predicted downtime {predicted:.2f} s, over the limit of {limits.max_downtime:.2f} s"

    def decision(action: Action, reason: str, share: float = 1.0) -> Decision:
        return Decision(action, reason, predicted, dirty, within, share)

    def stop(reason: str) -> Decision:
        return decision(Action.FAIL if policy is OnNoConverge.FAIL else Action.FREEZE, f"{reason}; {over}")

    def slow_down(reason: str) -> Decision:
        if policy is OnNoConverge.THROTTLE and len(throttled) < len(STEPS):
            return decision(Action.THROTTLE, f"{reason}; {over}", STEPS[len(throttled)])
        return stop(reason)

    if within and (rounds or limits.max_rounds == 0):
        return decision(
            Action.FREEZE, f"predicted downtime {predicted:.2f} s is within the limit of {limits.max_downtime:.2f} s"
        )
    if limits.max_rounds == 0:
        return stop("no pre-copy rounds")
    if not rounds:
        return decision(Action.AGAIN, "the first round carries all memory")
    if rounds[-1].pages <= FEW_PAGES:
        return stop("the last round was almost empty")
    if transfer < WORTHWHILE * predicted:
        return stop(f"more rounds gain nothing: {constant:.2f} s of the freeze do not depend on them")
    if throttled:
        if since >= ROUNDS_A_STEP or (since >= 2 and not _shrank(rounds[-2:])):
            share = STEPS[len(throttled) - 1]
            return slow_down(f"memory is dirtied as fast as it is sent, at {share:.0%} of its processor time too")
    elif _stalled(rounds):
        return slow_down("memory is dirtied as fast as it is sent: the last two rounds shrank by less than a tenth")
    elif len(rounds) >= limits.max_rounds:
        return slow_down(f"all {limits.max_rounds} rounds used")
    return decision(Action.AGAIN, over)


def predicted_dirty(rounds: Sequence[Round], memory: int = 0, alike: int | None = None) -> int:
    """Bytes that the next dump will hold.

    Before any round, that is all memory; after the first one it is unknown and taken as all of it again. After round 2
    one interval is known, and the next one is taken as no better, scaled up if it is longer. From round 3 on, two
    intervals show how the dirty bytes grow with time: as a power of it, between not at all (a hot set that is
    written over and over) and in proportion (new pages all the time). A straight proportion would promise too much
    for a hot set. Only the last rounds that are `alike`, dirtied by a process of the same speed, show that.
    """
    if not rounds:
        return memory
    if len(rounds) == 1:
        return rounds[0].bytes
    last = rounds[-1]
    ratio = max(last.seconds, SHORTEST_INTERVAL) / max(rounds[-2].seconds, SHORTEST_INTERVAL)
    exponent = 1.0 if ratio > 1 else _growth(rounds) if alike is None or alike >= 2 else 0.0
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


def rate(rounds: Sequence[Round], costs: Costs) -> float:
    """Bytes a second of dump and link together: of the largest round, since small ones measure criu's start."""
    largest = max(rounds, key=lambda done: done.bytes, default=None)
    if largest is None or largest.bytes <= 0 or largest.seconds <= 0:
        return costs.rate or TYPICAL_RATE
    measured = largest.bytes / largest.seconds
    if costs.held_back:
        return max(measured, costs.rate)
    return costs.rate if costs.rate > 0 and largest.bytes < TELLING else measured


def _constant_seconds(rounds: Sequence[Round], costs: Costs) -> float:
    """Seconds of the freeze that no further round shortens."""
    seizing = min((round_.frozen_seconds for round_ in rounds), default=0.0)
    return costs.fixed_seconds + seizing + _restoring_seconds(costs)


def _restoring_seconds(costs: Costs) -> float:
    return costs.restore_seconds + (costs.memory / costs.restore_rate if costs.restore_rate > 0 else 0.0)


def _disk_seconds(rounds: Sequence[Round], costs: Costs, dirty: int) -> float:
    """Seconds that the target's disk adds to the freeze. A round's rate has its share in it; what is left of a round
    that carries little is what any costs. Without rounds it is all of the memory that goes there, beside the restore:
    at the rate of an earlier time, and where there was none a hard disk's typical one."""
    if not costs.durable:
        return 0.0
    if rounds:
        return min(done.disk_seconds for done in rounds)
    alone = dirty / costs.disk_rate if costs.disk_rate > 0 else TYPICAL_DISK_SECONDS + dirty / TYPICAL_DISK_RATE
    return max(0.0, alone - _restoring_seconds(costs))


def _stalled(rounds: Sequence[Round]) -> bool:
    """Whether two rounds one after the other shrank by less than a tenth."""
    if len(rounds) < 4:  # the first one does not count
        return False
    return not _shrank(rounds[-3:-1]) and not _shrank(rounds[-2:])


def _shrank(pair: Sequence[Round]) -> bool:
    """Whether the second of two rounds was smaller by a tenth at least."""
    return pair[1].bytes <= (1 - WORTHWHILE) * pair[0].bytes
