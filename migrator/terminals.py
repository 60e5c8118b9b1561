"""What becomes of a tree's terminal: an obstacle, or another terminal on the target. Pure.

The tree's own pseudo-terminals, both ends of which it holds, are criu's to carry, and no matter of this room.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from agent.protocol import TERMINAL_DESCRIPTORS, CriuOptions, TreeFacts
from migrator.obstacle import Obstacle, make

ATTACH, DETACH = "attach", "detach"
"""It becomes the one that migrate runs in; it becomes one that is held on the target."""


def obstacles(here: str, tree: TreeFacts, wish: str) -> Iterator[Obstacle]:
    """What of its terminals stands in the way, where `wish` is "", attach or detach; `here` is the source."""
    found = [one for one in tree.peculiarities if one.kind == "terminal"]
    if not wish:
        for one in found:
            yield make("terminal", here, one.object, detail=one.detail)
    elif not found:
        yield make("no-terminal", here, f"pid {tree.root}")
    elif len(found) > 1:
        yield make("terminals", here, found[0].object, detail=found[0].detail, other=found[1].detail)


def own(tree: TreeFacts) -> tuple[int, ...]:
    """Numbers of the pseudo-terminals that the tree holds both ends of: criu makes them anew under these."""
    return tuple(sorted(int(one.object) for one in tree.peculiarities if one.kind == "pty"))


def options(tree: TreeFacts, wish: str, chosen: CriuOptions) -> CriuOptions:
    """criu's options with what hands the terminal over: external in the dump, inherited in the restore.

    The tree becomes a job of the session that the holder leads there, whoever led its session here.
    """
    keys = [key for terminal in tree.terminals for key in terminal.keys] if wish else []
    if not keys:
        return chosen
    handed = zip(TERMINAL_DESCRIPTORS, keys, strict=False)
    return dataclasses.replace(
        chosen,
        shell_job=True,
        # before the operator's, of which one that lacks its value would take these for it
        for_dump=(*(word for key in keys for word in ("--external", key)), *chosen.for_dump),
        for_restore=(
            *(word for number, key in handed for word in ("--inherit-fd", f"fd[{number}]:{key}")),
            *chosen.for_restore,
        ),
    )
