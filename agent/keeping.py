"""The target's half of a migration whose images are kept (`--keep-images`): it runs here, and lies on ice as well.

What has to be told of it, its files above all, is written down while the restored tree is held, as a draft beside the
journal; the images are copied once it runs. So neither its freeze nor a failure here costs the migration anything.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Callable

from agent import ice, images, process, protocol, wire
from agent.disk import to_disk
from agent.journal import Journal, Record
from agent.reviving import Reviving
from agent.saving import as_held
from agent.settings import Settings
from agent.target import Target

DRAFT = "kept"
"""File beside the journal: the manifest, as far as it is known while the tree is held."""
_PIECE = 1 << 20


class Keeping(Target):
    """One migration to this host, whose images stay."""

    _request: protocol.Prepare

    @classmethod
    async def prepare(cls, settings: Settings, request: protocol.Prepare, tell: Callable[[str], None]) -> Keeping:
        """As the target's."""
        target = await super().prepare(settings, request, tell)
        assert isinstance(target, Keeping)
        target._request = request
        return target

    async def restore(self, request: protocol.Restore) -> protocol.Restored:
        """As the target's; what the tree needs is known then."""
        restored = await super().restore(request)
        (facts,) = self._request.kept
        tree = as_held(facts.tree, process.tree_pids(restored.pid))
        # held, it has criu's log open as well
        files = (file for file in tree.files if not file.path.startswith(f"{self._images}/"))
        tree = dataclasses.replace(tree, files=tuple(files))
        manifest = ice.drafted(self._journal.migration, facts, tree, self._options, request.round)
        draft = self._journal.directory / DRAFT
        draft.write_text(json.dumps(wire.plain(manifest)))
        return restored

    async def finish(self, **patience: float) -> protocol.Leftovers:
        """As the target's, and the images are kept."""
        kept: tuple[str, ...] = ()
        if self._journal.may(Record.DONE):
            kept = await self._jobs.run(lambda: keep(self._journal, self._images, self._pids()))
        left = await super().finish(**patience)
        return protocol.Leftovers(kept + left.items, left.memory_lost)

    def _clean(self) -> tuple[str, ...]:
        (self._journal.directory / DRAFT).unlink(missing_ok=True)
        return super()._clean()


def kind_of(request: protocol.Prepare) -> type[Target]:
    """What a migration is to this host: from ice, with its images kept, or as any other."""
    return Reviving if request.ice else Keeping if request.keep else Target


def keep(journal: Journal, place: Path, pids: Sequence[int]) -> tuple[str, ...]:
    """Put the images that a tree was restored from on ice, and leave word that these processes run of them.

    Done once, also when it is asked for again. What could not be done comes back in words.
    """
    draft, directory = journal.directory / DRAFT, journal.first.get("keep", "")
    if not directory or not draft.exists():
        return ()
    there = Path(directory) / journal.migration
    try:
        manifest = ice.parsed(draft.read_bytes(), there)
        shutil.rmtree(there, ignore_errors=True)  # of one who died over it
        images.make_place(there, memory=0)
        for number in range(1, manifest.round + 1):
            if (place / str(number)).is_dir():
                _copy(place / str(number), there / str(number))
        ice.put(there, manifest)
        ice.note_restored(there, filter(None, map(process.identity, pids)))
        ice.seal(there)
        to_disk(there.parent)
    except (OSError, ice.IceError, images.NoRoom) as error:
        shutil.rmtree(there, ignore_errors=True)
        return (f"the images were not kept in {there}: {error}",)
    draft.unlink()
    return ()


async def keep_beside(journal: Journal, place: Path) -> tuple[str, ...]:
    """The same, for a migration whose agent is gone; nothing else of this one waits for it."""
    root = journal.facts(Record.RESUMED.value).get("pid", 0)
    pids = process.tree_pids(root) if root and process.identity(root) else []
    return await asyncio.get_running_loop().run_in_executor(None, keep, journal, place, pids)


def _copy(source: Path, target: Path) -> None:
    """The images of a round, and the link to the one before; holes stay holes."""
    target.mkdir(mode=0o700)
    for path in source.iterdir():
        if path.is_symlink():
            (target / path.name).symlink_to(os.readlink(path))
        elif path.suffix == ".img":
            _copy_sparse(path, target / path.name)


def _copy_sparse(source: Path, target: Path) -> None:
    with source.open("rb", buffering=0) as old, target.open("xb", buffering=0) as new:
        size = os.fstat(old.fileno()).st_size
        os.ftruncate(new.fileno(), size)
        position = 0
        while position < size:
            try:
                position = os.lseek(old.fileno(), position, os.SEEK_DATA)
            except OSError:  # nothing but a hole is left
                return
            end = os.lseek(old.fileno(), position, os.SEEK_HOLE)
            while position < end:
                data = os.pread(old.fileno(), min(_PIECE, end - position), position)
                position += os.pwrite(new.fileno(), data, position)
