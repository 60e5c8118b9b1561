"""The rounds that come to this host: through a page server of criu, or by themselves, and whether one is here whole."""

from __future__ import annotations

import time
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Callable, Optional, cast

from agent import criu, durable, images, pagemap
from agent.ending import ended
from agent.journal import Journal, Record, WrongOrder
from agent.ledger import Ledger
from agent.protocol import Image, Moved
from agent.streams import Jobs, Taken


class Arriving:
    """The rounds of one migration, below `images`; criu's logs lie with the journal."""

    def __init__(self, images: Path, journal: Journal, program: str, jobs: Jobs, streams: Taken) -> None:
        self._images = images
        self._logs = journal.directory
        self._durable = journal.facts(Record.PREPARED.value).get("durable", False)
        self._program = program
        self._jobs = jobs
        self._streams = streams
        self._servers: dict[int, criu.Running] = {}
        self._shared: Optional[Path] = None

    def look_in(self, shared: Path, source: str) -> None:
        """Rounds will lie in this directory, which the source makes and removes. Raises NoRoom: it is not here."""
        if not shared.is_dir():
            raise images.NoRoom(f"{shared.parent}: what {source} has made there is not seen here")
        self._shared = shared

    async def serve(self, number: int, socket: int) -> criu.Running:
        """Start a page server for a round on a connected socket, which stays ours: the next round's takes it over
        (CRIU.md). Raises WrongOrder."""
        directory = images.round_directory(self._images, number)
        if directory.exists():
            raise WrongOrder(f"round {number} was accepted before")
        directory.mkdir(mode=0o700)
        log = self._logs / f"page-server-{number}.log"
        previous = f"../{number - 1}" if number > 1 else ""
        arguments = criu.page_server_arguments(images=directory, socket=socket, log=log, previous=previous)
        running = await criu.spawn(self._program, arguments, log, descriptors=(socket,))
        self._servers[number] = running
        return running

    async def served(self, number: int) -> int:
        """Wait for the end of a round's page server; bytes of its pages. Raises CriuError, WrongOrder."""
        if number not in self._servers:
            raise WrongOrder(f"round {number} is not being accepted")
        await self._servers[number].ended()
        return images.pages_size(images.round_directory(self._images, number))

    async def unpack(self, number: int, name: str) -> Moved:
        """The images of a round that are no memory, from the stream of this name. Raises WrongOrder."""
        directory = images.round_directory(self._images, number)
        if not directory.exists():
            raise WrongOrder(f"round {number} was not accepted")
        stream = await self._streams.get(name)

        def run() -> Moved:
            # unbuffered: the archive says where it ends, and behind sudo the end of input may never come
            with stream.makefile("rb", buffering=0) as source:
                return images.receive(directory, cast(BinaryIO, source))

        return await self._jobs.run(run)

    async def verified(self, number: int, expected: Iterable[Image]) -> int:
        """Bytes of the pages of a round that another has put here. Raises NotWhole, ImageError, CriuError."""
        directory = images.round_directory(self._images, number)
        if self._shared is not None:
            # what criu and the pager make besides stays on this host
            directory.symlink_to(images.round_directory(self._shared, number))
        images.verify(directory, expected)
        if number > 1 and self._shared is None:
            forget_ended(images.round_directory(self._images, number - 1), directory)
            log = self._logs / f"dedup-{number}.log"
            await (await criu.spawn(self._program, criu.dedup_arguments(images=directory, log=log), log)).ended()
        return images.pages_size(directory)

    async def kept(self, number: int) -> float:
        """A round that has arrived is on disk, where that is ordered: seconds that it took. Raises NoRoom."""
        return await self._kept(lambda: durable.keep(images.round_directory(self._images, number)))

    async def all_kept(self, ledger: Ledger) -> float:
        """The same of all that a restore needs, and of the files that came along."""
        return await self._kept(lambda: durable.keep_all(self._images, ledger))

    async def _kept(self, keep: Callable[[], None]) -> float:
        started = time.monotonic()
        if not self._durable:
            return 0.0
        await self._jobs.run(keep)
        return time.monotonic() - started

    async def ended(self) -> None:
        """Wait until no page server is at work. Raises NotRunning when one does not end."""
        for server in self._servers.values():
            await ended(server)


def forget_ended(older: Path, newer: Path) -> None:
    """Remove the memory of tasks, and of shared areas, that were gone when the newer round was made. Raises ImageError.

    Nobody restores it; and `criu dedup` fails at the first map that has no counterpart (criu/cr-dedup.c:
    cr_dedup_one_pagemap), with whatever it had not come to by then left twice.
    """
    for path in sorted(older.glob("pagemap-*.img")):
        if not (newer / path.name).exists():
            (older / f"pages-{pagemap.read(path).pages_id}.img").unlink(missing_ok=True)
            path.unlink()
