"""The files that come along with a tree: when they go, and the account of it.

Whole by rsync before anything else, then what changed since: once at once, because much may have changed while rsync
was at work, once beside each round of pre-copy, and in the freeze. What a pass is, `agent/sending.py` says.
"""

from __future__ import annotations

import time

from agent import protocol
from migrator import errors
from migrator.bandwidth import Bucket
from migrator.hosts import Ends, Way
from migrator.peer import PeerFault
from migrator.phases import Observer
from migrator.together import both
from migrator.words import bytes_text, seconds_text

_RSYNC, _STREAM = "rsync", "files"


class Along:
    """The files of one migration. Nothing is done where none may come along."""

    def __init__(self, ends: Ends, observer: Observer, *, wanted: bool) -> None:
        self._ends = ends
        self._observer = observer
        self._wanted = wanted
        self.wire_bytes = 0
        """Bytes of all of it that went over the link."""
        self.bytes = 0
        """Bytes of content that went, in the freeze too."""
        self.frozen_bytes = 0
        self.frozen_seconds = 0.0
        """From the hold of the tree to the files in their places."""
        self._held_at = 0.0

    @property
    def streams(self) -> tuple[str, ...]:
        """The bulk streams that it wants between the two agents."""
        return (_RSYNC, _STREAM) if self._wanted else ()

    def way(self, compress: str, bucket: Bucket) -> Way:
        """How they go: they are no part of the rounds' account."""
        return Way(compress, bucket, lambda size: None, self._went)

    def _went(self, size: int) -> None:
        self.wire_bytes += size

    async def copy(self, files: tuple[protocol.Incoming, ...]) -> None:
        """These, whole. What fails raises PeerFault, PeerLost or NoSpace."""
        if not files:
            return
        started = time.monotonic()
        await self._ends.target.stage(protocol.Stage(files))
        paths = tuple(file.path for file in files)
        try:
            _, held = await both(
                self._ends.source.copy_files(protocol.CopyFiles(_RSYNC, _STREAM, paths)),
                self._ends.target.take_files(protocol.TakeFiles(_RSYNC, _STREAM)),
            )
        except PeerFault as fault:
            if fault.host == self._ends.source.host and "No space left on device" in fault.fault.message:
                raise errors.NoSpace(
                    f"{self._ends.target.host}: {fault.fault.message}", hint="make room where the files go"
                ) from fault
            raise
        self.bytes += held.bytes
        text = f"{held.files} files, {bytes_text(held.bytes)}, by rsync in {seconds_text(time.monotonic() - started)}"
        self._observer.detail(text)

    async def add(self, files: tuple[protocol.Incoming, ...]) -> None:
        """These as well, with the next pass."""
        if files:
            await self._ends.target.stage(protocol.Stage(files))
            await self._ends.source.add_files(protocol.AddFiles(tuple(file.path for file in files)))

    async def again(self) -> None:
        """What changed since."""
        if self._wanted:
            sent, _ = await both(self._send(final=False), self._receive(final=False))
            self.bytes += sent.bytes

    def freeze(self) -> None:
        """The tree is held from now on."""
        self._held_at = time.monotonic()

    async def held(self) -> None:
        """The tree does not run: send what changed since, and no more will."""
        if self._wanted:
            sent = await self._send(final=True)
            self.bytes += sent.bytes
            self.frozen_bytes = sent.bytes

    async def placed(self) -> None:
        """The target's half of that: on return they are in their places."""
        if self._wanted:
            await self._receive(final=True)
            self.frozen_seconds = time.monotonic() - self._held_at

    async def _send(self, *, final: bool) -> protocol.Moved:
        return await self._ends.source.send_files(protocol.SendFiles(_STREAM, final))

    async def _receive(self, *, final: bool) -> protocol.Moved:
        return await self._ends.target.receive_files(protocol.ReceiveFiles(_STREAM, final))
