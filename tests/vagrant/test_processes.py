"""Processes, told apart from later ones with the same number."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from labkit import processes

MARK = f"a mark (with spaces) of {os.getpid()}"
"""Another run of these tests on this machine has another one."""


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process to look at and to end."""
    code = "import time; print(flush=True); time.sleep(60)"
    with subprocess.Popen([sys.executable, "-c", code, MARK], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_process_is_alive_until_it_is_killed(sleeper: subprocess.Popen[bytes]) -> None:
    who = processes.identity(sleeper.pid)
    assert processes.is_alive(who)
    assert processes.kill(who)
    assert not processes.is_alive(who)  # although nobody took its status yet
    assert sleeper.wait() == -9
    assert processes.kill(who)


def test_another_process_with_the_number_is_neither_alive_nor_killed(sleeper: subprocess.Popen[bytes]) -> None:
    who = processes.identity(sleeper.pid)
    for other in (
        processes.Identity(who.pid, who.start - 1, who.boot),
        processes.Identity(who.pid, who.start, "another boot"),
    ):
        assert not processes.is_alive(other)
        assert processes.kill(other)
    assert processes.is_alive(who)


def test_a_process_is_found_by_one_whole_argument(sleeper: subprocess.Popen[bytes]) -> None:
    assert processes.with_argument(MARK) == [processes.identity(sleeper.pid)]
    assert processes.with_argument(MARK[:-1]) == []


def test_we_are_alive() -> None:
    assert processes.is_alive(processes.identity(os.getpid()))
