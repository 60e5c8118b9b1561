"""`migrate` for the fault grid: the real command line, which stops before each phase where the grid wants it to.

    steered.py [--damage STREAM:HOW:BYTES] -- migrate arguments…

Runs with the interpreter that `migrate` is installed in, and says `phase NAME` as an instant. `--damage` spoils what
goes to the target on a stream once so many bytes went: `flip` overwrites the head of a piece, `cut` ends it there.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable
from typing import Any

from agent import instants
from migrator import cli, hosts, migration
from migrator.phases import Phase


class Steered:
    """An observer that passes everything on, and stands still where it is told to."""

    def __init__(self, observer: Any) -> None:
        self._observer = observer

    def __getattr__(self, name: str) -> Any:
        return getattr(self._observer, name)

    async def phase(self, phase: Phase) -> None:
        await self._observer.phase(phase)
        instants.at(f"phase {phase.value}")


class Damaged:
    """A channel that spoils what is written to it, once."""

    def __init__(self, channel: Any, how: str, after: int) -> None:
        self._channel = channel
        self._how = how
        self._left = after

    def __getattr__(self, name: str) -> Any:
        return getattr(self._channel, name)

    async def write(self, data: bytes) -> None:
        before, self._left = self._left, self._left - len(data)
        if before >= 0 > self._left:
            if self._how == "cut":
                await self._channel.close()
                raise BrokenPipeError("cut short")
            data = b"\xff" * min(16, len(data)) + bytes(data[16:])
        await self._channel.write(data)


def damage(order: str) -> None:
    """Make streams of this name damaged ones."""
    stream, how, after = order.split(":")
    honest = hosts.Stream

    def spoilt(name: str, source: Any, target: Any, way: hosts.Way) -> hosts.Stream:
        sink: Any = Damaged(target, how, int(after)) if name == stream else target
        return honest(name, source, sink, way)

    vars(hosts).update(Stream=spoilt)


def main() -> int:
    split = sys.argv.index("--")
    parser = argparse.ArgumentParser()
    parser.add_argument("--damage", default="")
    options = parser.parse_args(sys.argv[1:split])
    if options.damage:
        damage(options.damage)

    def steered(honest: Callable[[hosts.Order, Any], Awaitable[Any]]) -> Callable[[hosts.Order, Any], Awaitable[Any]]:
        async def act(order: hosts.Order, observer: Any) -> Any:
            return await honest(order, Steered(observer))

        return act

    vars(migration).update(migrate=steered(migration.migrate))
    return cli.main(sys.argv[split + 1 :])


if __name__ == "__main__":
    sys.exit(main())
