"""agent/memory.py: what real processes have, and the highest of it while something goes on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from agent import memory
from agent.process import tree_pids
from tests.children import child

FORKED = """
held = bytearray(b"x" * (32 << 20))
for _ in range(3):
    if os.fork() == 0:
        time.sleep(1000)
ready()
"""


def test_memory_is_read_from_status_where_there_is_no_rollup(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = memory._read
    with child("held = bytearray(b'x' * (32 << 20))\nready()", tmp_path) as pid:

        def without(path: str) -> bytes:
            if path.endswith("rollup"):
                raise FileNotFoundError
            return real(path)

        exact = memory.private_memory(pid)
        monkeypatch.setattr(memory, "_read", without)
        assert abs(memory.private_memory(pid) - exact) < 4 << 20
        assert exact >= 32 << 20


def test_what_is_shared_since_a_fork_is_taken_once(tmp_path: Path) -> None:
    with child(FORKED, tmp_path) as pid:
        pids = tree_pids(pid)
        assert len(pids) == 4
        once, each = (memory.taken(tmp_path, pids, shared=shared) for shared in (True, False))
        assert 32 << 20 <= once < 64 << 20
        assert each >= 4 * (32 << 20)
        assert memory.shared_since_fork(pid) > 16 << 20


def test_a_process_that_is_gone_takes_nothing(tmp_path: Path) -> None:
    assert memory.taken(tmp_path, [2**22 + 1], shared=True) == memory.taken(tmp_path, [2**22 + 1], shared=False) == 0


async def test_the_peak_is_the_highest_that_was_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = iter([5, 9, 7])
    monkeypatch.setattr(memory, "INTERVAL", 0.02)
    monkeypatch.setattr(memory, "taken", lambda *_, **__: next(looks, 1))

    async def act() -> str:
        await asyncio.sleep(0.1)
        return "done"

    assert await memory.peak_until(act(), tmp_path, list) == ("done", 9)


async def test_an_act_that_fails_raises_through_the_watching_of_it(tmp_path: Path) -> None:
    async def act() -> None:
        raise ValueError("not whole")

    with pytest.raises(ValueError, match="not whole"):
        await memory.peak_until(act(), tmp_path, list)
