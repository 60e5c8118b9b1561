"""Pinned tasks: never mistaken for a later process of the same number."""

from __future__ import annotations

import asyncio
import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from agent import process
from agent.tasks import Tasks, TreeChanged
from tests.fake_hosts import Victim, eventually, soon, state_of


@pytest.fixture
def victim(tmp_path: Path) -> Iterator[Victim]:
    victim = Victim(tmp_path, children=1)
    yield victim
    victim.close()


@pytest.fixture
def tasks() -> Iterator[Tasks]:
    tasks = Tasks()
    yield tasks
    tasks.close()


def pin(tasks: Tasks, victim: Victim) -> None:
    tasks.pin(process.task_facts(pid) for pid in victim.pids)


async def test_stop_continue_kill_and_proof_of_death(tasks: Tasks, victim: Victim) -> None:
    pin(tasks, victim)
    assert (len(tasks), tasks.living, tasks.pids) == (2, set(victim.pids), tuple(victim.pids))
    tasks.signal(signal.SIGSTOP, [victim.pids[1], 1])  # 1 is not ours, so nothing happens to it
    eventually(lambda: state_of(victim.pids[1]) == "T", "the child stops")
    assert state_of(victim.pid) != "T"
    tasks.signal(signal.SIGCONT)
    assert victim.runs
    tasks.signal(signal.SIGKILL)
    await asyncio.wait_for(tasks.never_run_again(), 5)
    await soon(lambda: tasks.ended, "all are dead")
    assert tasks.living == set()
    assert state_of(victim.pid) == "Z"  # nobody has reaped it: a zombie counts as dead
    tasks.signal(signal.SIGKILL)
    tasks.reap()
    assert state_of(victim.pid) == ""


async def test_death_is_waited_for(tasks: Tasks, victim: Victim) -> None:
    pin(tasks, victim)
    assert not tasks.ended
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(tasks.never_run_again(), 0.05)
    assert victim.runs


def test_another_process_of_the_same_number(tasks: Tasks, victim: Victim) -> None:
    facts = process.task_facts(victim.pid)
    former = dataclasses.replace(facts, start_time=facts.start_time - 1)
    with pytest.raises(TreeChanged, match=f"process {victim.pid} ended"):
        tasks.pin([former])
    tasks.pin([former], running=True)
    assert len(tasks) == 0
    tasks.pin([facts])
    tasks.pin([facts])
    for running in (False, True):
        with pytest.raises(TreeChanged, match="another one has its number"):
            tasks.pin([former], running=running)
    assert tasks.identities == [[victim.pid, facts.start_time]]


def test_one_that_has_ended(tasks: Tasks, victim: Victim) -> None:
    pin(tasks, victim)
    os.kill(victim.pids[1], signal.SIGKILL)
    eventually(lambda: len(tasks.living) == 1, "the child dies")
    tasks.forget_dead()
    assert tasks.pids == (victim.pid,)
    gone = process.task_facts(victim.pid)
    victim.close()
    tasks.close()
    with pytest.raises((TreeChanged, process.NoSuchProcess)):
        tasks.pin([gone])


def test_no_descriptor_is_left_open(victim: Victim) -> None:
    before = len(os.listdir("/proc/self/fd"))
    tasks = Tasks()
    pin(tasks, victim)
    tasks.close()
    assert len(tasks) == 0
    assert len(os.listdir("/proc/self/fd")) == before


def test_orphans_become_children_and_can_be_reaped() -> None:
    program = """
import os, signal, subprocess, sys, time
from agent import process, tasks
tasks.adopt_orphans()
middle = subprocess.Popen(["sh", "-c", "sleep 60 & echo $!; exec sleep 60"], stdout=subprocess.PIPE)
orphan = int(middle.stdout.readline())
middle.kill(); middle.wait()
assert process.task_facts(orphan).ppid == os.getpid()
pinned = tasks.Tasks(); pinned.pin([process.task_facts(orphan)])
pinned.signal(signal.SIGKILL)
while pinned.living: time.sleep(0.001)
pinned.reap()
assert not os.path.exists(f"/proc/{orphan}")
"""
    subprocess.run([sys.executable, "-c", program], cwd=Path(__file__).parents[2], check=True)
