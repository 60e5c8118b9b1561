"""Real processes for tests to look at: Python programs that say when they are ready, and whole trees that end with it.

Owns their start and their end. Each leads a session of its own and holds nothing of ours, so that what a test finds of
it is its own.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from agent import process

_PATIENCE = 20.0
"""Seconds until a child that is not ready is a failure."""


@contextlib.contextmanager
def child(source: str, directory: Path, *, session: bool = True) -> Iterator[int]:
    """PID of a process that runs this program, once it has called `ready()`, which returns when it is killed.

    It works in `directory`, which is also its argument. It and all its descendants are killed afterwards.
    """
    flag = directory / "ready"
    program = f"import os, signal, sys, time\ndef ready():\n    open({str(flag)!r}, 'w').close()\n    time.sleep(600)\n"
    running = subprocess.Popen(
        [sys.executable, "-I", "-c", program + source, str(directory)],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        cwd=directory, start_new_session=session,
    )  # fmt: skip
    try:
        until(flag.exists)
        yield running.pid
    finally:
        for pid in reversed(process.tree_pids(running.pid)):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        running.wait()
        flag.unlink(missing_ok=True)


def sees_map_files() -> bool:
    """Whether we may follow the links of /proc/PID/map_files: CAP_SYS_ADMIN or CAP_CHECKPOINT_RESTORE, as root has."""
    directory = "/proc/self/map_files"
    try:
        return bool(os.stat(f"{directory}/{os.listdir(directory)[0]}"))
    except OSError:
        return False


def until(condition: object) -> None:
    """Wait until it holds. Raises AssertionError when it never does."""
    assert callable(condition)
    deadline = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < deadline, "it never came to that"
        time.sleep(0.005)
