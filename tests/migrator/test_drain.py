"""A drain: what begins when, where it goes, what is kept, and what comes back. The hosts are scripted."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import pytest

from migrator import errors, runbook
from migrator.drain import Checked, Drain, Job, Limits, worst
from migrator.events import Telling
from migrator.obstacle import Obstacle
from migrator.phases import Observer, Phase, Report
from migrator.runbook import Move, Runbook, Selection
from migrator.selection import Found, NotFound
from migrator.standing import Ledger, Stage, Standing

STOPS = Obstacle("pid-taken", "db2", "pid 1", "is taken", "free it", True)


def report_of(pid: int, target: str, downtime: float = 0.1, leftovers: tuple[str, ...] = ()) -> Report:
    """Of a migration that arrived."""
    return Report(
        id=f"m-{pid}", outcome="migrated", pid=pid, target_pid=pid + 1000, source="db1", target=target, rounds=(),
        downtime_seconds=downtime, freeze_seconds=0.0, restore_seconds=0.0, total_seconds=0.0, bytes=0, wire_bytes=0,
        leftovers=leftovers,
    )  # fmt: skip


class Hosts:
    """`drain.Work`, scripted: processes by selection, failures by PID, and a record of what was done."""

    boot = "boot-1"

    def __init__(self, **here: Sequence[int]) -> None:
        self.here = {name: list(pids) for name, pids in here.items()}
        self.free = {"db2": 100, "db3": 200}
        self.fails: dict[object, errors.MigrateError] = {}
        self.stops: set[tuple[int, str]] = set()
        self.downtime = 0.1
        self.done: list[str] = []
        self.at_once = self.most_at_once = 0
        self.during: Callable[[int], Awaitable[None]] | None = None
        self.allowed: list[float] = []

    def find(self, selection: Selection) -> tuple[Found, ...]:
        pids = self.here.get(str(selection.value), [])
        if not pids:
            raise NotFound(f"there is no {selection.value}")
        return tuple(Found(pid, pid, str(selection.value), memory=60) for pid in pids)

    async def free_memory(self, target: str) -> int:
        if target not in self.free:
            raise errors.Refused(f"{target}: no answer")
        return self.free[target]

    async def check(self, move: Move, pid: int, target: str) -> tuple[Obstacle, ...]:
        self.done.append(f"check {pid} {target}")
        if error := self.fails.get((pid, target)):
            raise error
        return (STOPS,) if (pid, target) in self.stops else ()

    async def check_back(self, move: Move, pid: int, target: str) -> tuple[Obstacle, ...]:
        self.done.append(f"check back {pid} {target}")
        return (STOPS,) if (pid, target) in self.stops else ()

    async def move(self, move: Move, pid: int, target: str, max_downtime: float, observer: Observer) -> Report:
        return await self._go("move", pid, target, max_downtime, observer)

    async def bring_back(self, move: Move, pid: int, target: str, max_downtime: float, observer: Observer) -> Report:
        return await self._go("back", pid, target, max_downtime, observer)

    async def _go(self, how: str, pid: int, target: str, max_downtime: float, observer: Observer) -> Report:
        self.done.append(f"{how} {pid} {target}")
        self.allowed.append(max_downtime)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        observer.started(f"m-{pid}")
        await observer.phase(Phase.CONNECT)
        try:
            await asyncio.sleep(0)
            if self.during is not None:
                await self.during(pid)
            if error := self.fails.get(pid) or self.fails.get((pid, target)):
                raise error
            for pids in self.here.values():
                if pid in pids:
                    pids.remove(pid)
            report = report_of(pid, target, self.downtime)
            observer.report(report)
            return report
        finally:
            self.at_once -= 1


class Lines:
    """`drain.Audience`."""

    expected = 0

    def __init__(self) -> None:
        self.said: list[str] = []
        self.checks: list[Checked] = []

    def observer(self, job: Job, target: str) -> Observer:
        return Telling()

    def failed_to_move(self, job: Job, error: errors.MigrateError) -> None:
        self.said.append(f"{job.label}: {error.message}")

    def ended(self, job: Job, standing: Standing) -> None:
        self.said.append(f"{job.label} {standing.stage.value}")

    def left(self, job: Job, why: str) -> None:
        self.said.append(f"{job.label} left: {why}")

    def missing(self, move: Move, why: str) -> None:
        self.said.append(f"{move.name}: {why}")

    def already(self, job: Job) -> None:
        self.said.append(f"{job.label}: already on {job.standing.target}")

    def note(self, text: str) -> None:
        self.said.append(text)

    def checked_all(self, checks: Sequence[Checked]) -> None:
        self.checks = list(checks)


@dataclasses.dataclass
class Setting:
    """A plan with its hosts, and what is kept of it."""

    book: Runbook
    hosts: Hosts
    directory: Path
    lines: Lines = dataclasses.field(default_factory=Lines)

    def drain(self, **limits: object) -> Drain:
        """A new run."""
        plan = self.directory / "plan.toml"
        return Drain(self.book, Ledger.of(self.directory / "state", plan), Limits(**limits), self.hosts, self.lines)  # type: ignore[arg-type]

    def kept(self) -> dict[int, Stage]:
        """PID -> where the file on disk says that it is."""
        ledger = Ledger.of(self.directory / "state", self.directory / "plan.toml")
        return {one.pid: one.stage for one in ledger.entries}


def moves(text: str) -> Runbook:
    """A plan."""
    return runbook.parse(text)


PLAN = """
target = "db2"
[[move]]
name = "a"
process = "a"
[[move]]
name = "b"
process = "b"
after = ["a"]
[[move]]
name = "c"
process = "c"
"""


@pytest.fixture
def three(tmp_path: Path) -> Setting:
    """Three moves of one process each; b comes after a."""
    return Setting(moves(PLAN), Hosts(a=[1], b=[2], c=[3]), tmp_path)


async def test_one_by_one_in_the_plans_order(three: Setting) -> None:
    assert await three.drain().run() == 0
    assert three.hosts.done == ["move 1 db2", "move 2 db2", "move 3 db2"]
    assert three.hosts.most_at_once == 1
    assert three.kept() == {1: Stage.MOVED, 2: Stage.MOVED, 3: Stage.MOVED}
    assert three.lines.expected == 3


async def test_what_waits_lets_others_go_first(three: Setting) -> None:
    assert await three.drain(parallel=2).run() == 0
    assert three.hosts.done[:2] == ["move 1 db2", "move 3 db2"]
    assert three.hosts.most_at_once == 2


async def test_a_second_run_goes_on_where_it_stood(three: Setting) -> None:
    three.hosts.fails[2] = errors.RestoreError("criu says no")
    assert await three.drain().run() == 33
    assert three.hosts.done == ["move 1 db2", "move 2 db2"]
    assert three.lines.said == [
        "a 1 moved", "b 2: criu says no", "b 2 failed", "c 3 left: b 2 failed (--keep-going goes on with the others)",
    ]  # fmt: skip
    assert three.kept() == {1: Stage.MOVED, 2: Stage.FAILED}
    three.hosts.fails.clear()
    assert await three.drain().run() == 0
    assert three.hosts.done[2:] == ["move 2 db2", "move 3 db2"]
    assert "a 1: already on db2" in three.lines.said
    assert await three.drain().run() == 0
    assert len(three.hosts.done) == 4


async def test_keep_going_leaves_only_what_waits_for_the_failed_one(three: Setting) -> None:
    three.hosts.fails[1] = errors.DumpError("no")
    assert await three.drain(keep_going=True).run() == 32
    assert three.hosts.done == ["move 1 db2", "move 3 db2"]
    assert "b 2 left: what it is to come after did not move" in three.lines.said


async def test_a_process_that_is_not_there_stops_all_before_anything_moves(three: Setting) -> None:
    three.hosts.here["c"] = []
    assert await three.drain().run() == 21
    assert three.hosts.done == []
    assert await three.drain(keep_going=True).run() == 21
    assert three.hosts.done == ["move 1 db2", "move 2 db2"]


async def test_cancelled_what_was_under_way_waits_again(three: Setting) -> None:
    async def forever(pid: int) -> None:
        if pid == 2:
            await asyncio.Event().wait()

    three.hosts.during = forever
    task = asyncio.create_task(three.drain().run())
    while "move 2 db2" not in three.hosts.done:
        await asyncio.sleep(0)
    assert three.kept()[2] is Stage.MOVING
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert three.kept() == {1: Stage.MOVED, 2: Stage.WAITING}


async def test_one_that_a_killed_run_left_in_the_air_is_not_forgotten(three: Setting) -> None:
    plan = three.directory / "plan.toml"
    Ledger.of(three.directory / "state", plan).set(Standing("b", 77, 77, "boot-1", "b", Stage.MOVING, "db2"))
    three.hosts.here["b"] = []
    assert await three.drain(keep_going=True).run() == 71
    assert "b 77: b 77 is not here, and not known to have moved" in three.lines.said


async def test_one_that_a_killed_run_left_here_is_moved(three: Setting) -> None:
    plan = three.directory / "plan.toml"
    Ledger.of(three.directory / "state", plan).set(Standing("b", 2, 2, "boot-1", "b", Stage.MOVING, "db2"))
    assert await three.drain().run() == 0
    assert three.kept()[2] is Stage.MOVED


async def test_the_target_with_most_free_memory(tmp_path: Path) -> None:
    hosts = Hosts(a=[1, 2, 3])
    stage = Setting(moves('[[move]]\nname="a"\nprocess="a"\ntarget=["db2","db3"]'), hosts, tmp_path)
    assert await stage.drain().run() == 0
    # 100 and 200 are free, and each takes 60
    assert hosts.done == ["move 1 db3", "move 2 db3", "move 3 db2"]


async def test_a_target_that_does_not_take_it_is_passed_over(tmp_path: Path) -> None:
    hosts = Hosts(a=[1])
    hosts.fails[1, "db3"] = errors.PreflightError("1 obstacle", obstacles=(STOPS,))
    stage = Setting(moves('[[move]]\nname="a"\nprocess="a"\ntarget=["nobody","db2","db3"]'), hosts, tmp_path)
    assert await stage.drain().run() == 0
    assert hosts.done == ["move 1 db3", "move 1 db2"]
    assert stage.lines.said == ["nobody: nobody: no answer", "a 1 moved"]


async def test_no_target_at_all(tmp_path: Path) -> None:
    hosts = Hosts(a=[1])
    stage = Setting(moves('[[move]]\nname="a"\nprocess="a"\ntarget=["nobody","noone"]'), hosts, tmp_path)
    assert await stage.drain().run() == 12
    assert hosts.done == []


TOGETHER = """
[[move]]
name = "a"
process = "a"
together = true
target = ["db2", "db3"]
[[move]]
name = "b"
process = "b"
target = "db2"
"""


async def test_together_to_one_target_at_one_time(tmp_path: Path) -> None:
    hosts = Hosts(a=[1, 2], b=[3])
    assert await Setting(moves(TOGETHER), hosts, tmp_path).drain().run() == 0
    assert hosts.done == ["check 1 db3", "check 2 db3", "move 1 db3", "move 2 db3", "move 3 db2"]
    assert hosts.most_at_once == 2


async def test_together_none_begins_unless_all_can(tmp_path: Path) -> None:
    hosts = Hosts(a=[1, 2], b=[3])
    hosts.stops = {(2, "db3"), (1, "db2")}
    stage = Setting(moves(TOGETHER), hosts, tmp_path)
    assert await stage.drain(keep_going=True).run() == 20
    assert hosts.done == ["check 1 db3", "check 2 db3", "check 1 db2", "check 2 db2", "move 3 db2"]
    assert stage.lines.said[0] == "a 1: a 1 can't go to db2, and they go together: 1 obstacle"


async def test_together_one_that_is_lost_on_the_way_is_not_tried_elsewhere(tmp_path: Path) -> None:
    hosts = Hosts(a=[1, 2], b=[])
    hosts.fails[2] = errors.Locked("held by another")
    stage = Setting(moves(TOGETHER.split('[[move]]\nname = "b"')[0]), hosts, tmp_path)
    assert await stage.drain().run() == 22
    assert hosts.done == ["check 1 db3", "check 2 db3", "move 1 db3", "move 2 db3"]
    assert stage.kept() == {1: Stage.MOVED, 2: Stage.FAILED}


async def test_together_a_preflight_that_cannot_be_had_fails_them_alone(tmp_path: Path) -> None:
    hosts = Hosts(a=[1, 2], b=[3])
    hosts.fails[1, "db3"] = hosts.fails[2, "db2"] = errors.Refused("no answer")
    stage = Setting(moves(TOGETHER), hosts, tmp_path)
    assert await stage.drain(keep_going=True).run() == 12
    assert hosts.done[-1] == "move 3 db2"
    assert stage.kept() == {1: Stage.FAILED, 2: Stage.FAILED, 3: Stage.MOVED}


async def test_together_they_come_back_once_all_can(tmp_path: Path) -> None:
    hosts = Hosts(a=[1, 2], b=[3])
    stage = Setting(moves(TOGETHER), hosts, tmp_path)
    await stage.drain().run()
    hosts.done.clear()
    hosts.stops = {(1001, "db3")}
    assert await stage.drain(keep_going=True).bring_back() == 20
    assert hosts.done == ["back 1003 db2", "check back 1002 db3", "check back 1001 db3"]
    hosts.stops.clear()
    assert await stage.drain().bring_back() == 0
    assert sorted(hosts.done[-2:]) == ["back 1001 db3", "back 1002 db3"]


async def test_a_budget_of_downtime(three: Setting) -> None:
    three.hosts.downtime = 0.4
    assert await three.drain(max_total_downtime=0.7).run() == errors.NotConverging.exit_code
    assert three.hosts.allowed == [pytest.approx(0.7), pytest.approx(0.3)]
    assert three.lines.said[-1] == "c 3 left: 0.80 s of downtime are spent, and 0.7 s was the limit"


async def test_everything_comes_back_the_last_first(three: Setting) -> None:
    await three.drain().run()
    three.hosts.done.clear()
    assert await three.drain().bring_back() == 0
    assert three.hosts.done == ["back 1003 db2", "back 1002 db2", "back 1001 db2"]
    assert set(three.kept().values()) == {Stage.RETURNED}
    assert await three.drain().bring_back() == 0
    assert len(three.hosts.done) == 3


async def test_what_does_not_come_back_is_still_known_to_be_there(three: Setting) -> None:
    await three.drain().run()
    three.hosts.fails[1002] = errors.DumpError("no")
    assert await three.drain(keep_going=True).bring_back() == 32
    # a came before b, so it waits for b to come back
    assert three.kept() == {1: Stage.MOVED, 2: Stage.MOVED, 3: Stage.RETURNED}


async def test_after_a_return_it_can_be_drained_again(three: Setting) -> None:
    await three.drain().run()
    await three.drain().bring_back()
    three.hosts.here = {"a": [1001], "b": [1002], "c": [1003]}
    three.hosts.done.clear()
    assert await three.drain().run() == 0
    assert three.hosts.done == ["move 1001 db2", "move 1002 db2", "move 1003 db2"]


async def test_one_process_in_two_moves_is_a_mistake(tmp_path: Path) -> None:
    hosts = Hosts(a=[1], b=[1])
    with pytest.raises(errors.UsageError, match="pid 1 is meant by two moves"):
        await Setting(moves(PLAN.split('[[move]]\nname = "c"')[0]), hosts, tmp_path).drain().run()
    assert hosts.done == []


async def test_a_dry_run_asks_every_target(tmp_path: Path) -> None:
    hosts = Hosts(a=[1, 2])
    hosts.stops = {(1, "db2"), (2, "db2"), (2, "db3")}
    stage = Setting(moves('[[move]]\nname="a"\nprocess="a"\ntarget=["db2","db3"]'), hosts, tmp_path)
    assert await stage.drain().dry_run() == 20
    assert [(one.job.found.pid, one.target, one.exit_code) for one in stage.lines.checks] == [
        (1, "db2", 20), (1, "db3", 0), (2, "db2", 20), (2, "db3", 20),
    ]  # fmt: skip
    assert stage.kept() == {}
    hosts.stops.remove((2, "db3"))
    assert await stage.drain().dry_run() == 0


@pytest.mark.parametrize(
    ("codes", "code"),
    [
        ([], 0), ([0, 3, 0], 3), ([3, 20], 20), ([20, 33], 33), ([33, 130], 130), ([1, 33], 1), ([1, 70], 70),
        ([70, 71], 71), ([72, 1], 72), ([2, 3], 2),
    ],
)  # fmt: skip
def test_the_worst_counts(codes: list[int], code: int) -> None:
    assert worst(codes) == worst(codes[::-1]) == code


async def test_a_state_that_cannot_be_kept_stops_it_before_anything_moves(three: Setting) -> None:
    (three.directory / "state").write_text("in the way")
    with pytest.raises(errors.StateError, match="can't be"):
        await three.drain().run()
    assert three.hosts.done == []


@pytest.mark.parametrize(
    "text",
    [
        "", "{}", "[]", "\xff", "[" * 100_000, '{"version": 2, "processes": []}',
        *(f'{{"version":1,"processes":{one}}}' for one in (
            7, "[7]", '["x"]', "[[]]", "[{}]", '[{"pid":"x"}]', '[{"odd":1}]',
        )),
        *(json.dumps({"version": 1, "processes": [{**dataclasses.asdict(Standing("a", 1, 1, "b", "a")), **change}]})
          for change in ({"stage": "lost"}, {"pid": -1}, {"pid": True}, {"downtime": float("nan")},
                         {"seconds": float("inf")}, {"exit_code": 1 << 64}, {"target": None})),
    ],
)  # fmt: skip
def test_a_damaged_state_is_an_error_and_kept(tmp_path: Path, text: str) -> None:
    plan = tmp_path / "plan.toml"
    ledger = Ledger.of(tmp_path, plan)
    ledger.set(Standing("a", 1, 1, "b", "a"))
    ledger.path.write_text(text, encoding="latin-1")
    with pytest.raises(errors.StateError, match="damaged"):
        Ledger.of(tmp_path, plan)
    assert ledger.path.read_text(encoding="latin-1") == text
