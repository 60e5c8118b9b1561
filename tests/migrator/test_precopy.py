"""The controller, over made-up processes and links: what it decides, and that it always ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from migrator import precopy
from migrator.phases import Round
from migrator.precopy import Action, Costs, Decision, Limits, OnNoConverge

MIB = 1024 * 1024
PAGE = 4096


@dataclasses.dataclass(frozen=True)
class Workload:
    """A process as the controller sees it: memory, and what it dirties in an interval that starts at a given time."""

    memory: int
    dirtied: Callable[[float, float], float]  # (start, seconds of processor time at full speed) -> bytes


def steady(memory: int, speed: float) -> Workload:
    """New pages all the time, at a constant rate."""
    return Workload(memory, lambda start, seconds: speed * seconds)


def hot_set(memory: int, hot: int, speed: float) -> Workload:
    """The same pages over and over: many writes, few pages."""
    return Workload(memory, lambda start, seconds: min(hot, speed * seconds))


def growing(memory: int, growth: float) -> Workload:
    """Memory that is allocated and written, faster and faster: twice as fast after a minute."""
    return Workload(memory, lambda start, seconds: growth * seconds * (1 + start / 60))


def bursty(memory: int, quiet: float, burst: int, at: float) -> Workload:
    """Little to do, but once a lot."""
    return Workload(memory, lambda start, seconds: quiet * seconds + (burst if start <= at < start + seconds else 0))


ROUND_TRIPS = 0.03
SEIZING = 0.005


def play(work: Workload, link: float, limits: Limits, costs: Costs) -> tuple[list[Round], Decision, float, list[int]]:
    """Pre-copy a workload over a link of so many bytes a second: rounds, last decision, downtime, steps taken.

    The downtime is what the freeze would then take: fixed costs, and the pages that are dirty in truth.
    """
    rounds: list[Round] = []
    steps: list[int] = []
    clock, dirty, share = 0.0, float(work.memory), 1.0
    while True:
        decision = precopy.decide(rounds, limits, costs, steps)
        if decision.action is Action.THROTTLE:
            assert decision.share < share
            share = decision.share
            steps.append(len(rounds))
            continue
        if decision.action is not Action.AGAIN:
            restored = costs.memory / costs.restore_rate if costs.restore_rate else 0.0
            downtime = costs.fixed_seconds + SEIZING + dirty / link + costs.restore_seconds + restored
            return rounds, decision, downtime, steps
        size = int(dirty)
        seconds = ROUND_TRIPS + size / link
        rounds.append(Round(size // PAGE, size, size, seconds, SEIZING))
        assert len(rounds) <= limits.max_rounds + precopy.ROUNDS_A_STEP * len(precopy.STEPS)
        dirty = work.dirtied(clock, seconds * share)
        clock += seconds


GIGABIT = 110 * MIB
FAST = 400 * MIB
IDLE = steady(1024 * MIB, 0)
TINY = steady(2 * MIB, 100 * MIB)
CALM = steady(1024 * MIB, 5 * MIB)
HALF = steady(1024 * MIB, 55 * MIB)
WARM = hot_set(1024 * MIB, 8 * MIB, 5000 * MIB)
GLOWING = hot_set(2048 * MIB, 1024 * MIB, 50000 * MIB)
LATE = bursty(1024 * MIB, 6 * MIB, 300 * MIB, at=9.9)
HOT = hot_set(1024 * MIB, 200 * MIB, 5000 * MIB)
TOO_HOT = hot_set(2048 * MIB, 1024 * MIB, 800 * MIB)
GROWING = growing(512 * MIB, 130 * MIB)
BURSTY = bursty(1024 * MIB, 6 * MIB, 300 * MIB, at=9.7)
RACING = steady(1024 * MIB, 150 * MIB)
INSTANT = Costs()
EAGER = Costs(memory=1024 * MIB, restore_rate=precopy.TYPICAL_RESTORE_RATE)

FREEZE, FAIL, THROTTLE = OnNoConverge.FREEZE, OnNoConverge.FAIL, OnNoConverge.THROTTLE
WITHIN, OVER, GIVEN_UP = (Action.FREEZE, True), (Action.FREEZE, False), (Action.FAIL, False)

# workload, link, policy, costs: rounds, rounds after which it was slowed down, verdict, predicted and true downtime
CASES = [
    pytest.param(IDLE, GIGABIT, FAIL, INSTANT, 2, [], WITHIN, 0.085, 0.085, "within", id="idle"),
    pytest.param(IDLE, GIGABIT, FREEZE, EAGER, 2, [], OVER, 1.085, 1.085, "empty", id="idle, restored eagerly"),
    pytest.param(IDLE, GIGABIT, FAIL, EAGER, 2, [], GIVEN_UP, 1.085, 1.085, "empty", id="idle, eagerly, or not at all"),
    pytest.param(TINY, FAST, FAIL, INSTANT, 1, [], WITHIN, 0.120, 0.094, "within", id="tiny"),
    pytest.param(CALM, GIGABIT, FAIL, INSTANT, 3, [], WITHIN, 0.087, 0.087, "within", id="steady, slow writer"),
    pytest.param(CALM, GIGABIT, THROTTLE, EAGER, 3, [], OVER, 1.087, 1.087, "gain nothing", id="steady, eagerly"),
    pytest.param(HALF, GIGABIT, FAIL, INSTANT, 6, [], WITHIN, 0.261, 0.260, "within", id="steady, half of the link"),
    pytest.param(RACING, GIGABIT, FREEZE, INSTANT, 4, [], OVER, 32.59, 32.55, "as fast", id="steady, beyond the link"),
    pytest.param(
        RACING, GIGABIT, FAIL, INSTANT, 4, [], GIVEN_UP, 32.59, 32.55, "as fast", id="the same, or not at all"
    ),
    pytest.param(RACING, GIGABIT, THROTTLE, INSTANT, 12, [4, 8], WITHIN, 0.196, 0.196, "within", id="the same, slowed"),
    pytest.param(WARM, FAST, FAIL, INSTANT, 2, [], WITHIN, 0.105, 0.105, "within", id="small hot set"),
    pytest.param(HOT, FAST, FREEZE, INSTANT, 4, [], OVER, 0.591, 0.585, "as fast", id="hot set over the limit"),
    pytest.param(HOT, FAST, THROTTLE, INSTANT, 13, [4, 6, 8, 10], WITHIN, 0.247, 0.245, "within", id="the same, slow"),
    pytest.param(TOO_HOT, GIGABIT, FREEZE, INSTANT, 4, [], OVER, 9.409, 9.394, "as fast", id="hot set beyond the link"),
    pytest.param(TOO_HOT, GIGABIT, FAIL, INSTANT, 4, [], GIVEN_UP, 9.409, 9.394, "as fast", id="so hot it stays"),
    pytest.param(
        TOO_HOT, GIGABIT, THROTTLE, INSTANT, 15, [4, 6, 8, 12], WITHIN, 0.230, 0.229, "within", id="so hot, slowed"
    ),
    pytest.param(
        GLOWING, FAST, THROTTLE, INSTANT, 12, [4, 6, 8, 10], OVER, 2.655, 2.645, "at 5%", id="too hot for that"
    ),
    pytest.param(GROWING, GIGABIT, FREEZE, INSTANT, 4, [], OVER, 13.81, 15.15, "as fast", id="growing memory"),
    pytest.param(GROWING, GIGABIT, FAIL, INSTANT, 4, [], GIVEN_UP, 13.81, 15.15, "as fast", id="growing, it stays"),
    pytest.param(
        GROWING, GIGABIT, THROTTLE, INSTANT, 14, [4, 7, 11], WITHIN, 0.247, 0.245, "within", id="growing, slow"
    ),
    pytest.param(BURSTY, GIGABIT, FAIL, INSTANT, 4, [], WITHIN, 0.237, 0.095, "within", id="burst"),
    pytest.param(
        LATE, GIGABIT, FAIL, INSTANT, 3, [], WITHIN, 0.088, 2.816, "within", id="burst that nobody saw coming"
    ),
]


@pytest.mark.parametrize(
    ("work", "link", "policy", "costs", "rounds", "steps", "verdict", "predicted", "downtime", "words"), CASES
)
def test_workloads(
    work: Workload, link: float, policy: OnNoConverge, costs: Costs, rounds: int, steps: list[int],
    verdict: tuple[Action, bool], predicted: float, downtime: float, words: str,
) -> None:  # fmt: skip
    done, decision, true_downtime, taken = play(work, link, Limits(on_no_converge=policy), costs)
    assert (len(done), taken) == (rounds, steps), [each.bytes // MIB for each in done]
    assert (decision.action, decision.within_limit) == verdict
    assert words in decision.reason
    assert decision.predicted_downtime == pytest.approx(predicted, rel=0.01)
    assert true_downtime == pytest.approx(downtime, rel=0.01)


def test_a_prediction_within_the_limit_is_kept_by_a_regular_workload() -> None:
    """Of steady writers and hot sets of every size and speed; no prediction is far off on the other side."""
    seen = 0
    for link in (GIGABIT, FAST):
        for speed in (0, 2, 10, 40, 80, 105, 150, 300, 1000):
            for hot in (1, 8, 64, 512, 4096):
                work = hot_set(1024 * MIB, hot * MIB, float(speed * MIB))
                _, decision, downtime, _ = play(work, link, Limits(on_no_converge=THROTTLE), INSTANT)
                if decision.within_limit:
                    seen += 1
                    assert downtime <= Limits.max_downtime
                assert downtime * 0.99 <= decision.predicted_downtime <= downtime * 3, (link, speed, hot)
    assert seen > 50


def test_throttling_never_starts_where_the_process_is_not_what_takes_the_time() -> None:
    limits = Limits(on_no_converge=THROTTLE, max_downtime=0.05)
    rounds, decision, _, steps = play(CALM, GIGABIT, limits, INSTANT)
    assert (steps, decision.action) == ([], Action.FREEZE)
    assert len(rounds) <= limits.max_rounds


def test_rounds_that_shrink_too_slowly_slow_it_down_once_all_are_used() -> None:
    limits = Limits(max_rounds=3, on_no_converge=THROTTLE)
    decision = precopy.decide(rounds_of(1000, 800, 600), limits)
    assert (decision.action, decision.share) == (Action.THROTTLE, precopy.STEPS[0])
    # the first round after a step holds what was dirtied before it, and shows nothing
    assert precopy.decide(rounds_of(1000, 800, 600, 600), limits, None, [3]).action is Action.AGAIN
    decision = precopy.decide(rounds_of(1000, 800, 600, 600, 590), limits, None, [3])
    assert (decision.action, decision.share) == (Action.THROTTLE, precopy.STEPS[1])
    assert precopy.decide(rounds_of(1000, 800, 600, 600, 500), limits, None, [3]).action is Action.AGAIN


def test_no_rounds_allowed_and_a_limit_that_holds() -> None:
    limits = Limits(max_rounds=0, on_no_converge=OnNoConverge.FAIL)
    assert precopy.decide([], limits, Costs(memory=MIB)).action is Action.FREEZE
    decision = precopy.decide([], limits, Costs(memory=1024 * MIB))
    assert (decision.action, decision.within_limit) == (Action.FAIL, False)
    assert decision.predicted_downtime == pytest.approx(10.24 + 0.08, rel=0.01)


def rounds_of(*sizes: int, seconds: float = 1.0) -> list[Round]:
    return [Round(size * MIB // PAGE, size * MIB, size * MIB, seconds, 0.0) for size in sizes]


def test_before_the_first_round_everything_is_predicted_and_sent() -> None:
    decision = precopy.decide([], Limits(), Costs(memory=512 * MIB, rate=float(256 * MIB)))
    assert decision.action is Action.AGAIN
    assert decision.predicted_bytes == 512 * MIB
    assert decision.predicted_downtime == pytest.approx(2.08)


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


def test_a_measured_rate_counts_unless_the_rounds_are_too_small_to_tell_one() -> None:
    known = Costs(rate=200.0 * MIB)
    assert precopy.rate(rounds_of(100, 50), known) == 100 * MIB
    assert precopy.rate(rounds_of(100, 50), Costs()) == 100 * MIB
    assert precopy.rate(rounds_of(10, 5), known) == 200 * MIB
    assert precopy.rate(rounds_of(10, 5), Costs()) == 10 * MIB
    assert precopy.rate(rounds_of(0), Costs()) == precopy.TYPICAL_RATE


def test_rounds_that_were_held_back_tell_no_more_than_what_the_link_carries_at_least() -> None:
    assert precopy.rate(rounds_of(100, 50), Costs(rate=200.0 * MIB, held_back=True)) == 200 * MIB
    assert precopy.rate(rounds_of(100, 50), Costs(rate=50.0 * MIB, held_back=True)) == 100 * MIB
    assert precopy.rate(rounds_of(100, 50), Costs(held_back=True)) == 100 * MIB


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
        restore_seconds=st.floats(0, 10),
        restore_rate=st.floats(0, 1e12),
    ),
    policy=st.sampled_from(OnNoConverge),
    throttled=st.lists(st.integers(1, 12), max_size=len(precopy.STEPS)),
)
def test_always_decides_and_never_exceeds_the_rounds(
    rounds: list[Round],
    max_rounds: int,
    max_downtime: float,
    costs: Costs,
    policy: OnNoConverge,
    throttled: list[int],
) -> None:
    steps = sorted(step for step in throttled if step <= len(rounds)) if policy is OnNoConverge.THROTTLE else []
    decision = precopy.decide(rounds, Limits(max_downtime, max_rounds, policy), costs, steps)
    if len(rounds) >= max_rounds and not steps:
        assert decision.action is not Action.AGAIN
    if steps and len(rounds) >= steps[-1] + precopy.ROUNDS_A_STEP:
        assert decision.action is not Action.AGAIN
    if rounds and decision.within_limit:
        assert decision.action is Action.FREEZE
    if decision.action is Action.FAIL:
        assert policy is OnNoConverge.FAIL
    if decision.action is Action.THROTTLE:
        assert policy is OnNoConverge.THROTTLE
        assert decision.share == precopy.STEPS[len(steps)]
    assert decision.predicted_downtime >= costs.fixed_seconds
    assert decision.predicted_bytes >= 0
    assert decision.reason


# --- the target's disk -----------------------------------------------------------------------------------------------


def test_what_the_disk_costs_is_part_of_the_prediction() -> None:
    """Its share of a round is in the round's rate already; what any sync costs comes on top."""
    rounds = [
        Round(25600, 100 * MIB, 100 * MIB, 2.0, 0.01, disk_seconds=1.0),
        Round(256, MIB, MIB, 0.1, 0.01, disk_seconds=0.04),
    ]
    plain = precopy.decide(rounds, Limits(), Costs())
    durable = precopy.decide(rounds, Limits(), Costs(durable=True))
    assert durable.predicted_downtime - plain.predicted_downtime == pytest.approx(0.04)


def test_a_disk_that_no_round_has_measured_is_a_typical_one() -> None:
    limits = Limits(max_rounds=0)
    plain = precopy.decide([], limits, Costs(memory=200 * MIB))
    durable = precopy.decide([], limits, Costs(memory=200 * MIB, durable=True))
    cost = precopy.TYPICAL_DISK_SECONDS + 200 * MIB / precopy.TYPICAL_DISK_RATE
    beside = precopy.TYPICAL_RESTORE_SECONDS
    assert durable.predicted_downtime - plain.predicted_downtime == pytest.approx(cost - beside)


@pytest.mark.parametrize(
    ("restore_rate", "cost"),
    [(0.0, 0.5 - precopy.TYPICAL_RESTORE_SECONDS), (800 * MIB, 0.25 - precopy.TYPICAL_RESTORE_SECONDS), (MIB, 0.0)],
)
def test_a_disk_that_an_earlier_migration_has_measured_works_beside_the_restore(
    restore_rate: float, cost: float
) -> None:
    limits, costs = Limits(max_rounds=0), Costs(memory=200 * MIB, restore_rate=restore_rate, disk_rate=400 * MIB)
    plain = precopy.decide([], limits, costs)
    durable = precopy.decide([], limits, dataclasses.replace(costs, durable=True))
    assert durable.predicted_downtime - plain.predicted_downtime == pytest.approx(cost)
