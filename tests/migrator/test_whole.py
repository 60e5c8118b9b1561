"""Rounds that do not fit together: undone before COMMIT, then all memory is dumped whole, once."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence

import pytest

from agent.protocol import CriuOptions, HostFacts, TargetCheck, TreeFacts
from migrator import errors, hosts, migration, plan, precopy, transport
from migrator.history import History
from migrator.phases import Phase, Report, Round
from tests.fake_hosts import Pair, Victim
from tests.migrator.test_migration import Watcher

ALL = [phase for phase in Phase if phase is not Phase.ROLLBACK]
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="a tmpfs, and a pager to stop its tree, take root")


class Reports(Watcher):
    """Every report, not only the last."""

    def __init__(self) -> None:
        super().__init__({})
        self.reports: list[Report] = []

    def report(self, report: Report) -> None:
        super().report(report)
        self.reports.append(report)


async def move(pair: Pair, monkeypatch: pytest.MonkeyPatch, victim: Victim, watcher: Watcher, rounds: int) -> Report:
    """An instant migration with so many rounds of pre-copy, unless none is allowed."""

    def make_plan(
        source: HostFacts, target: HostFacts, tree: TreeFacts, check: TargetCheck, wishes: plan.Wishes
    ) -> tuple[plan.Plan, tuple[plan.Obstacle, ...]]:
        return plan.Plan(tree, True, CriuOptions(), (), False, 16 << 20, (), instant=True), ()

    def decide(done: Sequence[Round], limits: precopy.Limits, *rest: object) -> precopy.Decision:
        more = len(done) < min(rounds, limits.max_rounds)
        action = precopy.Action.AGAIN if more else precopy.Action.FREEZE
        return precopy.Decision(action, "so many will do", 0.1, 12288, True)

    monkeypatch.setattr(plan, "make_plan", make_plan)
    monkeypatch.setattr(precopy, "decide", decide)
    order = hosts.Order(victim.pid, transport.Target("beta"), plan.Wishes(), precopy.Limits())
    return await migration.move(order, watcher, pair.links, History(None))


@needs_root
@pytest.mark.parametrize(
    ("servers", "seen"),
    [
        (["cut-map"], ALL[: ALL.index(Phase.PRECOPY) + 1]),
        (["ok", "ok", "cut-map"], ALL[: ALL.index(Phase.FREEZE) + 1]),
    ],
    ids=["in pre-copy", "in the freeze"],
)
async def test_memory_is_dumped_whole_once_more(
    pair: Pair, monkeypatch: pytest.MonkeyPatch, servers: list[str], seen: list[Phase]
) -> None:
    pair.target.behave(page_server=servers)
    victim, watcher = pair.victim(), Reports()
    report = await move(pair, monkeypatch, victim, watcher, rounds=2)
    assert watcher.phases == seen + ALL
    (note,) = [note for note in watcher.notes if "once more without pre-copy" in note]
    assert "pagemap-1.img is" in note
    assert watcher.reports == [report]
    assert report.outcome == "migrated"
    assert len(report.rounds) == 1
    last = [call.argv for call in pair.source.calls("dump")][-1]
    assert "--prev-images-dir" not in last
    assert victim.living == []
    assert len(pair.target.running()) == 1
    assert (pair.source.settle_down(), pair.target.settle_down()) == ([], [])


@needs_root
async def test_twice_broken_is_undone(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.target.behave(page_server="cut-map")
    victim, watcher = pair.victim(), Reports()
    with pytest.raises(errors.BrokenRounds, match=r"beta: 1/pagemap-1\.img is truncated") as caught:
        await move(pair, monkeypatch, victim, watcher, rounds=1)
    assert caught.value.exit_code == 37
    assert [report.outcome for report in watcher.reports] == ["undone"]
    assert victim.living == victim.pids
    assert victim.runs
    assert pair.target.ever_ran() == set()
    assert (pair.source.settle_down(), pair.target.settle_down()) == ([], [])
    for migration_id in {path.name for path in pair.source.state.iterdir()}:
        assert pair.source.journal(migration_id)[-2:] == ["ABORT", "DONE"]
        assert pair.target.journal(migration_id)[-2:] == ["ABORT", "DONE"]


async def test_any_other_failure_is_not_tried_again(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    pair.source.behave(pre_dump="fail")
    victim, watcher = pair.victim(), Reports()
    with pytest.raises(errors.DumpError):
        await move(pair, monkeypatch, victim, watcher, rounds=1)
    assert len(watcher.reports) == 1
    assert len(pair.source.calls("pre-dump")) == 1
    assert victim.runs


def test_an_order_without_pre_copy() -> None:
    limits = dataclasses.replace(precopy.Limits(), max_rounds=0)
    decision = precopy.decide([], limits, precopy.Costs(memory=1 << 30))
    assert decision.action is precopy.Action.FREEZE
