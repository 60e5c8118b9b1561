"""The pager: fills a restored tree's memory while the tree runs, faults first. It decides nothing about a migration.

It speaks the protocol of `criu restore --lazy-pages` on a unix socket: per task a PID and its userfaultfd, then a last
word (criu/uffd.c). Faults are served from the first descriptor on, before the last word too: the restorer itself
touches lazy memory. Between two faults memory is copied in chunks, what the last rounds brought first, for that is what
the tree works on.

Memory that it can't copy stays missing and its readers wait: nothing here ever puts zeros where an image has a page.
"""

from __future__ import annotations

import errno
import os
import select
import socket
import stat
import struct
import time
from pathlib import Path
from typing import Optional

from agent import userfault
from agent.pageindex import Index, Memory
from agent.pagemap import PAGE
from agent.pending import Pages, Pending, Space
from agent.record import COPIED, GONE, TASK, Record

LAST_WORD = 0x52535446
CHUNK = 1024 * 1024
"""Bytes that are copied between two looks at the faults."""
NEAR = 64 * 1024
"""Bytes that a fault brings along."""
SHORT_OF_MEMORY = 0.05
"""Seconds before a copy for which the host had no memory is tried again."""


class Pager:
    """One life of a pager. What earlier lives did stands in the record."""

    def __init__(self, images: Path, record: Record, listener: socket.socket) -> None:
        self._images = images
        self._record = record
        self._listener = listener
        self._memory = Memory(images)
        self._lazy: dict[int, Index] = {}
        self._pages: list[Pages] = []
        self._numbers: dict[tuple[int, int], int] = {}
        self._spaces: dict[int, Space] = {}
        self._poll = select.poll()
        self._connection: Optional[socket.socket] = None
        self._shared = False
        self._short = False
        self._owed: list[tuple[Space, int, int]] = []
        self._looked = time.monotonic_ns()
        self._asked = self._looked

    # --- index ---

    def add_round(self, number: int) -> None:
        """A round has arrived whole. Raises BrokenChain and ImageError."""
        if number > self._record.last_round:  # else the order is repeated: the pager that took it died over its answer
            self._memory.add_round(number)
            self._record.last_round = number

    def mark(self) -> int:
        """Decide what is lazy, once the last round's images are here. Returns its bytes. Raises ImageError."""
        if not self._record.marked:
            self._memory.mark()
            self._record.marked = 1
        self._lazy = self._memory.lazy()
        return sum(end - start for index in self._lazy.values() for start, end, _, _ in index.extents)

    def take_up(self) -> None:
        """After a predecessor's death: build the index again, and live through what happened."""
        for number in range(1, self._record.last_round + 1):
            self._memory.add_round(number)
        if self._record.marked:
            self.mark()
        self._record.close_gap()
        for kind, descriptor, pid, message in self._record.past:
            if kind == TASK:
                self._spaces[descriptor] = self._space(pid, descriptor)
            elif descriptor not in self._spaces:
                continue
            elif kind == GONE:
                del self._spaces[descriptor]
            elif kind == COPIED:
                self._spaces[descriptor].pending.drop(message.address, message.end)
            else:
                self._live(self._spaces[descriptor], message)
        self._take_strays()
        for space in list(self._spaces.values()):
            self._poll.register(space.descriptor, select.POLLIN)
            # a fault is told once, and the predecessor may have been told
            userfault.wake_all(space.descriptor)

    def _take_strays(self) -> None:
        """Descriptors over which the predecessor died: received or accepted, not recorded; or not closed."""
        for descriptor in sorted(int(name) for name in os.listdir("/proc/self/fd")):
            if userfault.is_userfaultfd(descriptor) and descriptor not in self._spaces:
                if self._record.half_read:
                    self._welcome(descriptor)
                else:
                    os.close(descriptor)
            elif self._record.connection < 0 and self._is_criu(descriptor):
                self._record.connection = descriptor
        if self._record.connection >= 0:
            self._connection = socket.socket(fileno=self._record.connection)
            self._poll.register(self._connection, select.POLLIN)

    def _is_criu(self, descriptor: int) -> bool:
        """Whether it is a connection that our listener has accepted."""
        try:
            if descriptor == self._listener.fileno() or not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                return False
        except OSError:
            return False  # the warden's, and closed meanwhile
        accepted = socket.socket(fileno=descriptor)
        try:
            return accepted.family == socket.AF_UNIX and accepted.getsockname() == self._listener.getsockname()
        finally:
            accepted.detach()

    # --- criu's protocol ---

    def listen(self) -> None:
        """Wait for criu too."""
        self._poll.register(self._listener, select.POLLIN)

    def _greet(self) -> None:
        self._connection, _ = self._listener.accept()
        self._record.connection = self._connection.fileno()
        self._poll.register(self._connection, select.POLLIN)

    def _hear(self, connection: socket.socket) -> None:
        """One message of criu's."""
        if self._record.half_read == 0 and connection.recv_into(self._record.word, 4, socket.MSG_WAITALL) < 4:
            # received into the record, so that a successor has what a predecessor took
            self._record.half_read = 0
            self._hang_up(connection)
            return
        (pid,) = struct.unpack("=i", self._record.word)
        if pid == LAST_WORD:
            self._record.complete = 1
            self._record.half_read = 0
            self._hang_up(connection)
        elif pid <= 0:
            self._record.half_read = 0  # a zombie, which has no memory
        else:
            _, descriptors, _, _ = socket.recv_fds(connection, 1, 1)
            if not descriptors:
                raise OSError("criu sent no descriptor with a task")
            self._poll.register(self._welcome(descriptors[0]).descriptor, select.POLLIN)

    def _welcome(self, descriptor: int) -> Space:
        """The task that criu has named last."""
        pid = self._record.half_read
        self._record.add_task(pid, descriptor)
        self._record.half_read = 0
        self._spaces[descriptor] = self._space(pid, descriptor)
        return self._spaces[descriptor]

    def _hang_up(self, connection: socket.socket) -> None:
        self._poll.unregister(connection)
        self._record.connection = -1
        self._connection = None
        connection.close()

    def _space(self, pid: int, descriptor: int) -> Space:
        index = self._lazy.get(pid, Index())
        hot = [(start, end) for start, end, number, _ in index.extents if number > 1]
        pieces = ((start, end, self._number(pid, number), offset) for start, end, number, offset in index.extents)
        return Space(pid, descriptor, Pending(pieces), hot)

    def _number(self, pid: int, number: int) -> int:
        key = (pid, number)
        if key not in self._numbers:
            self._numbers[key] = len(self._pages)
            self._pages.append(Pages(self._memory.pages(pid, number)))
        return self._numbers[key]

    def _forget(self, space: Space) -> None:
        """An address space has ended, or has got all that is its own. Closing the last descriptor ends the watch."""
        if self._spaces.pop(space.descriptor, None) is not None:
            self._poll.unregister(space.descriptor)
            self._record.add_gone(space.descriptor)
            os.close(space.descriptor)

    # --- userfaultfd ---

    def _live(self, space: Space, message: userfault.Message) -> bool:
        """An event of an address space, now or in a former life. False when it changed nothing of what is to come."""
        if message.event == userfault.FORK:
            # from here on two spaces want the same pages: nothing is given back any more
            self._shared = True
            self._spaces[message.descriptor] = Space(
                space.pid, message.descriptor, space.pending.copy(), list(space.hot)
            )
        elif message.event == userfault.REMAP:
            return space.pending.move(message.address, message.to, message.length)
        elif message.event in (userfault.REMOVE, userfault.UNMAP):
            return bool(space.pending.drop(message.address, message.end))
        return True

    def _events(self, space: Space) -> None:
        """All that an address space has to say."""
        while True:
            try:
                message = self._record.read(space.descriptor)
            except OSError:
                self._forget(space)
                return
            if message is None:
                return
            if message.event == userfault.FAULT:
                self._fault(space, message.address & -PAGE)
            else:
                if not self._live(space, message) and not self._record.gaps:
                    # most events, once most is in: the record would be full of them. With a gap in what was copied a
                    # successor may take for missing what this life knows to be there: then it needs them all
                    self._record.forget_last()
                if message.event == userfault.FORK:
                    self._poll.register(message.descriptor, select.POLLIN)
            if space.descriptor not in self._spaces:
                return

    def _fault(self, space: Space, address: int) -> None:
        """Serve a fault. Its message comes once only: what can't be served now is owed, and tried again."""
        self._record.faults += 1
        if self._served(space, address):
            self._record.longest_ns = max(self._record.longest_ns, time.monotonic_ns() - self._asked)
        else:
            self._owed.append((space, address, self._asked))

    def _served(self, space: Space, address: int) -> bool:
        piece = space.pending.at(address)
        if piece is not None:
            self._bring(space, address, min(piece[1], address + NEAR))
            return space.pending.at(address) is None or space.descriptor not in self._spaces
        try:
            userfault.zero(space.descriptor, address, PAGE)
        except (userfault.Present, userfault.Unmapped):
            userfault.wake(space.descriptor, address, PAGE)
        except userfault.Gone:
            self._forget(space)
        except userfault.Busy:
            return False
        except OSError as error:
            if error.errno != errno.ENOMEM:
                raise
            self._short = True
            return False
        return True

    def _pay(self) -> None:
        """Try again what is owed."""
        owed, self._owed = self._owed, []
        for space, address, asked in owed:
            if space.descriptor not in self._spaces:
                continue
            if self._served(space, address):
                self._record.longest_ns = max(self._record.longest_ns, time.monotonic_ns() - asked)
            else:
                self._owed.append((space, address, asked))

    def _bring(self, space: Space, start: int, end: int) -> None:
        """Copy what is still to come of this range."""
        pieces = space.pending.drop(start, end)
        while pieces:
            if not self._copy(space, *pieces.pop(0)):
                for piece in pieces:
                    space.pending.insert(piece)
                return

    def _copy(self, space: Space, low: int, high: int, image: int, offset: int) -> bool:
        """Copy one piece. False when the address space is gone, or busy with a change, or the host out of memory."""
        pages = self._pages[image]
        source = pages.ready(offset, high - low)
        position, size, missed = low, high - low, -1
        while position < high:
            size = min(size, high - position)
            try:
                userfault.copy(space.descriptor, position, source + position - low, size)
                position += size
                size = high - position
            except userfault.Present as present:
                position += present.done
                # a former life brought it; who waits for it is woken
                userfault.wake(space.descriptor, position, PAGE)
                position += PAGE
            except userfault.Unmapped as unmapped:
                position += unmapped.done
                if size > PAGE:
                    # a copy must lie within one area, and the tree may have split it (mprotect): in smaller pieces
                    size = size // 2 // PAGE * PAGE
                    continue
                if position != missed:
                    # or just being moved: since 6.8 the area is looked for before a change is (mfill_atomic in
                    # mm/userfaultfd.c). Asked once more the kernel says so, until the event is read
                    missed = position
                    continue
                # really unmapped: the event is on the way; who waits is woken and finds out
                userfault.wake(space.descriptor, position, PAGE)
                position += PAGE
                size = high - position
            except userfault.Busy as busy:
                # a change is under way, and ends only when its event is read: what is not copied yet goes back, so that
                # the event finds it
                position += busy.done
                space.pending.insert((position, high, image, offset + position - low))
                return False
            except userfault.Gone:
                self._forget(space)
                return False
            except OSError as error:
                if error.errno != errno.ENOMEM:
                    raise
                # whoever needs the page waits; what it never gets is a zero. Events and orders are heard meanwhile
                self._short = True
                space.pending.insert((position, high, image, offset + position - low))
                return False
        self._record.copied += high - low
        # recorded before it is given back: a successor must never copy what was a page and is a hole
        recorded = self._record.add_copied(space.descriptor, low, high)
        if not recorded:
            self._record.gaps = 1
        if recorded and self._record.punching and not self._shared:
            pages.punch(offset, high - low)
        return True

    # --- the loop ---

    def serve(self, *others: int) -> list[int]:
        """Serve what there is to serve: wait if there is nothing to fill; those of `others` that are readable."""
        filling = self._record.filling and any(space.pending.size for space in self._spaces.values())
        # a fault that is found now may have waited through the last chunk, but not through a wait for it
        before = time.monotonic_ns()
        pause = SHORT_OF_MEMORY * 1000 if self._short else 0 if filling else 1
        self._short = False
        ready = {number for number, _ in self._poll.poll(pause if filling or self._owed else None)}
        self._asked = self._looked if filling else time.monotonic_ns()
        self._looked = before
        for number in ready & set(self._spaces):
            if number in self._spaces:
                self._events(self._spaces[number])
        if self._listener.fileno() in ready:
            self._greet()
        if self._connection is not None and self._connection.fileno() in ready:
            self._hear(self._connection)
        self._pay()
        if filling:
            self._fill()
        return [number for number in others if number in ready]

    def watch(self, descriptor: int) -> None:
        """Let `descriptors` tell of this one as well."""
        self._poll.register(descriptor, select.POLLIN)

    def unwatch(self, descriptor: int) -> None:
        """No more."""
        self._poll.unregister(descriptor)

    def _fill(self) -> None:
        """One chunk, hot ones first."""
        for space in list(self._spaces.values()):
            while space.hot:
                start, end = space.hot.pop()
                if end - start > CHUNK:
                    space.hot.append((start, end - CHUNK))
                    start = end - CHUNK
                if space.pending.at(start) or space.pending.at(end - PAGE):
                    self._bring(space, start, end)
                    return
            piece = space.pending.first
            if piece is not None:
                self._bring(space, max(piece[0], piece[1] - CHUNK), piece[1])
                return

    @property
    def short_of_memory(self) -> bool:
        """Whether the host had no memory for the last copy."""
        return self._short

    @property
    def engaged(self) -> bool:
        """Whether a criu is at work, or held: it says its last word only once its hook has let the tree go."""
        return self._connection is not None

    @property
    def whole(self) -> bool:
        """Whether every address space that still lives has all of its memory."""
        return bool(self._record.complete) and not any(space.pending.size for space in self._spaces.values())

    def leave(self) -> None:
        """All is in: closing the last descriptors lets the kernel forget that anybody watched."""
        for space in list(self._spaces.values()):
            self._forget(space)
