"""The action script, run as criu runs it: what it answers, to whom, and what it does when nobody is left to ask."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from agent.hold import Hold, stopped
from agent.journal import TORN
from tests.fake_hosts import Victim, eventually, state_of


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    directory = tmp_path / "it's a $(directory)"
    directory.mkdir()
    (directory / "journal").write_text('{"record":"FROZEN"}\n')
    return directory


@pytest.fixture
async def hold(directory: Path) -> AsyncIterator[Hold]:
    hold = Hold(directory, "post-dump", "COMMIT")
    yield hold
    hold.close()


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Victim]:
    victim = Victim(tmp_path)
    yield victim
    victim.close()


async def run(hold: Hold, action: str = "post-dump") -> asyncio.subprocess.Process:
    """The script, with us as its criu."""
    return await asyncio.create_subprocess_exec(hold.script, env={**os.environ, "CRTOOLS_SCRIPT_ACTION": action})


def agent_dies(hold: Hold) -> None:
    """What the script sees of an agent's death: nobody has the FIFOs open any more. Its files stay."""
    asyncio.get_running_loop().remove_reader(hold._held)
    os.close(hold._held)
    os.close(hold._verdict)
    hold._held = hold._verdict = -1


async def test_a_full_disk_leaves_nothing_of_a_hold(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever wanted it has no hold to close."""

    def write_text(path: Path, _: str) -> int:
        path.touch()  # its name there is room for
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(OSError, match="No space left"):
        Hold(directory, "post-dump", "COMMIT")
    assert [path.name for path in directory.iterdir()] == ["journal"]


async def test_it_holds_until_it_is_told(hold: Hold) -> None:
    for verdict, status in ((hold.go, 0), (hold.veto, 1)):
        hold._reached.clear()
        script = await run(hold)
        await asyncio.wait_for(hold.reached(), 5)
        assert hold.held
        assert script.returncode is None
        verdict()
        assert await script.wait() == status


async def test_a_verdict_may_come_before_the_script(hold: Hold) -> None:
    hold.veto()
    assert await (await run(hold)).wait() == 1


async def test_other_hooks_pass(hold: Hold) -> None:
    for action in ("pre-dump", "network-lock", "network-unlock", "post-restore"):
        assert await (await run(hold, action)).wait() == 0
    await asyncio.sleep(0.01)
    assert not hold.held


@pytest.mark.parametrize(
    ("lines", "status"),
    [
        ('{"record":"COMMIT","time":1}\n', 0),
        ('{"record":"COMMIT","time":1}\n{"record":"owner"}\n', 0),
        ("", 1),
        ('{"record":"ABORT"}\n', 1),
        ('{"record":"COMMIT","time":1}', 1),  # torn: it was never written
        ('{"record":"ABORT","reason":"{\\"record\\":\\"COMMIT\\""}\n', 1),
        ('{"record":"COMMITTEE"}\n', 1),
        ('{"record":"COMMIT","time":1}?\n', 1),  # torn, and ended by whoever took over
        ('{"record":"COMMIT","ti', 1),
        ('{"record":"RESUMING"}\n', 1),
    ],
)
@pytest.mark.parametrize("dead_before", [True, False])
async def test_without_its_agent_the_journal_is_the_verdict(
    hold: Hold, directory: Path, lines: str, status: int, dead_before: bool
) -> None:
    if dead_before:
        agent_dies(hold)
        with (directory / "journal").open("a") as journal:
            journal.write(lines)
        script = await run(hold)
    else:
        script = await run(hold)
        await asyncio.wait_for(hold.reached(), 5)
        with (directory / "journal").open("a") as journal:
            journal.write(lines)
        agent_dies(hold)
    assert await asyncio.wait_for(script.wait(), 5) == status
    text = (directory / "journal").read_text()
    if status == 0:
        assert text == '{"record":"FROZEN"}\n' + lines
        return
    # the tree runs on, so what the target holds is out of date: that is written, behind a torn line too
    assert text.startswith('{"record":"FROZEN"}\n' + lines)
    records = [json.loads(line)["record"] for line in text.splitlines() if not line.endswith(TORN)]
    assert records.count("ABORT") == 1
    assert "COMMIT" not in records


async def test_no_journal_no_commit(hold: Hold, directory: Path) -> None:
    (directory / "journal").unlink()
    agent_dies(hold)
    assert await (await run(hold)).wait() != 0


async def test_the_target_is_released_by_resuming(directory: Path) -> None:
    hold = Hold(directory, "post-restore", "RESUMING")
    (directory / "journal").write_text('{"record":"HELD"}\n{"record":"RESUMING"}\n')
    agent_dies(hold)
    assert await (await run(hold, "post-restore")).wait() == 0


async def test_the_target_does_not_abort_by_itself(directory: Path) -> None:
    """Its hook's veto lets the tree go, and keeps the images: they may be the only copy."""
    hold = Hold(directory, "post-restore", "RESUMING")
    (directory / "journal").write_text('{"record":"HELD"}\n')
    agent_dies(hold)
    assert await (await run(hold, "post-restore")).wait() == 1
    assert (directory / "journal").read_text() == '{"record":"HELD"}\n'


async def test_a_veto_takes_the_stop_back(hold: Hold, victim: Victim) -> None:
    hold.will_continue([(victim.pid, 0)])
    os.kill(victim.pid, signal.SIGSTOP)
    eventually(lambda: state_of(victim.pid) == "T", "the victim stops")
    hold.veto()
    assert await (await run(hold)).wait() == 1
    assert victim.runs


async def test_a_release_kills_nobody_while_criu_lives(hold: Hold, victim: Victim) -> None:
    hold.will_continue([(victim.pid, 0)])
    hold.go()
    assert await (await run(hold)).wait() == 0
    assert victim.runs


@pytest.mark.parametrize(("record", "survives"), [("COMMIT", False), ("ABORT", True)])
async def test_when_criu_and_agent_are_dead_the_script_carries_it_out(
    hold: Hold, directory: Path, victim: Victim, record: str, survives: bool
) -> None:
    hold.will_continue([(victim.pid, 0)])
    os.kill(victim.pid, signal.SIGSTOP)
    # a shell's background job has the shell as its parent, as the script has criu
    criu = await asyncio.create_subprocess_exec(
        "sh", "-c", '"$1" & wait', "sh", hold.script, env={**os.environ, "CRTOOLS_SCRIPT_ACTION": "post-dump"}
    )
    await asyncio.wait_for(hold.reached(), 5)
    criu.kill()
    await criu.wait()
    with (directory / "journal").open("a") as journal:
        journal.write(f'{{"record":"{record}"}}\n')
    agent_dies(hold)
    if survives:
        eventually(lambda: state_of(victim.pid) not in ("T", "t"), "the victim is continued")
        assert victim.runs
    else:
        eventually(lambda: victim.living == [], "the victim is killed")


async def test_closing_leaves_nothing(directory: Path) -> None:
    hold = Hold(directory, "post-dump", "COMMIT")
    hold.will_continue([(1, 2)])
    hold.close()
    hold.close()
    assert [path.name for path in directory.iterdir()] == ["journal"]


async def test_a_second_hold_replaces_what_a_first_one_left(directory: Path) -> None:
    first = Hold(directory, "post-restore", "RESUMING")
    first.will_continue([(1, 2)])
    agent_dies(first)
    second = Hold(directory, "post-restore", "RESUMING")
    assert not (directory / "stopped").exists()
    second.go()
    assert await (await run(second, "post-restore")).wait() == 0
    second.close()


async def test_a_hold_that_a_full_disk_prevents_leaves_nothing(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, text: str) -> int:
        path.touch()
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        Hold(directory, "post-dump", "COMMIT")
    assert [path.name for path in directory.iterdir()] == ["journal"]


@pytest.mark.parametrize("length", range(26))
def test_of_a_word_that_a_full_disk_has_cut_what_is_whole_counts(directory: Path, length: int) -> None:
    text = b"4242 777 4242\n4243 778 \xff\n"
    (directory / "stopped").write_bytes(text[:length])
    assert stopped(directory) == ([(4242, 777)] if length >= len("4242 777 4") else [])


def test_where_nobody_was_stopped_there_is_no_word(directory: Path) -> None:
    assert stopped(directory) == []
