"""Locks on tasks: all or none, dead with their holder, and nothing left."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from agent.lock import TaskLocked, TaskLocks


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "locks"


def test_two_migrations_never_hold_the_same_task(place: Path) -> None:
    first, second = TaskLocks(place), TaskLocks(place)
    first.take([10, 11])
    with pytest.raises(TaskLocked, match="holds process 11") as caught:
        second.take([12, 11])
    assert caught.value.pid == 11
    third = TaskLocks(place)
    third.take([12])  # the failed one kept nothing
    first.release()
    second.take([11])


def test_who_is_refused_is_told_by_whom(place: Path) -> None:
    place.mkdir()
    (place / "10").write_text("20250101-000000-000000, of long ago")
    first = TaskLocks(place, "20260704-031500-a1b2c3")
    first.take([10, 11])  # one file was left by a dead one
    with pytest.raises(TaskLocked, match="migration 20260704-031500-a1b2c3 holds process 10") as caught:
        TaskLocks(place, "another").take([10])
    assert "migrate abort 20260704-031500-a1b2c3" in caught.value.hint


def test_taking_more_of_the_tree_later_keeps_what_is_held(place: Path) -> None:
    locks = TaskLocks(place)
    locks.take([10])
    locks.take([10, 11])
    for pid in (10, 11):
        with pytest.raises(TaskLocked):
            TaskLocks(place).take([pid])


def test_a_failed_second_take_gives_all_back(place: Path) -> None:
    locks, other = TaskLocks(place), TaskLocks(place)
    locks.take([10])
    other.take([11])
    with pytest.raises(TaskLocked):
        locks.take([11])
    TaskLocks(place).take([10])


def test_release_leaves_nothing(place: Path) -> None:
    locks = TaskLocks(place)
    locks.take([10, 11])
    locks.release()
    assert not place.exists()


def test_release_leaves_what_others_hold(place: Path) -> None:
    locks, other = TaskLocks(place), TaskLocks(place)
    locks.take([10])
    other.take([11])
    locks.release()
    assert [path.name for path in place.iterdir()] == ["11"]
    with pytest.raises(TaskLocked):
        TaskLocks(place).take([11])


def _die_holding(place: Path, pid: int) -> None:
    program = (
        "import os, signal, sys; from pathlib import Path; from agent.lock import TaskLocks\n"
        "TaskLocks(Path(sys.argv[1])).take([int(sys.argv[2])])\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    root = Path(__file__).parents[2]
    assert subprocess.run([sys.executable, "-c", program, str(place), str(pid)], cwd=root).returncode == -9


def test_a_lock_dies_with_its_holder(place: Path) -> None:
    _die_holding(place, 10)
    assert (place / "10").exists()
    TaskLocks(place).take([10])


def test_sweep_removes_the_files_of_the_dead_only(place: Path) -> None:
    _die_holding(place, 10)
    living = TaskLocks(place)
    living.take([11])
    TaskLocks(place).sweep([10, 11, 12])
    assert [path.name for path in place.iterdir()] == ["11"]
    with pytest.raises(TaskLocked):
        TaskLocks(place).take([11])
