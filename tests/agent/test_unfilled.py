"""A tree that moves on waits for its fill, and for no other."""

from __future__ import annotations

import asyncio
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import process, protocol, unfilled
from agent.journal import Journal, Record
from agent.unfilled import StillFilling, whole
from agent.warden import LOCK
from tests import watched
from tests.agent.test_server import Talk, fault
from tests.children import child
from tests.fake_hosts import Pair


def migrated(state: Path, name: str, tasks: list[int]) -> int:
    """A migration of these tasks to this host, whose pager is at work: its lock."""
    journal = Journal.create(state, name, "target", root=1)
    if tasks:
        journal.write(Record.HELD, tasks=[[pid, process.start_time(pid)] for pid in tasks])
    journal.close()
    lock = os.open(state / name / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
    fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


@pytest.fixture
def tree(tmp_path: Path) -> Iterator[list[int]]:
    """A process with a child."""
    with child("os.fork()\nready()", tmp_path) as pid:
        yield process.tree_pids(pid)


@pytest.fixture
def state(tmp_path: Path) -> Path:
    return tmp_path / "state"


async def test_nothing_to_wait_for(state: Path, tree: list[int]) -> None:
    await whole(state, tree[0], pytest.fail)
    os.close(migrated(state, "done-1", tree))
    await whole(state, tree[0], pytest.fail)


@pytest.mark.parametrize("which", [0, -1])
async def test_any_task_of_the_tree_counts(state: Path, tree: list[int], which: int) -> None:
    lock = migrated(state, "busy-1", [tree[which]])
    said: list[str] = []
    waiting = asyncio.ensure_future(whole(state, tree[0], said.append))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    os.close(lock)
    await asyncio.wait_for(waiting, 5)
    text = f"the memory of process {tree[0]} is still being filled, after migration busy-1: waiting for that"
    assert said == [text]


async def test_other_trees_are_none_of_its_business(state: Path, tree: list[int]) -> None:
    locks = [migrated(state, "other-1", [os.getpid()]), migrated(state, "other-2", [])]
    await asyncio.wait_for(whole(state, tree[0], pytest.fail), 5)
    # nor is a process that had one of its PIDs before
    started = process.start_time(tree[0])
    journal = Journal.create(state, "older", "target", root=1)
    journal.write(Record.HELD, tasks=[[tree[0], started - 1]])
    journal.close()
    locks.append(os.open(state / "older" / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC))
    fcntl.flock(locks[-1], fcntl.LOCK_EX)
    await asyncio.wait_for(whole(state, tree[0], pytest.fail), 5)
    for lock in locks:
        os.close(lock)


async def test_not_for_ever(state: Path, tree: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unfilled, "LONGEST", 0.1)
    lock = migrated(state, "busy-1", tree)
    with pytest.raises(StillFilling, match=f"process {tree[0]} is still being filled, after migration busy-1"):
        await whole(state, tree[0], lambda _: None)
    os.close(lock)


WATCHED = """
import mmap, sys
sys.path.insert(0, {root!r})
from tests import watched
area = watched._libc.mmap(watched.BASE, 8192, 3, 0x22, -1, 0)
descriptor = watched.watch(area, 8192)
ready()
"""


@watched.needs_userfaultfd
async def test_a_child_made_since_is_known_by_its_memory(state: Path, tmp_path: Path) -> None:
    lock = migrated(state, "busy-1", [os.getpid()])
    with child(WATCHED.format(root=str(Path(__file__).parents[2])), tmp_path) as pid:
        waiting = asyncio.ensure_future(whole(state, pid, lambda _: None))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        os.close(lock)
        await asyncio.wait_for(waiting, 5)


async def test_a_tree_is_not_inspected_before(pair: Pair) -> None:
    """What is not in memory yet can't be counted: the images would have too little room."""
    pair.source.constants = {"agent.unfilled.LONGEST": 0.5}
    talk, victim = Talk(pair.source), pair.victim()
    source = await talk.start()
    lock = migrated(pair.source.state, "busy-1", [victim.pid])
    refused = await fault(source.inspect(protocol.Inspect(victim.pid)))
    assert refused.code is protocol.FaultCode.LOCKED
    assert refused.message == f"the memory of process {victim.pid} is still being filled, after migration busy-1"
    os.close(lock)
    assert (await source.inspect(protocol.Inspect(victim.pid))).tasks[0].pid == victim.pid
    await talk.close()
