"""`migrate rehearse`: everything up to the held tree, then back. Whatever breaks meanwhile, the process stays here."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from migrator import errors, precopy
from migrator.phases import Phase, Report
from tests.fake_hosts import Pair
from tests.migrator.test_migration import Attempt, Lab

REHEARSED = [
    Phase.CONNECT, Phase.PREFLIGHT, Phase.PRECOPY, Phase.FREEZE, Phase.RESTORE, Phase.ROLLBACK,
]  # fmt: skip


@pytest.fixture
def stage(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Lab:
    lab = Lab(pair, monkeypatch)
    lab.rehearsal = True
    return lab


def went_well(attempt: Attempt) -> Report:
    assert attempt.error is None, repr(attempt.error)
    assert attempt.watcher.phases == REHEARSED
    assert attempt.report is not None
    assert attempt.report == attempt.watcher.reported
    assert attempt.report.outcome == "rehearsed"
    assert attempt.report.leftovers == ()
    attempt.lives_on_source()
    return attempt.report


@pytest.mark.parametrize("children", [0, 2])
async def test_a_rehearsal(stage: Lab, children: int) -> None:
    stage.rounds = 2
    attempt = await stage.migrate(children=children)
    report = went_well(attempt)
    assert [done.pages for done in report.rounds] == [3, 3, 2]
    assert 0 < report.freeze_seconds + report.restore_seconds < report.downtime_seconds < report.total_seconds
    assert report.target_pid == 0
    assert stage.source.journal(attempt.id) == ["BEGIN", "FROZEN", "ABORT", "DONE"]
    assert stage.target.journal(attempt.id) == ["PREPARED", "HELD", "ABORT", "DONE"]
    assert stage.history.costs("beta") == precopy.Costs(), "a pause is no downtime to learn from"


async def test_the_process_may_be_moved_after_it(stage: Lab) -> None:
    went_well(await stage.migrate())
    stage.rehearsal = False
    moved = await stage.migrate()
    moved.succeeded()
    moved.lives_on_target()


@pytest.mark.parametrize("phase", REHEARSED[1:])
@pytest.mark.parametrize("what", ["source_agent_dies", "target_agent_dies", "link_drops", "signal"])
async def test_whatever_breaks(stage: Lab, phase: Phase, what: str) -> None:
    harm: Callable[[], None] = getattr(stage, what)
    attempt = await stage.migrate({phase: harm})
    if phase is Phase.ROLLBACK or (phase is Phase.RESTORE and what == "source_agent_dies"):
        # all was seen that there was to see, and it is undone by whoever is left
        went_well(attempt)
        return
    assert attempt.watcher.phases == REHEARSED[: REHEARSED.index(phase) + 1]
    kind = asyncio.CancelledError if what == "signal" else errors.LinkLost
    assert type(attempt.error) is kind, repr(attempt.error)
    assert attempt.watcher.reported is not None
    assert attempt.watcher.reported.outcome == "undone"
    attempt.lives_on_source()
