"""Memory of all kinds, and threads."""

from __future__ import annotations

import ctypes as _ctypes
import mmap as _mmap
import os as _os
import queue as _queue
import struct as _struct
import threading as _threading
from collections.abc import Iterator as _Iterator

_Found = _Iterator[dict[str, tuple[object, object]]]
_libc = _ctypes.CDLL(None, use_errno=True)
_PAGE = 4096


def _sure(result: int) -> int:
    if result < 0:
        raise OSError(_ctypes.get_errno(), _os.strerror(_ctypes.get_errno()))
    return result


def shared_with_a_child() -> _Found:
    """Anonymous shared memory: what the child writes is seen."""
    shared = _mmap.mmap(-1, 1 << 20)
    ask, answer = _os.pipe(), _os.pipe()
    child = _os.fork()
    if child == 0:
        _os.close(ask[1])
        _os.close(answer[0])
        while word := _os.read(ask[0], 4):
            shared[_PAGE * 7 : _PAGE * 7 + 4] = word
            _os.write(answer[1], b".")
        _os._exit(0)
    _os.close(ask[0])
    _os.close(answer[1])
    count = 0
    while True:
        count += 1
        _os.write(ask[1], _struct.pack("<I", count))
        _os.read(answer[0], 1)
        yield {"written by the child": (shared[_PAGE * 7 : _PAGE * 7 + 4], _struct.pack("<I", count))}


def memory_file() -> _Found:
    """memfd_create(2), sealed; and a file of POSIX shared memory that is deleted."""
    file = _os.memfd_create("subject", _os.MFD_ALLOW_SEALING)
    _os.write(file, b"sealed" * 1000)
    _sure(_libc.fcntl(file, 1033, 0x0002 | 0x0004))
    posix = _os.open("/dev/shm/subject", _os.O_RDWR | _os.O_CREAT)
    _os.ftruncate(posix, _PAGE)
    mapped = _mmap.mmap(posix, _PAGE)
    _os.unlink("/dev/shm/subject")
    mapped[:5] = b"posix"
    while True:
        yield {
            "content": (_os.pread(file, 9999, 0), b"sealed" * 1000),
            "seals": (_libc.fcntl(file, 1034), 0x0002 | 0x0004),
            "posix": (mapped[:5], b"posix"),
        }


def advised_memory() -> _Found:
    """Locked, not to be dumped, wiped on fork, protected: as mappings show it."""
    area = _mmap.mmap(-1, 64 * _PAGE, flags=_mmap.MAP_PRIVATE | _mmap.MAP_ANONYMOUS)
    area[:] = b"a" * len(area)
    start = _ctypes.addressof(_ctypes.c_char.from_buffer(area))
    wanted = {0: "dd", 8: "dc", 16: "wf", 24: "mg", 32: "lo", 40: ""}
    for page, advice in ((0, 16), (8, 10), (16, 18), (24, 12)):
        _sure(_libc.madvise(_ctypes.c_void_p(start + page * _PAGE), 8 * _PAGE, advice))
    _sure(_libc.mlock(_ctypes.c_void_p(start + 32 * _PAGE), 8 * _PAGE))
    _sure(_libc.mprotect(_ctypes.c_void_p(start + 40 * _PAGE), 8 * _PAGE, 1))
    while True:
        flags = _flags_of(start, wanted)
        yield {
            **{f"page {page}": (not flag or flag in flags[page], True) for page, flag in wanted.items()},
            "writable": ("wr" in flags[40], False),
            "content": (area[:] == b"a" * len(area), True),
        }


def _flags_of(start: int, pages: dict[int, str]) -> dict[int, list[str]]:
    """VmFlags of /proc/self/smaps."""
    found: dict[int, list[str]] = {}
    here: list[int] = []
    with open("/proc/self/smaps") as file:
        for line in file:
            word = line.split()[0]
            if "-" in word:
                low, high = (int(part, 16) for part in word.split("-"))
                here = [page for page in pages if low <= start + page * _PAGE < high]
            elif word == "VmFlags:":
                found.update({page: line.split()[1:] for page in here})
    return found


def copied_on_write() -> _Found:
    """Memory shared with a child since the fork, changed on one side."""
    area = _mmap.mmap(-1, 256 * _PAGE, flags=_mmap.MAP_PRIVATE | _mmap.MAP_ANONYMOUS)
    area[:] = b"p" * len(area)
    ask, answer = _os.pipe(), _os.pipe()
    if _os.fork() == 0:
        _os.close(ask[1])
        _os.close(answer[0])
        area[:_PAGE] = b"c" * _PAGE
        while _os.read(ask[0], 1):
            _os.write(answer[1], b"." if area[:] == b"c" * _PAGE + b"p" * (255 * _PAGE) else b"!")
        _os._exit(0)
    _os.close(ask[0])
    _os.close(answer[1])
    while True:
        _os.write(ask[1], b"?")
        yield {"child": (_os.read(answer[0], 1), b"."), "own": (area[:] == b"p" * len(area), True)}


def system_v_memory() -> _Found:
    """A segment, attached; it is gone with its last process."""
    _libc.shmat.restype = _ctypes.c_void_p
    segment = _sure(_libc.shmget(0, _PAGE, 0o1600))
    address = _libc.shmat(segment, 0, 0)
    _libc.shmctl(segment, 0, 0)
    _ctypes.memmove(address, b"segment", 7)
    while True:
        yield {"segment": (_ctypes.string_at(address, 7), b"segment")}


def system_v_others() -> _Found:
    """Semaphores and a message queue; they stay when all processes have gone, so each run takes the same ones."""
    semaphores = _sure(_libc.semget(0x5EAF, 3, 0o1600))
    _sure(_libc.semctl(semaphores, 2, 16, 5))
    queue = _sure(_libc.msgget(0x5EAF, 0o1600))
    _sure(_libc.msgctl(queue, 0, 0))
    queue = _sure(_libc.msgget(0x5EAF, 0o1600))
    _sure(_libc.msgsnd(queue, _struct.pack("<q", 1) + b"message", 7, 0))
    buffer = _ctypes.create_string_buffer(64)
    while True:
        size = _sure(_libc.msgrcv(queue, buffer, 56, 1, 0))
        yield {
            "semaphore": (_libc.semctl(semaphores, 2, 12), 5),
            "message": (buffer.raw[8 : 8 + size], b"message"),
            "same numbers": (
                (_libc.semget(0x5EAF, 0, 0), _libc.msgget(0x5EAF, 0)), (semaphores, queue),
            ),
        }  # fmt: skip
        _sure(_libc.msgsnd(queue, _struct.pack("<q", 1) + b"message", 7, 0))


def two_hundred_threads() -> _Found:
    """Each waits for a number, and answers with the sum of what it was ever given."""
    asking: list[_queue.SimpleQueue[int]] = [_queue.SimpleQueue() for _ in range(200)]
    answers: _queue.SimpleQueue[tuple[int, int]] = _queue.SimpleQueue()

    def work(number: int) -> None:
        total = 0
        while True:
            total += asking[number].get()
            answers.put((number, total))

    for number in range(200):
        _threading.Thread(target=work, args=[number], daemon=True).start()
    count = 0
    while True:
        count += 1
        for number in range(200):
            asking[number].put(number)
        got = sorted(answers.get() for _ in range(200))
        yield {
            "answers": (got, [(number, number * count) for number in range(200)]),
            "threads": (len(_os.listdir("/proc/self/task")) >= 201, True),
        }
