"""Pages that a round brings again as they were: named in the stream, not sent.

The kernel notes writes a huge page at a time where memory lies in such: one byte written, and 2 MiB are dirty. So a
round, the last one in the freeze too, is mostly made of pages that the target has already. Here the page server's
stream is read on its way out; a page that an earlier round brought just so becomes what criu itself would have made of
a clean one: a reference to the round before. The target's criu sees nothing unusual, and the audit of the index (agent:
pageindex) covers these pages as all others.

What is remembered is a digest a page, from the second round on, for what is dirty again is what was dirty before: the
first round, all of memory, goes by at the price of its headers. Where little comes again unchanged, nothing more is
looked at. Whatever is not understood in a stream is passed on as it is.
"""

from __future__ import annotations

import hashlib
import os
import struct
from array import array
from bisect import bisect_right

from migrator.channel import CHUNK, Channel

MOST_PAGES = 1 << 16
"""Pages whose digests are kept, some 120 bytes each: 256 MiB that are written to all the time."""

MOST_RANGES = 1 << 18
"""Ranges of addresses that a round may be in; memory that is more torn is passed on as it is."""

_HIGHEST = 1 << 63
"""Above all addresses of a process."""

WORTH = 0.1
"""Share of a round's pages that must have come unchanged, from the third round on, for going on to look."""

_WORD, _SHORT, _LONG = struct.Struct("=I"), struct.Struct("=IIQQ"), struct.Struct("=I4xQQQ")
"""A command, a number of pages, an address, whose pages (criu/page-xfer.c, struct page_server_iov): in criu before 4.2,
and since, where the number of pages has 64 bits. The first command of a stream tells which: it opens an image, and all
of it but the command and whose it is is zero."""

_OPEN2, _PARENT, _ADD_F = 4, 5, 6
_CLOSE, _FORCE_CLOSE = 0x1023, 0x1024
_COMMANDS = {_OPEN2, _PARENT, _ADD_F, _CLOSE, _FORCE_CLOSE}
"""All that a dump says to a page server."""
_FLAGS = 16
"""Bits by which flags are shifted in a command."""
_IN_PARENT, _PRESENT = 1, 4
"""PE_PARENT and PE_PRESENT of criu/include/pagemap.h."""
_TASK = 1
"""The type, in the lowest byte of whose pages they are, of private memory."""


class _Unknown(Exception):
    """Something in a stream that is not understood, or is too much: from here on it is passed on as it is."""


class _Ranges:
    """Ascending ranges of addresses, those that touch made one."""

    def __init__(self) -> None:
        self._starts = array("Q")
        self._ends = array("Q")

    def __len__(self) -> int:
        return len(self._starts)

    def add(self, start: int, end: int) -> bool:
        """One more behind the others; False where it is not behind them, or where no address is."""
        if end > _HIGHEST or (self._ends and start < self._ends[-1]):
            return False
        if self._ends and start == self._ends[-1]:
            self._ends[-1] = end
        else:
            self._starts.append(start)
            self._ends.append(end)
        return True

    def hold(self, address: int) -> bool:
        """Whether one of them has it."""
        position = bisect_right(self._starts, address) - 1
        return position >= 0 and address < self._ends[position]


class Unchanged:
    """One migration's stream to the page servers, round after round. Pure: bytes in, bytes out."""

    def __init__(self, page: int) -> None:
        """`page` is the size of a page in bytes."""
        self._page = page
        self._form: struct.Struct | None = None
        self._looking = True
        self._round = 1
        self._whose = self._address = 0
        self._flags = 0
        self._passing = 0  # bytes that nobody looks at
        self._pages = 0  # pages that are looked at
        self._torn = b""  # what has come of a header or page
        self._known: dict[int, dict[int, bytes]] = {}
        self._count = 0
        self._before: dict[int, _Ranges] = {}
        self._now: dict[int, _Ranges] = {}
        self._seen = self._same = 0

    def feed(self, data: bytes) -> bytes:
        """What goes on instead of this piece of the stream. A page or header that is torn comes with the next one."""
        data, self._torn = self._torn + data, b""
        out: list[bytes] = []
        position = self._read(data, out) if self._looking else 0
        if self._looking:
            self._torn = data[position:]
        else:
            out.append(data[position:])
        return out[0] if len(out) == 1 else b"".join(out)

    def _read(self, data: bytes, out: list[bytes]) -> int:
        """Go through a piece, as far as it is whole or as long as it is looked at; where that ends."""
        position = 0
        while position < len(data) and self._looking:
            if self._passing:
                end = min(position + self._passing, len(data))
                self._passing -= end - position
                out.append(data[position:end])
            elif self._pages:
                count = min(self._pages, (len(data) - position) // self._page)
                if not count:
                    break
                end = position + count * self._page
                self._look(data, position, end, out)
            else:
                try:
                    end = self._command(data, position, out)
                except _Unknown:
                    self._give_up()
                    break
                if end == position:
                    break
            position = end
        return position

    def rest(self) -> bytes:
        """What was kept back of a stream that ended in the middle of something."""
        torn, self._torn = self._torn, b""
        return torn

    def _command(self, data: bytes, position: int, out: list[bytes]) -> int:
        """Where the next command ends; `position` as long as it is torn."""
        there = len(data) - position
        if there < _WORD.size:
            return position
        (word,) = _WORD.unpack_from(data, position)
        command, flags = word & (1 << _FLAGS) - 1, word >> _FLAGS
        if command not in _COMMANDS:
            raise _Unknown
        if self._form is None and there >= _SHORT.size:
            if _SHORT.unpack_from(data, position)[3]:
                self._form = _SHORT
            elif there >= _LONG.size:
                self._form = _LONG
        if self._form is None or there < self._form.size:
            return position
        end = position + self._form.size
        _, pages, address, whose = self._form.unpack_from(data, position)
        if command in (_CLOSE, _FORCE_CLOSE):
            self._next_round()
        elif command == _ADD_F:
            ranges = self._now.setdefault(whose, _Ranges())
            if len(ranges) >= MOST_RANGES or not ranges.add(address, address + pages * self._page):
                raise _Unknown
            if flags & _PRESENT:
                if self._round > 1 and whose & 0xFF == _TASK:
                    self._whose, self._address, self._flags, self._pages = whose, address, flags, pages
                    return end  # its header is written with the pages
                self._passing = pages * self._page
        out.append(data[position:end])
        return end

    def _look(self, data: bytes, position: int, end: int, out: list[bytes]) -> None:
        """Whole pages of one run: those that are the same, and those that are not, in their order."""
        known, before = self._known.setdefault(self._whose, {}), self._before.get(self._whose)
        first, same_so_far, base = position, False, self._address - position
        for at in range(position, end, self._page):
            digest = hashlib.blake2b(data[at : at + self._page], digest_size=16).digest()
            address = base + at
            # what the round before does not have at all, because it was unmapped then, criu would look for in vain
            same = known.get(address) == digest and before is not None and before.hold(address)
            if not same:
                self._remember(known, address, digest)
            if at > position and same != same_so_far:
                self._run(data, first, at, same_so_far, out)
                first = at
            same_so_far = same
        self._run(data, first, end, same_so_far, out)
        self._pages -= (end - position) // self._page

    def _run(self, data: bytes, start: int, end: int, same: bool, out: list[bytes]) -> None:
        pages = (end - start) // self._page
        flags = _IN_PARENT if same else self._flags
        if self._form is None:
            raise ValueError("there is no run before the first command")
        out.append(self._form.pack(flags << _FLAGS | _ADD_F, pages, self._address, self._whose))
        if same:
            self._same += pages
        else:
            out.append(data[start:end])
        self._seen += pages
        self._address += end - start

    def _remember(self, known: dict[int, bytes], address: int, digest: bytes) -> None:
        if address in known:
            known[address] = digest
        elif self._count < MOST_PAGES:
            known[address] = digest
            self._count += 1

    def _next_round(self) -> None:
        if self._round > 2 and self._same < WORTH * self._seen:
            self._give_up()
        self._round += 1
        self._seen = self._same = 0
        self._before, self._now = self._now, {}

    def _give_up(self) -> None:
        self._looking = False
        self._known, self._before, self._now = {}, {}, {}


class Sifted(Channel):
    """The source's end of a stream to a page server, without what has come unchanged."""

    def __init__(self, inner: Channel) -> None:
        super().__init__()
        self._inner = inner
        self._unchanged = Unchanged(os.sysconf("SC_PAGE_SIZE"))
        self._ended = False

    async def _receive(self, size: int = CHUNK) -> bytes:
        while not self._ended:
            data = await self._inner.read(size)
            self._ended = not data
            if passed := self._unchanged.feed(data) if data else self._unchanged.rest():
                return passed
        return b""

    async def write(self, data: bytes) -> None:
        """The page server's answers."""
        await self._inner.write(data)

    async def write_eof(self) -> None:
        """Their end."""
        await self._inner.write_eof()

    async def close(self) -> None:
        """End both directions at once."""
        await self._inner.close()

    async def wait(self) -> int | None:
        """The far end's exit status."""
        return await self._inner.wait()

    def stderr_tail(self) -> str:
        """What the far end said."""
        return self._inner.stderr_tail()
