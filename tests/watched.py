"""Memory that a userfaultfd watches, and a process that has nothing else: what criu's restore leaves to a pager.

`Tree` starts this file as a program of its own. It maps an area at a fixed address, hands its userfaultfd over as criu
does (PID, descriptor, last word), and then lives on in that memory in one of several ways, checking all that it reads
against what `fake_images` made up. Which page comes from which round is told by `round_of`.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import random
import select
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest

from agent import userfault
from tests import fake_images
from tests.fake_images import ANONYMOUS, LAZY, ORDINARY, PARENT, PRESENT, PRIVATE, Runs

PAGE = 4096
BASE = 0x100000000000
"""Where the area is mapped: nothing else is near."""
AWAY = 0x180000000000
"""Where parts of it are moved to."""

_NR = {"x86_64": 323, "aarch64": 282, "ppc64le": 364}
_REGISTER = 3 << 30 | 32 << 16 | 0xAA << 8
_FIXED = 0x100000
_MAYMOVE_FIXED = 3
_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [
    ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long,
]  # fmt: skip
_libc.mremap.restype = ctypes.c_void_p
_libc.mremap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_size_t, ctypes.c_int, ctypes.c_void_p]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]

_why = userfault.available()
needs_userfaultfd = pytest.mark.skipif(bool(_why), reason=f"needs userfaultfd with all its events: {_why}")


def watch(address: int, length: int) -> int:
    """A userfaultfd of this process that watches an area, as criu makes one."""
    descriptor = int(_libc.syscall(_NR[os.uname().machine], os.O_CLOEXEC | os.O_NONBLOCK))
    assert descriptor >= 0, os.strerror(ctypes.get_errno())
    api = (ctypes.c_uint64 * 3)(userfault.API, userfault._FEATURES, 0)
    assert _libc.ioctl(descriptor, ctypes.c_ulong(userfault._IO_API), api) == 0, os.strerror(ctypes.get_errno())
    register = (ctypes.c_uint64 * 4)(address, length, 1, 0)  # UFFDIO_REGISTER_MODE_MISSING
    assert _libc.ioctl(descriptor, ctypes.c_ulong(_REGISTER), register) == 0, os.strerror(ctypes.get_errno())
    return descriptor


# --- images ----------------------------------------------------------------------------------------------------------


def round_of(page: int) -> int:
    """The round that brought a page of the area last; 0 for one that no round has."""
    return 0 if page % 7 == 6 else 2 if page % 5 == 0 else 1


def write_images(images: Path, pids: list[int], pages: int) -> None:
    """Two rounds of an area of so many pages, for each of these tasks."""
    first: Runs = [(BASE + page * PAGE, 1, PRESENT) for page in range(pages) if page % 7 != 6]
    last: Runs = [
        (BASE + page * PAGE, 1, PRESENT | LAZY if round_of(page) == 2 else PARENT)
        for page in range(pages)
        if round_of(page)
    ]
    area = [(BASE, BASE + pages * PAGE, PRIVATE | ANONYMOUS, ORDINARY)]
    fake_images.write_round(images, 1, dict.fromkeys(pids, first))
    fake_images.write_round(images, 2, dict.fromkeys(pids, last), dict.fromkeys(pids, area))


# --- the test's end --------------------------------------------------------------------------------------------------


class Tree:
    """A process in such memory. It waits for `go` before it maps anything, so that images can be made for its PID."""

    def __init__(self, socket_path: Path, life: str, pages: int, seed: int = 0) -> None:
        root = str(Path(__file__).parents[1])
        start = f"import sys; sys.path.insert(0, {root!r}); from tests import watched; watched.main(sys.argv[1:])"
        words = [sys.executable, "-c", start, str(socket_path), life, str(pages), str(seed)]
        self._process = subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        self.pid = self._process.pid

    def _say(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(b"\n")

    def _hear(self) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], 30)
        assert ready, "it is stuck"
        return self._process.stdout.readline().decode()

    def go(self) -> None:
        """Map the area and tell the pager, the last word excepted: it reads a page before that, as a restorer does."""
        self._say()

    def greeted(self) -> None:
        """Wait until the last word was said."""
        assert self._hear() == "greeted\n"

    def run(self) -> None:
        """Resume: live."""
        self._say()

    def result(self) -> dict[str, int]:
        """What it saw, once it has come to its end."""
        found = json.loads(self._hear())
        assert isinstance(found, dict)
        return found

    def close(self) -> int:
        """Make an end of it; its exit status."""
        self._process.kill()
        for pipe in (self._process.stdin, self._process.stdout):
            assert pipe is not None
            pipe.close()
        return self._process.wait()

    def wait(self) -> int:
        """Its exit status, when it leaves by itself."""
        return self._process.wait(30)


# --- its own end -----------------------------------------------------------------------------------------------------


class Life:
    """What the process does with its memory; `bad` counts pages that were not what they must be."""

    def __init__(self, pages: int, seed: int) -> None:
        self.pages = pages
        self.random = random.Random(seed)
        self.seen: dict[str, int] = {"bad": 0, "checked": 0}

    def check(self, page: int, at: int = BASE, *, zero: bool = False) -> None:
        """Read a page of the area, which may have moved by now."""
        number = 0 if zero else round_of(page)
        expected = fake_images.content(BASE + page * PAGE, number) if number else bytes(PAGE)
        if ctypes.string_at(at + page * PAGE, PAGE) != expected:
            self.seen["bad"] += 1
        self.seen["checked"] += 1

    def check_all(self) -> None:
        order = list(range(self.pages))
        self.random.shuffle(order)
        for page in order:
            self.check(page)

    def read(self) -> None:
        """Touches all of it in random order."""
        self.check_all()

    def slow(self) -> None:
        """Touches all of it over a second."""
        for _ in range(50):
            for page in self.random.sample(range(self.pages), self.pages // 50):
                self.check(page)
            time.sleep(0.02)
        self.check_all()

    def idle(self) -> None:
        """Touches nothing until it is spoken to again."""
        sys.stdin.readline()
        self.check_all()

    def write(self) -> None:
        """Writes before it reads: what it wrote must stay."""
        order = self.random.sample(range(self.pages), self.pages // 2)
        for page in order:
            ctypes.memset(BASE + page * PAGE, 0x55, PAGE)
        time.sleep(0.05)
        for page in range(self.pages):
            if page in set(order[:200]):
                self.seen["bad"] += ctypes.string_at(BASE + page * PAGE, PAGE) != b"\x55" * PAGE
        for page in set(range(self.pages)) - set(order):
            self.check(page)

    def fork(self) -> None:
        """Has children, and they have some, which all look at everything; some end at once."""
        for number in range(6):
            child = os.fork()
            if child == 0:
                if number % 3 == 2:
                    os._exit(0)
                if number % 2:
                    other = os.fork()
                    if other == 0:
                        self._leave()
                    self._reap(other)
                self._leave()
            if number % 2:
                for page in self.random.sample(range(self.pages), 50):
                    self.check(page)
            self._reap(child)
        self.check_all()

    def _leave(self) -> NoReturn:
        self.random = random.Random(os.getpid())
        self.check_all()
        os._exit(1 if self.seen["bad"] else 0)

    def _reap(self, child: int) -> None:
        self.seen["bad"] += os.waitpid(child, 0)[1] != 0

    def move(self) -> None:
        """Moves parts of it away, unmaps what lies beside them, and moves some again."""
        size = self.pages // 16
        away = self.random.sample(range(16), 8)
        for part in away:
            start = part * size * PAGE
            moved = _libc.mremap(BASE + start, size * PAGE, size * PAGE, _MAYMOVE_FIXED, AWAY + start)
            assert moved == AWAY + start, os.strerror(ctypes.get_errno())
            if part == away[4]:  # and back again
                back = _libc.mremap(AWAY + start, size * PAGE, size * PAGE, _MAYMOVE_FIXED, BASE + start)
                assert back == BASE + start, os.strerror(ctypes.get_errno())
        for page in range(16 * size):
            part = page // size
            self.check(page, AWAY if part in away and part != away[4] else BASE)

    def unmap(self) -> None:
        """Unmaps parts of it."""
        gone = set()
        for _ in range(40):
            page = self.random.randrange(self.pages - 20)
            pages = self.random.randrange(1, 20)
            assert _libc.munmap(BASE + page * PAGE, pages * PAGE) == 0
            gone |= set(range(page, page + pages))
        for page in set(range(self.pages)) - gone:
            self.check(page)

    def drop(self) -> None:
        """Gives parts of it back, which are zeros then, also when that is what was copied last."""
        gone = set()
        for _ in range(60):
            page = self.random.randrange(self.pages - 20)
            pages = self.random.randrange(1, 20)
            assert _libc.madvise(BASE + page * PAGE, pages * PAGE, mmap.MADV_DONTNEED) == 0
            gone |= set(range(page, page + pages))
            self.check(page, zero=True)
        order = list(range(self.pages))
        self.random.shuffle(order)
        for page in order:
            self.check(page, zero=page in gone)

    def protect(self) -> None:
        """Splits its area: a copy may then no longer go over the edge."""
        _libc.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for page in range(0, self.pages - 3, 11):
            assert _libc.mprotect(BASE + page * PAGE, 3 * PAGE, 1) == 0
        self.check_all()

    def leave(self) -> None:
        """Ends while most is still to come."""
        for page in range(10):
            self.check(page)
        os._exit(0)


def main(words: list[str]) -> None:
    """Be such a process."""
    path, life, pages, seed = words[0], words[1], int(words[2]), int(words[3])
    sys.stdin.readline()
    flags = PRIVATE | ANONYMOUS | _FIXED
    assert _libc.mmap(BASE, pages * PAGE, 3, flags, -1, 0) == BASE, os.strerror(ctypes.get_errno())
    descriptor = watch(BASE, pages * PAGE)
    pager = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    pager.connect(path)
    pager.sendall(struct.pack("=i", -1))  # a zombie of this tree, which has no memory
    pager.sendall(struct.pack("=i", os.getpid()))
    socket.send_fds(pager, [b"\0"], [descriptor])
    os.close(descriptor)
    living = Life(pages, seed)
    living.check(3)
    pager.sendall(struct.pack("=I", 0x52535446))
    pager.close()
    print("greeted", flush=True)
    sys.stdin.readline()
    getattr(living, life)()
    print(json.dumps(living.seen), flush=True)
    sys.stdin.readline()
