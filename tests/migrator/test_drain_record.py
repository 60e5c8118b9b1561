"""What is kept of a drain while it runs: a part of the log for each process, and the reports of all of them."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from migrator import errors
from migrator.drain import Drain, Limits
from migrator.drain_record import Record
from migrator.logbook import Logbook
from migrator.standing import Ledger
from tests.migrator.test_drain import PLAN, STOPS, Hosts, Lines, moves
from tests.migrator.test_logbook import Kept


class Logged:
    """A drain with its log."""

    def __init__(self, tmp_path: Path, hosts: Hosts, text: str = PLAN, command: str = "drain") -> None:
        self.kept = Kept()
        self.hosts = hosts
        self.book = Logbook([self.kept], {"plan": "/plan.toml", "command": command})
        self.record = Record(Lines(), self.book, returning=command == "return")
        ledger = Ledger.of(tmp_path / "state", tmp_path / "plan.toml")
        self.drain = Drain(moves(text), ledger, Limits(keep_going=True), hosts, self.record)

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [fields for _, fields in self.kept.lines]

    def short(self) -> list[tuple[Any, ...]]:
        """Event, move, PID, target, phase or exit code."""
        return [
            (each["event"], each.get("move"), each.get("pid"), each.get("target"), each.get("phase", each.get("exit")))
            for each in self.lines
        ]


async def test_a_line_a_phase_of_each_and_one_for_each_end(tmp_path: Path) -> None:
    log = Logged(tmp_path, Hosts(a=[1], b=[2], c=[3]))
    log.hosts.fails[2] = errors.DumpError("criu says no")
    code = await log.drain.run()
    log.book.ended(code, None)
    assert log.short() == [
        ("phase", "a", 1, "db2", "connect"), ("ended", "a", 1, "db2", 0),
        ("phase", "b", 2, "db2", "connect"), ("ended", "b", 2, "db2", 32),
        ("phase", "c", 3, "db2", "connect"), ("ended", "c", 3, "db2", 0),
        ("ended", None, None, None, 32),
    ]  # fmt: skip
    assert all({"command": "drain", "plan": "/plan.toml"}.items() <= each.items() for each in log.lines)
    assert [each.get("id") for each in log.lines] == ["m-1", "m-1", "m-2", "m-2", "m-3", "m-3", None]
    assert (log.lines[1]["outcome"], log.lines[1]["target_pid"]) == ("migrated", 1001)
    assert (log.lines[3]["error"], log.lines[3]["message"]) == ("DumpError", "criu says no")
    assert [severity for severity, _ in log.kept.lines] == [6, 6, 6, 3, 6, 6, 3]
    assert [report.pid for report in log.record.reports] == [1, 3]
    assert log.record.expected == 3


async def test_on_the_way_back_the_other_host_is_the_source(tmp_path: Path) -> None:
    hosts = Hosts(a=[1], b=[2], c=[3])
    await Logged(tmp_path, hosts).drain.run()
    log = Logged(tmp_path, hosts, command="return")
    await log.drain.bring_back()
    assert (log.lines[0]["pid"], log.lines[0]["source"], "target" in log.lines[0]) == (1003, "db2", False)


async def test_what_is_not_moved_has_a_line(tmp_path: Path) -> None:
    hosts = Hosts(a=[1], c=[3])
    await Logged(tmp_path, hosts, PLAN.split('[[move]]\nname = "b"')[0]).drain.run()
    hosts.fails[4] = errors.DumpError("no")
    hosts.here["b"] = []
    log = Logged(tmp_path, hosts, PLAN + 'after = ["b"]\n')
    assert await log.drain.run() == 21
    assert log.short() == [
        ("missing", "b", None, None, None), ("already", "a", 1, "db2", None), ("left", "c", 3, None, None),
    ]  # fmt: skip
    assert log.lines[2]["message"] == "what it is to come after did not move"
    assert [severity for severity, _ in log.kept.lines] == [4, 6, 4]


async def test_a_target_that_is_passed_over_is_no_end(tmp_path: Path) -> None:
    hosts = Hosts(a=[1])
    hosts.fails[1, "db3"] = errors.PreflightError("1 obstacle", obstacles=(STOPS,))
    log = Logged(tmp_path, hosts, '[[move]]\nname="a"\nprocess="a"\ntarget=["db2","db3"]')
    assert await log.drain.run() == 0
    assert log.short() == [
        ("phase", "a", 1, "db3", "connect"), ("phase", "a", 1, "db2", "connect"), ("ended", "a", 1, "db2", 0),
    ]  # fmt: skip
    assert [(each.target, each.standing is not None) for each in log.record.attempts] == [("db3", False), ("db2", True)]


async def test_what_a_signal_cut_off_ends_with_its_exit_code(tmp_path: Path) -> None:
    log = Logged(tmp_path, Hosts(a=[1], b=[2], c=[3]))

    async def forever(pid: int) -> None:
        if pid == 2:
            await asyncio.Event().wait()

    log.hosts.during = forever
    task = asyncio.create_task(log.drain.run())
    while "move 2 db2" not in log.hosts.done:
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    log.book.ended(130, errors.Interrupted(2, "stopped by SIGINT"))
    assert log.short()[2:] == [
        ("phase", "b", 2, "db2", "connect"), ("ended", "b", 2, "db2", 130), ("ended", None, None, None, 130),
    ]  # fmt: skip


async def test_a_dry_run_has_a_line_for_each_preflight(tmp_path: Path) -> None:
    hosts = Hosts(a=[1], b=[2], c=[3])
    hosts.stops = {(2, "db2")}
    log = Logged(tmp_path, hosts)
    assert await log.drain.dry_run() == 20
    assert log.short() == [
        ("checked", "a", 1, "db2", 0), ("checked", "b", 2, "db2", 20), ("checked", "c", 3, "db2", 0),
    ]  # fmt: skip
