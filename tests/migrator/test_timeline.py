"""When what happened: phases and steps by a clock that moves when told, in runs that went well and in others."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from migrator.kept import Reports
from migrator.phases import Phase, Report, Span
from migrator.timeline import Timeline
from tests.migrator import fake_reports
from tests.migrator.test_migration import Watcher
from tests.migrator.test_progress import Clock


class Run:
    """A timeline whose clock goes on by a second with everything that happens."""

    def __init__(self, directory: Path | None = None) -> None:
        self.clock, self.watcher = Clock(), Watcher({})
        self.timeline = Timeline(self.watcher, Reports(directory), self.clock)

    async def up_to(self, last: Phase) -> None:
        for phase in Phase:
            if phase is Phase.ROLLBACK:
                continue
            self.clock.now += 1
            await self.timeline.phase(phase)
            if phase is Phase.FREEZE:
                self.timeline.freezing()
                self.clock.now += 1
                self.timeline.held()
            if phase is last:
                break
        self.clock.now += 1

    def undo(self) -> None:
        self.timeline.undoing()
        self.clock.now += 1
        self.timeline.thawed()
        self.clock.now += 1

    def timed(self, outcome: str, downtime: float = 0.0) -> Report:
        bare = dataclasses.replace(fake_reports.MOVED, outcome=outcome, downtime_seconds=downtime, phases=(), freeze=())
        return self.timeline.timed(bare)


def joined(spans: tuple[Span, ...]) -> bool:
    """Whether each begins where the one before ended."""
    ends = [span.started_seconds + span.seconds for span in spans]
    return [span.started_seconds for span in spans[1:]] == pytest.approx(ends[:-1])


async def test_a_migration_that_arrived() -> None:
    run = Run()
    await run.up_to(Phase.CLEAN)
    report = run.timed("migrated", 5.0)
    assert [span.name for span in report.phases] == [phase.value for phase in Phase if phase is not Phase.ROLLBACK]
    assert joined(report.phases)
    assert report.freeze == fake_reports.spans(
        4.0, ("dump", 1.0), ("images", 1.0), ("restore", 1.0), ("commit", 1.0), ("resume", 1.0)
    )
    assert sum(span.seconds for span in report.freeze) == report.downtime_seconds == 5.0
    assert run.watcher.phases == [Phase(span.name) for span in report.phases], "the other observer is told all of it"


async def test_an_undone_migration_was_paused_until_it_was_thawed() -> None:
    run = Run()
    await run.up_to(Phase.RESTORE)
    run.undo()
    report = run.timed("undone")
    assert [span.name for span in report.phases][-2:] == ["restore", "undo"]
    assert [span.name for span in report.freeze] == ["dump", "images", "restore", "thaw"]
    assert report.downtime_seconds == sum(span.seconds for span in report.freeze) == 4.0


async def test_what_never_came_to_a_freeze_was_never_paused() -> None:
    run = Run()
    await run.up_to(Phase.PRECOPY)
    run.undo()
    report = run.timed("undone")
    assert (report.downtime_seconds, report.freeze) == (0.0, ())
    assert [span.name for span in report.phases] == ["connect", "preflight", "pre-copy", "undo"]


async def test_a_rehearsal_ends_its_pause_when_it_is_rolled_back() -> None:
    run = Run()
    await run.up_to(Phase.RESTORE)
    await run.timeline.phase(Phase.ROLLBACK)
    run.clock.now += 1
    run.undo()
    report = run.timed("rehearsed", 4.0)
    assert [span.name for span in report.freeze] == ["dump", "images", "restore", "thaw"]
    assert report.downtime_seconds == sum(span.seconds for span in report.freeze) == 4.0


async def test_where_nobody_knows_whether_it_runs_it_stands_still_to_the_end() -> None:
    run = Run()
    await run.up_to(Phase.COMMIT)
    run.clock.now += 5
    report = run.timed("in-doubt")
    assert report.downtime_seconds == 0.0, "that is not known"
    assert report.freeze[-1] == Span("commit", 7.0, 6.0)


async def test_a_report_is_kept_before_it_is_shown(tmp_path: Path) -> None:
    run = Run(tmp_path / "reports")
    run.timeline.report(fake_reports.MOVED)
    (path,) = (tmp_path / "reports").iterdir()
    assert json.loads(path.read_text())["id"] == fake_reports.MOVED.id
    assert run.watcher.reported == fake_reports.MOVED
    assert run.watcher.notes == []


async def test_a_report_that_cannot_be_kept_is_a_note(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    run = Run(tmp_path / "file" / "reports")
    run.timeline.report(fake_reports.MOVED)
    assert run.watcher.notes == [f"the report is not kept: {tmp_path}/file/reports: Not a directory"]
    assert run.watcher.reported == fake_reports.MOVED
    assert run.timeline.error is None
