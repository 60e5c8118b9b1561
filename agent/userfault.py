"""userfaultfd(2) as the pager needs it: its messages and ioctls. Knows nothing of images or processes' trees.

Structures and numbers are those of linux/userfaultfd.h. ioctl(2) is called by ctypes: what the kernel has written into
the structure counts after an error, too, and fcntl.ioctl promises it after none.
"""

from __future__ import annotations

import ctypes
import dataclasses
import errno
import os
import platform
import struct

API = 0xAA
MESSAGE = 32
"""Bytes of one struct uffd_msg."""

FAULT, FORK, REMAP, REMOVE, UNMAP = 0x12, 0x13, 0x14, 0x15, 0x16
_FEATURES = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 6  # EVENT_FORK, EVENT_REMAP, EVENT_REMOVE, EVENT_UNMAP
"""What CRIU needs of the kernel for lazy pages (criu/uffd.c, NEED_UFFD_API_FEATURES)."""


def _ioc(direction: int, number: int, size: int) -> int:
    return direction << 30 | size << 16 | API << 8 | number


_IO_API = _ioc(3, 0x3F, 24)
_IO_WAKE = _ioc(2, 0x02, 16)
_IO_COPY = _ioc(3, 0x03, 40)
_IO_ZEROPAGE = _ioc(3, 0x04, 32)
_SYSCALL = {"x86_64": 323, "aarch64": 282, "ppc64le": 364, "s390x": 355}


_libc = ctypes.CDLL(None, use_errno=True)
_Five = ctypes.c_int64 * 5
"""Room for every argument: all of their members are 64 bits wide."""


_LOWEST = 1 << 16
"""vm.mmap_min_addr, at most: nothing is mapped below."""


class Gone(Exception):
    """The address space has ended."""


class Busy(Exception):
    """The address space is changing: its events must be read first. `done` bytes were copied before."""

    def __init__(self, done: int) -> None:
        super().__init__("the address space is changing")
        self.done = done


class Present(Exception):
    """A page is there already. `done` bytes were copied before it."""

    def __init__(self, done: int) -> None:
        super().__init__("a page is there already")
        self.done = done


class Unmapped(Exception):
    """Nothing is mapped there any more. `done` bytes were copied before it."""

    def __init__(self, done: int) -> None:
        super().__init__("nothing is mapped there")
        self.done = done


@dataclasses.dataclass(frozen=True)
class Message:
    """One struct uffd_msg. Which fields mean something depends on the event."""

    event: int
    address: int = 0  # of a fault; start of what is removed, unmapped or moved
    end: int = 0  # of what is removed or unmapped
    to: int = 0  # where a range has moved
    length: int = 0  # of a range that has moved
    descriptor: int = -1  # of a forked child's address space


def parse(data: bytes) -> Message:
    """A message. Raises ValueError for an event that was never asked for."""
    event = data[0]
    one, two, three = struct.unpack_from("=QQQ", data, 8)
    if event == FAULT:
        return Message(event, address=two)  # flags, address, feature
    if event == FORK:
        return Message(event, descriptor=one & 0xFFFFFFFF)
    if event == REMAP:
        return Message(event, address=one, to=two, length=three)
    if event in (REMOVE, UNMAP):
        return Message(event, address=one, end=two)
    raise ValueError(f"userfaultfd event {event:#x}")


def _failed(number: int, done: int) -> Exception:
    done = max(0, done)
    if number == errno.EAGAIN:
        return Busy(done)
    if number == errno.EEXIST:
        return Present(done)
    if number == errno.ENOENT:
        return Unmapped(done)
    if number in (errno.ESRCH, errno.ENOSPC):
        # ESRCH since 4.11, ENOSPC before it (criu/uffd.c)
        return Gone("the process has ended")
    return OSError(number, os.strerror(number))


def _ioctl(descriptor: int, request: int, argument: ctypes.Array[ctypes.c_int64]) -> int:
    """0, or the error's number."""
    return 0 if _libc.ioctl(descriptor, ctypes.c_ulong(request), argument) == 0 else ctypes.get_errno()


def copy(descriptor: int, to: int, source: int, length: int) -> None:
    """Put `length` bytes at our address `source` at their address `to`, and wake who waits for them.

    Raises Busy, Present, Unmapped (all with what was done before), Gone, or OSError.
    """
    argument = _Five(to, source, length, 0, 0)  # struct uffdio_copy
    number = _ioctl(descriptor, _IO_COPY, argument)
    if number:
        done = argument[4]
        # a short copy is EAGAIN with what was done; a negative count is the error itself
        raise _failed(-done if done < 0 else number, done)


def zero(descriptor: int, address: int, length: int) -> None:
    """Put zeros there: a page that the image never had. Raises as `copy` does."""
    argument = _Five(address, length, 0, 0)  # struct uffdio_zeropage
    number = _ioctl(descriptor, _IO_ZEROPAGE, argument)
    if number:
        done = argument[3]
        raise _failed(-done if done < 0 else number, done)


def wake(descriptor: int, address: int, length: int) -> None:
    """Wake who waits for pages that are there by now. Where range or process are gone, so is who waited."""
    _ioctl(descriptor, _IO_WAKE, _Five(address, length))  # struct uffdio_range


def wake_all(descriptor: int) -> None:
    """Wake whoever waits for any page: who still finds it missing says so again."""
    for bits in (52, 48, 47):  # what an address space can hold; the kernel refuses a range beyond its own
        if _ioctl(descriptor, _IO_WAKE, _Five(_LOWEST, (1 << bits) - (1 << 16) - _LOWEST)) == 0:
            return


def is_userfaultfd(descriptor: int) -> bool:
    """Whether an open descriptor of ours is one."""
    try:
        return os.readlink(f"/proc/self/fd/{descriptor}") == "anon_inode:[userfaultfd]"
    except OSError:
        return False


def available() -> str:
    """Whether this kernel can do what a lazy restore needs: "" when it can, else why not."""
    number = _SYSCALL.get(platform.machine())
    if number is None:
        return f"the number of userfaultfd(2) on {platform.machine()} is not known"
    descriptor = _libc.syscall(number, os.O_CLOEXEC | os.O_NONBLOCK)
    if descriptor < 0:
        return f"userfaultfd: {os.strerror(ctypes.get_errno())}"
    argument = _Five(API)  # struct uffdio_api
    error = _ioctl(descriptor, _IO_API, argument)
    os.close(descriptor)
    if error:
        return f"userfaultfd: {os.strerror(error)}"
    missing = _FEATURES & ~argument[1]
    return f"userfaultfd lacks features {missing:#x}" if missing else ""
