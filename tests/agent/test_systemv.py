"""agent/systemv.py: real semaphores and queues of a child, removed afterwards."""

from __future__ import annotations

import ctypes
from pathlib import Path

import pytest

from agent import systemv
from agent.protocol import Peculiarity
from tests.children import child

USES = """
import ctypes, struct
libc = ctypes.CDLL(None)
semaphores, queue = libc.semget(0, 3, 0o600), libc.msgget(0, 0o600)
segment = libc.shmget(0, 4096, 0o600)
open("numbers", "w").write(f"{semaphores} {queue} {segment}")
assert libc.semctl(semaphores, 2, 16, 1) == 0
assert libc.msgsnd(queue, struct.pack("@l", 1) + b"message", 7, 0) == 0
ready()
"""


def test_what_a_process_has_used(tmp_path: Path) -> None:
    libc = ctypes.CDLL(None)
    with child(USES, tmp_path) as pid:
        semaphores, queue, segment = map(int, (tmp_path / "numbers").read_text().split())
        try:
            assert set(systemv.used([pid, 2**22 + 1])) == {
                Peculiarity("sysv-ipc", pid, str(semaphores), "semaphores"),
                Peculiarity("sysv-ipc", pid, str(queue), "queue"),
                Peculiarity("sysv-ipc", pid, str(segment), "segment"),
            }
            assert list(systemv.used([2**22 + 1])) == []
        finally:
            libc.semctl(semaphores, 0, 0)
            libc.msgctl(queue, 0, 0)
            libc.shmctl(segment, 0, 0)


def test_a_host_without_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(systemv, "_TABLES", tmp_path)
    assert list(systemv.used([1])) == []
