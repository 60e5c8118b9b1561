"""userfaultfd's messages and errors, and with a real one: what is copied is there, what is not there waits."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent import userfault
from agent.userfault import Busy, Gone, Message, Present, Unmapped
from tests import watched

PAGE = 4096


def message(event: int, one: int, two: int = 0, three: int = 0) -> bytes:
    return struct.pack("=B7xQQQ", event, one, two, three)


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (message(0x12, 1, 0x7F0000000123, 9), Message(userfault.FAULT, address=0x7F0000000123)),
        (message(0x13, 17), Message(userfault.FORK, descriptor=17)),
        (message(0x14, 0x1000, 0x9000, 0x2000), Message(userfault.REMAP, address=0x1000, to=0x9000, length=0x2000)),
        (message(0x15, 0x1000, 0x3000), Message(userfault.REMOVE, address=0x1000, end=0x3000)),
        (message(0x16, 0x1000, 0x3000), Message(userfault.UNMAP, address=0x1000, end=0x3000)),
    ],
    ids=["fault", "fork", "remap", "remove", "unmap"],
)
def test_messages(data: bytes, expected: Message) -> None:
    assert userfault.parse(data) == expected


@given(st.integers(0, 255).filter(lambda event: event not in range(0x12, 0x17)))
def test_an_event_that_was_never_asked_for(event: int) -> None:
    with pytest.raises(ValueError, match=f"event {event:#x}"):
        userfault.parse(message(event, 0))


@pytest.mark.parametrize(
    ("number", "kind"),
    [
        (errno.EAGAIN, Busy),
        (errno.EEXIST, Present),
        (errno.ENOENT, Unmapped),
        (errno.ESRCH, Gone),
        (errno.ENOSPC, Gone),
        (errno.ENOMEM, OSError),
        (errno.EFAULT, OSError),
    ],
)
def test_errors_by_meaning(number: int, kind: type[Exception]) -> None:
    failed = userfault._failed(number, -number)
    assert type(failed) is kind
    assert getattr(failed, "done", 0) == 0
    if kind is OSError:
        assert isinstance(failed, OSError)
        assert failed.errno == number


def test_a_kernel_that_refuses_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    class Refuses:
        def syscall(self, *_: object) -> int:
            ctypes.set_errno(errno.EPERM)
            return -1

    monkeypatch.setattr(userfault, "_libc", Refuses())
    assert userfault.available() == "userfaultfd: Operation not permitted"


def test_a_machine_that_is_not_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "pdp11")
    assert userfault.available() == "the number of userfaultfd(2) on pdp11 is not known"


@watched.needs_userfaultfd
def test_a_kernel_without_a_feature(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(userfault, "_FEATURES", userfault._FEATURES | 1 << 62)
    said = userfault.available()
    assert said in ("userfaultfd lacks features 0x4000000000000000", "userfaultfd: Invalid argument")


# --- with the kernel -------------------------------------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[tuple[int, mmap.mmap, int]]:
    """A userfaultfd of our own, and eight pages that it watches."""
    area = mmap.mmap(-1, 8 * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    address = ctypes.addressof(ctypes.c_char.from_buffer(area))
    descriptor = watched.watch(address, 8 * PAGE)
    yield descriptor, area, address
    os.close(descriptor)


def source(byte: bytes, pages: int = 1) -> tuple[object, int]:
    area = mmap.mmap(-1, pages * PAGE)
    area[:] = byte * (pages * PAGE)
    return area, ctypes.addressof(ctypes.c_char.from_buffer(area))


@watched.needs_userfaultfd
def test_a_copy_is_there(memory: tuple[int, mmap.mmap, int]) -> None:
    descriptor, area, address = memory
    assert userfault.is_userfaultfd(descriptor)
    keep, here = source(b"a", 2)
    userfault.copy(descriptor, address + PAGE, here, 2 * PAGE)
    userfault.zero(descriptor, address, PAGE)
    assert area[: 3 * PAGE] == bytes(PAGE) + b"a" * 2 * PAGE
    del keep


@watched.needs_userfaultfd
def test_a_page_is_never_copied_twice(memory: tuple[int, mmap.mmap, int]) -> None:
    descriptor, area, address = memory
    keep, here = source(b"a")
    userfault.copy(descriptor, address + 2 * PAGE, here, PAGE)
    other, there = source(b"b", 4)
    with pytest.raises((Present, Busy)) as caught:
        userfault.copy(descriptor, address, there, 4 * PAGE)
    assert isinstance(caught.value, (Present, Busy))
    assert caught.value.done == 2 * PAGE
    with pytest.raises(Present) as again:
        userfault.copy(descriptor, address + 2 * PAGE, there, PAGE)
    assert again.value.done == 0
    assert area[: 3 * PAGE] == b"b" * 2 * PAGE + b"a" * PAGE
    with pytest.raises(Present):
        userfault.zero(descriptor, address, PAGE)
    del keep, other


@watched.needs_userfaultfd
def test_what_is_not_mapped_is_not_copied(memory: tuple[int, mmap.mmap, int]) -> None:
    descriptor, _, address = memory
    keep, here = source(b"a", 4)
    with pytest.raises(Unmapped):
        userfault.copy(descriptor, address + 7 * PAGE, here, 4 * PAGE)
    del keep


@watched.needs_userfaultfd
def test_waking_is_harmless(memory: tuple[int, mmap.mmap, int]) -> None:
    descriptor, _, address = memory
    userfault.wake(descriptor, address, PAGE)
    userfault.wake_all(descriptor)
    userfault.wake(descriptor, 1, 1)


def test_other_descriptors_are_no_userfaultfd() -> None:
    reader, writer = os.pipe()
    assert not userfault.is_userfaultfd(reader)
    os.close(reader)
    os.close(writer)
    assert not userfault.is_userfaultfd(reader)
