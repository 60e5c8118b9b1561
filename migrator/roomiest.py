"""Which of a move's targets has the most free memory, as far as a drain knows."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from migrator import errors

if TYPE_CHECKING:
    from migrator.drain import Work


class Targets:
    """How much memory each target has left, with what is on its way there taken off."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._free: dict[str, int] = {}
        self._lock = asyncio.Lock()

    async def roomiest(self, targets: Sequence[str]) -> tuple[list[str], dict[str, errors.MigrateError]]:
        """Those that can be reached, the one with most free memory first; and what was wrong with the others."""
        if len(targets) == 1:
            return list(targets), {}
        wrong: dict[str, errors.MigrateError] = {}
        async with self._lock:
            unknown = [target for target in targets if target not in self._free]
            answers = await asyncio.gather(*map(self._work.free_memory, unknown), return_exceptions=True)
            for target, answer in zip(unknown, answers, strict=True):
                if isinstance(answer, errors.MigrateError):
                    wrong[target] = answer
                elif isinstance(answer, BaseException):
                    raise answer
                else:
                    self._free[target] = answer
        known = [target for target in targets if target in self._free]
        return sorted(known, key=lambda target: self._free[target], reverse=True), wrong

    def take(self, target: str, need: int) -> None:
        """So much goes there."""
        if target in self._free:
            self._free[target] -= need
