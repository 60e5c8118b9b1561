"""The controller, over made-up processes and links: what it decides, and that it always ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator import precopy
from migrator.phases import Round
from migrator.precopy import Action, Costs, Decision, Limits

MIB = 1024 * 1024
PAGE = 4096


@dataclasses.dataclass(frozen=True)
class Workload:
    """A process as the controller sees it: memory, and what it dirties in an interval that starts at a given time."""

    memory: int
    dirtied: Callable[[float, float], float]  # (start, seconds) -> bytes


def steady(memory: int, rate: float) -> Workload:
    """New pages all the time, at a constant rate."""
    return Workload(memory, lambda start, seconds: rate * seconds)


def hot_set(memory: int, hot: int, rate: float) -> Workload:
    """The same pages over and over: many writes, few pages."""
    return Workload(memory, lambda start, seconds: min(hot, rate * seconds))


def growing(memory: int, growth: float) -> Workload:
    """Memory that is allocated and written, faster and faster."""
    return Workload(memory, lambda start, seconds: growth * seconds * (1 + start))


def bursty(memory: int, quiet: float, burst: int, at: float) -> Workload:
    """Little to do, but once a lot."""
    return Workload(memory, lambda start, seconds: quiet * seconds + (burst if start <= at < start + seconds else 0))


def play(work: Workload, link: float, limits: Limits, costs: Costs) -> tuple[list[Round], Decision, float]:
    """Pre-copy a workload over a link of so many bytes a second: rounds, last decision, true dirty bytes."""
    rounds: list[Round] = []
    clock, dirty = 0.0, float(work.memory)
    while True:
        decision = precopy.decide(rounds, limits, costs)
        if decision.action is Action.FREEZE:
            return rounds, decision, dirty
        size = int(dirty)
        seconds = 0.03 + size / link
        rounds.append(Round(size // PAGE, size, size, seconds, 0.005))
        assert len(rounds) <= limits.max_rounds
        dirty = work.dirtied(clock, seconds)
        clock += seconds


GIGABIT = 110 * MIB
FAST = 400 * MIB

CASES = [
    # name, workload, link, rounds at least, rounds at most, within the limit, words of the reason
    ("idle", steady(1024 * MIB, 0), GIGABIT, 2, 2, True, "within"),
    ("tiny", steady(2 * MIB, 100 * MIB), FAST, 1, 1, True, "within"),
    ("steady, slow writer", steady(1024 * MIB, 5 * MIB), GIGABIT, 2, 3, True, "within"),
    ("steady, half of the link", steady(1024 * MIB, 55 * MIB), GIGABIT, 4, 7, True, "within"),
    ("small hot set", hot_set(1024 * MIB, 8 * MIB, 5000 * MIB), FAST, 2, 2, True, "within"),
    (
        "hot set larger than the limit lets through",
        hot_set(1024 * MIB, 200 * MIB, 5000 * MIB),
        FAST,
        4,
        4,
        False,
        "fast",
    ),
    ("hot set larger than the link carries", hot_set(2048 * MIB, 1024 * MIB, 800 * MIB), GIGABIT, 4, 4, False, "fast"),
    ("growing memory", growing(512 * MIB, 60 * MIB), GIGABIT, 4, 4, False, "fast"),
    ("burst in round 3", bursty(1024 * MIB, 6 * MIB, 300 * MIB, at=9.7), GIGABIT, 3, 6, True, "within"),
]


@pytest.mark.parametrize(
    ("work", "link", "least", "most", "within", "words"), [pytest.param(*case[1:], id=case[0]) for case in CASES]
)
def test_workloads(work: Workload, link: float, least: int, most: int, within: bool, words: str) -> None:
    rounds, decision, _ = play(work, link, Limits(), Costs())
    assert least <= len(rounds) <= most, [round_.bytes // MIB for round_ in rounds]
    assert decision.within_limit is within
    assert words in decision.reason


@pytest.mark.parametrize(("work", "link"), [pytest.param(*case[1:3], id=case[0]) for case in CASES[:6]])
def test_a_prediction_within_the_limit_is_kept_by_a_regular_workload(work: Workload, link: float) -> None:
    limits, costs = Limits(), Costs()
    _, decision, dirty = play(work, link, limits, costs)
    true_downtime = costs.fixed_seconds + 0.005 + dirty / link
    if decision.within_limit:
        assert true_downtime <= limits.max_downtime
    assert decision.predicted_downtime >= true_downtime * 0.75


def rounds_of(*sizes: int, seconds: float = 1.0) -> list[Round]:
    return [Round(size * MIB // PAGE, size * MIB, size * MIB, seconds, 0.0) for size in sizes]


def test_before_the_first_round_everything_is_predicted_and_sent() -> None:
    decision = precopy.decide([], Limits(), Costs(memory=512 * MIB, rate=float(256 * MIB)))
    assert decision.action is Action.AGAIN
    assert decision.predicted_bytes == 512 * MIB
    assert decision.predicted_downtime == pytest.approx(2.0 + precopy.TYPICAL_FIXED_SECONDS)


def test_no_rounds_allowed_means_freeze_at_once() -> None:
    assert precopy.decide([], Limits(max_rounds=0)).action is Action.FREEZE


def test_the_first_round_does_not_count_as_shrinking() -> None:
    # 1000 -> 990 would be "less than a tenth" if the first round counted; 990 -> 980 alone is forgiven.
    assert precopy.decide(rounds_of(1000, 990, 980), Limits()).action is Action.AGAIN
    stalled = precopy.decide(rounds_of(1000, 990, 980, 970), Limits())
    assert stalled.action is Action.FREEZE
    assert not stalled.within_limit


def test_one_growing_round_is_forgiven_and_a_second_is_not() -> None:
    assert precopy.decide(rounds_of(1000, 300, 400, 350), Limits()).action is Action.AGAIN
    assert precopy.decide(rounds_of(1000, 300, 400, 500), Limits()).action is Action.FREEZE


def test_exactly_a_tenth_is_worth_another_round() -> None:
    assert precopy.decide(rounds_of(1000, 1000, 900, 810), Limits()).action is Action.AGAIN


def test_an_almost_empty_round_ends_it_even_over_the_limit() -> None:
    empty = Round(precopy.FEW_PAGES, precopy.FEW_PAGES * PAGE, 0, 0.03, 0.0)
    slow = Costs(fixed_seconds=2.0)
    decision = precopy.decide([*rounds_of(1000), empty], Limits(), slow)
    assert (decision.action, decision.within_limit) == (Action.FREEZE, False)
    assert "almost empty" in decision.reason
    fuller = dataclasses.replace(empty, pages=precopy.FEW_PAGES + 1, bytes=1000 * MIB)
    assert precopy.decide([*rounds_of(1000), fuller], Limits(), slow).action is Action.AGAIN


def test_an_eager_restore_that_alone_breaks_the_limit_ends_it_when_rounds_no_longer_matter() -> None:
    costs = Costs(memory=1024 * MIB, restore_rate=float(1024 * MIB))
    assert precopy.decide(rounds_of(1024, 500), Limits(), costs).action is Action.AGAIN
    decision = precopy.decide(rounds_of(1024, 40), Limits(), costs)
    assert decision.action is Action.FREEZE
    assert "gain nothing" in decision.reason
    assert 1.1 < decision.predicted_downtime < 1.2


def test_all_rounds_used() -> None:
    decision = precopy.decide(rounds_of(1000, 800, 600), Limits(max_rounds=3))
    assert decision.action is Action.FREEZE
    assert "all 3 rounds used" in decision.reason


def test_the_slower_of_known_rate_and_measured_rate_counts() -> None:
    rounds = rounds_of(100, 50)  # 100 MiB/s
    fast = precopy.decide(rounds, Limits(), Costs(rate=1000.0 * MIB)).predicted_downtime
    slow = precopy.decide(rounds, Limits(), Costs(rate=10.0 * MIB)).predicted_downtime
    assert fast == pytest.approx(0.5 + precopy.TYPICAL_FIXED_SECONDS)
    assert slow == pytest.approx(5.0 + precopy.TYPICAL_FIXED_SECONDS)


def rounds_at(*pairs: tuple[float, float]) -> list[Round]:
    return [Round(1000, int(size * MIB), int(size * MIB), seconds, 0.0) for size, seconds in pairs]


@pytest.mark.parametrize(
    ("rounds", "mib"),
    [
        pytest.param(rounds_at((100, 2.0)), 100, id="one round: everything may be dirty again"),
        pytest.param(rounds_at((100, 2.0), (10, 0.2)), 10, id="one interval: no better than the last"),
        pytest.param(rounds_at((100, 2.0), (10, 4.0)), 20, id="a longer interval dirties more"),
        pytest.param(rounds_at((100, 2.0), (10, 0.2), (10, 0.1)), 10, id="hot set: time does not matter"),
        pytest.param(rounds_at((100, 2.0), (40, 1.0), (20, 0.5)), 10, id="steady: in proportion to time"),
        pytest.param(rounds_at((100, 1.0), (40, 0.16), (16, 0.04)), 8, id="between: by the power seen"),
        pytest.param(rounds_at((100, 2.0), (10, 0.5), (0, 0.1)), 0, id="nothing dirtied"),
        pytest.param(rounds_at((100, 0.0), (10, 0.0)), 10, id="no clock: as the last round"),
        pytest.param(rounds_at((100, 0.0), (10, 0.01)), 100, id="a clock too coarse: as the shortest interval"),
    ],
)
def test_predicted_dirty_bytes(rounds: list[Round], mib: float) -> None:
    assert precopy.predicted_dirty(rounds) == pytest.approx(mib * MIB, rel=0.01)


def test_predictions_before_any_round_use_the_memory_inspected() -> None:
    assert precopy.predicted_dirty([], memory=7 * MIB) == 7 * MIB


ROUND = st.builds(
    Round,
    pages=st.integers(0, 2**40),
    bytes=st.integers(0, 2**52),
    wire_bytes=st.integers(0, 2**52),
    seconds=st.floats(0, 1e6),
    frozen_seconds=st.floats(0, 1e3),
)


@given(
    rounds=st.lists(ROUND, max_size=12),
    max_rounds=st.integers(0, 12),
    max_downtime=st.floats(0.001, 100),
    costs=st.builds(
        Costs,
        fixed_seconds=st.floats(0, 10),
        rate=st.floats(0, 1e12),
        memory=st.integers(0, 2**52),
        restore_rate=st.floats(0, 1e12),
    ),
)
def test_always_decides_and_never_exceeds_the_rounds(
    rounds: list[Round], max_rounds: int, max_downtime: float, costs: Costs
) -> None:
    decision = precopy.decide(rounds, Limits(max_downtime, max_rounds), costs)
    if len(rounds) >= max_rounds:
        assert decision.action is Action.FREEZE
    if rounds and decision.within_limit:
        assert decision.action is Action.FREEZE
    assert decision.predicted_downtime >= costs.fixed_seconds
    assert decision.predicted_bytes >= 0
    assert decision.reason
