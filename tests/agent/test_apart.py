"""agent/apart.py, on real processes: threads that go their own way, and threads that cannot be stopped."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent import apart, process
from agent.protocol import Peculiarity
from tests.children import child, until

THREAD = """
import ctypes, threading
libc = ctypes.CDLL(None, use_errno=True)
done = threading.Event()
def work():
    if {act} < 0:
        os._exit(1)
    done.set()
    time.sleep(600)
threading.Thread(target=work, daemon=True).start()
done.wait()
ready()
"""


def threads(pid: int) -> list[Peculiarity]:
    """What of the tree is a thread's alone."""
    return list(apart.of_threads(process.tasks_of(pid)))


@pytest.mark.parametrize(("act", "own"), [
    ("0", None), ("libc.unshare(0x400)", "descriptors"), ("libc.unshare(0x200)", "directories"),
    ("libc.unshare(0x04000000)", "uts namespace"), ("libc.unshare(0x600)", "descriptors, directories"),
])  # fmt: skip
def test_what_a_thread_has_of_its_own(act: str, own: str | None, tmp_path: Path) -> None:
    if own and "namespace" in own and os.geteuid() != 0:
        pytest.skip("only root may have a namespace of its own")
    with child(THREAD.format(act=act), tmp_path) as pid:
        other = max(process.threads(pid))
        expected = [] if own is None else [Peculiarity("thread-apart", pid, str(other), own)]
        assert threads(pid) == expected


VFORKED = """
import ctypes
libc = ctypes.CDLL(None)
if os.fork() == 0:
    if libc.vfork() == 0:
        libc.pause()
ready()
"""


def test_one_that_waits_for_its_vforked_child_cannot_be_stopped(tmp_path: Path) -> None:
    with child(VFORKED, tmp_path) as pid:
        (stuck,) = (one for one in process.tree_pids(pid) if process.read_stat(one).ppid == pid)
        until(lambda: process.read_stat(stuck).state == "D")
        (found,) = threads(pid)
        assert (found.kind, found.pid, found.object) == ("uninterruptible", stuck, str(stuck))
        assert found.detail


def test_one_that_is_stuck_for_a_moment_only_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with child("ready()", tmp_path) as pid:
        for sleeps in (["7", "7", ""], ["7", "7", "8"]):  # woken, or asleep again
            seen = iter(sleeps)
            monkeypatch.setattr(apart, "_sleep", lambda pid, tid, seen=seen: next(seen))
            assert threads(pid) == []


def test_what_is_gone_is_not_stuck(tmp_path: Path) -> None:
    with child("ready()", tmp_path) as pid:
        tasks = process.tasks_of(pid)
    assert list(apart.of_threads(tasks)) == []
