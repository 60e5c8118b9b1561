"""One recovery of a migration at a time: the next one waits for it, and says so when it has waited for long."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from agent import claim


async def test_the_second_waits_for_the_first(tmp_path: Path) -> None:
    first = await claim.claim(tmp_path)
    second = asyncio.ensure_future(claim.claim(tmp_path))
    await asyncio.sleep(0.2)
    assert not second.done()
    os.close(first)
    os.close(await second)


async def test_who_has_waited_for_long_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claim, "PATIENCE", 0.2)
    first = await claim.claim(tmp_path)
    with pytest.raises(claim.Claimed, match=tmp_path.name):
        await claim.claim(tmp_path)
    os.close(first)
    os.close(await claim.claim(tmp_path))


async def test_it_leaves_nothing(tmp_path: Path) -> None:
    os.close(await claim.claim(tmp_path))
    assert list(tmp_path.iterdir()) == []
