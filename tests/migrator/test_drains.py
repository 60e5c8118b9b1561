"""A plan's file and the command's own options, put together."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from migrator import arguments, drains
from migrator.logbook import Logbook

PLAN = 'target = "db2"\n[[move]]\npid = 4711\n'


@pytest.mark.parametrize(("words", "expected"), [([], ()), (["--no-config"], ("--no-config",))])
async def test_without_the_configuration_each_move_goes_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], expected: tuple[str, ...]
) -> None:
    plan = tmp_path / "plan.toml"
    plan.write_text(PLAN)
    seen: list[Any] = []

    class Silent:
        standings = ()

        def __init__(self, book: Any, *_: object) -> None:
            seen.extend(book.moves)

        async def run(self) -> int:
            return 0

    class Show:
        book = Logbook([], {})

        def over(self, code: int) -> None:
            seen.append(code)

    monkeypatch.setattr(drains, "Drain", Silent)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.setattr(drains, "STATE", tmp_path / "drains")
    options: argparse.Namespace = arguments.parse(["drain", *words, str(plan)])
    assert await drains.run(options, Show(), None) == 0  # type: ignore[arg-type]
    move, code = seen
    assert (move.options, code) == (expected, 0)
