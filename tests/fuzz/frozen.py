"""Parsers of what lies on ice: on a disk, or copied from somewhere, for as long as an operator likes."""

from __future__ import annotations

import contextlib
import json
import posixpath
from collections.abc import Iterable
from pathlib import Path

from agent import ice, wire
from agent.protocol import CriuOptions, Hashed, HostFacts, Manifest, TargetCheck, TaskFacts, TreeFacts
from migrator import ice_plan, plan
from migrator.obstacle import Obstacle

ID = "20260704-031500-a1b2c3"
PLACE = Path("/nowhere/ice") / ID
_HOST = HostFacts(
    "alpha", "boot", "x86_64", "6.12", "3.13", 0, "criu", "4.1.1", "", True, 4096, 1 << 22, 1 << 30, False, "", ""
)  # fmt: skip


def manifest(data: bytes) -> None:
    """A manifest: refused, or one whose images lie where they should; and what preflight makes of it."""
    with contextlib.suppress(ice.IceError):
        found = ice.parsed(data, PLACE)
        for image in found.images:
            assert posixpath.dirname(posixpath.normpath(image.name)).isdecimal(), f"{image.name!r} would be read"
        wished = ice_plan.wishes(str(PLACE.parent))
        asked = plan.questions(ice_plan.in_place(found.tree), wished)
        answered = TargetCheck(asked.files, (), 1 << 40, 1 << 40, asked.accounts, asked.addresses)
        chosen, obstacles = ice_plan.restoring(found, _HOST, answered, wished)
        assert all(isinstance(one, Obstacle) for one in obstacles)
        assert ice_plan.prepare(ID, str(PLACE), found, chosen, "").ice == str(PLACE)


def manifests() -> Iterable[bytes]:
    """That of one process."""
    task = TaskFacts(4711, 1, 4711, 4711, (4711,), "x", "S", 5, 0)
    tree = TreeFacts(4711, (task,), (), (), 4096)
    images = tuple(Hashed(name, 1, "00") for name in ("1/core-4711.img", "1/pages-1.img"))
    whole = Manifest(1, ID, 1.5, "alpha", "boot", "0.1.0", 1, _HOST, tree, CriuOptions(), images=images)
    yield json.dumps(wire.plain(whole)).encode()


def restored(data: bytes) -> None:
    """The word that a restore has left: refused, or processes that can be looked for."""
    with contextlib.suppress(ice.IceError):
        host, _, tasks = ice.said(data, PLACE)
        assert host.isprintable()
        assert all(0 < pid < 1 << 31 and 0 <= start < 1 << 63 for pid, start in tasks)


def restoreds() -> Iterable[bytes]:
    """Two processes."""
    yield b'{"host": "alpha", "boot": "b", "tasks": [[4711, 5], [4712, 6]]}'
