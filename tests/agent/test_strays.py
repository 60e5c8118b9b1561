"""What a restore that was killed has made: known by criu's log and by its age, and by nothing less."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import images, process, protocol, strays
from agent.journal import Journal, Record
from agent.protocol import Verdict
from tests.agent.test_server import ID, Talk
from tests.agent.test_target import held, pages
from tests.fake_hosts import Pair, soon


@pytest.fixture
def task() -> Iterator[tuple[int, int]]:
    sleeper = subprocess.Popen(["sleep", "1000"])
    yield sleeper.pid, process.start_time(sleeper.pid)
    sleeper.kill()
    sleeper.wait()


def journal(state: Path, log: str, criu_started: int) -> Journal:
    kept = Journal.create(state, ID, "target", boot=process.boot_id(), images=str(state / "images"))
    kept.note("criu", pid=1, start=1)
    kept.note("round", number=3)
    kept.note("criu", pid=2, start=criu_started)
    (kept.directory / "restore.log").write_text(log)
    return kept


def named_by_images(state: Path, pid: int) -> None:
    directory = images.round_directory(state / "images", 3)
    directory.mkdir(parents=True)
    (directory / f"core-{pid}.img").touch()
    (directory / "core-9.img.new").touch()


def forking(pid: int) -> str:
    return f"(00.010000)      7: Forking task with {pid} pid (flags 0x0)\n"


def test_one_that_the_log_names_and_that_is_younger_than_its_criu(tmp_path: Path, task: tuple[int, int]) -> None:
    kept = journal(tmp_path, forking(2**22 + 1) + forking(task[0]), task[1])
    named_by_images(tmp_path, task[0])
    assert strays.found(kept) == [task]
    kept.close()


def test_a_name_with_a_newline_in_it_has_nobody_else_killed(tmp_path: Path, task: tuple[int, int]) -> None:
    """criu's log has the names of the tree's files as they are, and their user may want somebody's end."""
    kept = journal(tmp_path, f"(00.010000)      7: Opening /tmp/x\n{forking(task[0])}", task[1])
    named_by_images(tmp_path, task[0] + 1)
    assert strays.found(kept) == []
    kept.close()


def test_a_helper_of_criu_that_no_image_names(tmp_path: Path) -> None:
    program = tmp_path / "criu"
    shutil.copy("/bin/sleep", program)
    helper = subprocess.Popen([program, "1000"])
    try:
        task = helper.pid, process.start_time(helper.pid)
        kept = journal(tmp_path, forking(helper.pid), task[1])
        assert strays.found(kept) == [task]
        kept.close()
    finally:
        helper.kill()
        helper.wait()


@pytest.mark.parametrize("why", ["not named", "taken", "older", "no log", "a namespace of its own", "a file's name"])
def test_others_are_left_alone(tmp_path: Path, task: tuple[int, int], why: str) -> None:
    log = "" if why == "not named" else forking(task[0])
    if why == "a file's name":
        log = "(00.010000)      7: Opening /tmp/" + log.partition(": ")[2]
    if why == "taken":
        log += f"(00.010100)      7: Error (criu/cr-restore.c:1230): Can't fork for {task[0]}: File exists\n"
    kept = journal(tmp_path, log, task[1] + (1 if why == "older" else 0))
    named_by_images(tmp_path, task[0])
    if why == "no log":
        (kept.directory / "restore.log").unlink()
    if why == "a namespace of its own":
        (kept.directory / "init").write_text(f"{task[0]} {task[1]}\n")
    assert strays.found(kept) == []
    kept.close()


async def test_a_second_restore_that_was_killed_with_its_agent_is_cleared_away(pair: Pair) -> None:
    """HELD knows only the first one's tasks; the third restore must not find the second one's beside it."""
    pair.target.behave(restore=["ok", "stand-still", "ok"])
    talk = Talk(pair.target)
    await held(await talk.start(), tasks=2)
    pair.target.kill_criu("restore")
    for pid in pair.target.restored():  # blocked for ever, in the real world
        os.kill(pid, signal.SIGKILL)
    pair.target.kill_agent()
    await talk.close()
    again = Talk(pair.target)
    waiting = asyncio.ensure_future((await again.start()).settle(protocol.Settle(ID, Verdict.RESUME)))
    await soon(lambda: len(pair.target.restored()) == 2, "the second restore makes its tasks")
    pair.target.kill_agent()
    pair.target.kill_criu("restore")
    await asyncio.gather(waiting, return_exceptions=True)
    await again.close()
    left = pair.target.restored()
    assert len(left) == 2
    assert pages(pair)
    last = Talk(pair.target)
    settled = await (await last.start()).settle(protocol.Settle(ID, Verdict.RESUME))
    assert settled.records[-1] == Record.RESUMED.value
    assert not set(left) & set(pair.target.restored()), "two copies"
    assert pair.target.running() == pair.target.restored()
    assert len(pair.target.running()) == 2
    await last.peer.settle(protocol.Settle(ID, Verdict.CLEAN))
    await last.close()
    assert pair.target.settle_down() == []
