"""The record that a pager leaves to its successor: nothing that was read is lost, whenever its reader dies."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from agent import record as module
from agent import userfault
from agent.record import COPIED, GONE, MESSAGE, TASK, Record, RecordFull

PAGE = 4096
BASE = 0x7F0000000000


@pytest.fixture
def record() -> Record:
    return Record()


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A descriptor that messages can be read from, as from a userfaultfd, and where to put them."""
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    yield reader, writer
    os.close(reader)
    os.close(writer)


def message(event: int, one: int, two: int = 0, three: int = 0) -> bytes:
    return struct.pack("=B7xQQQ", event, one, two, three)


UNMAP = message(userfault.UNMAP, BASE, BASE + PAGE)
FAULT = message(userfault.FAULT, 0, BASE)


def told(record: Record) -> list[tuple[int, int, int, int, int]]:
    return [(kind, whose, pid, event.address, event.end) for kind, whose, pid, event in record.past]


def test_fields_are_words_in_shared_memory(record: Record) -> None:
    assert (record.used, record.faults, record.complete) == (0, 0, 0)
    assert record.connection == -1
    pid = os.fork()
    if pid == 0:
        record.faults += 3
        record.longest_ns = 1 << 40
        os._exit(0)
    os.waitpid(pid, 0)
    assert (record.faults, record.longest_ns) == (3, 1 << 40)
    with pytest.raises(AttributeError):
        record.nothing  # noqa: B018


def test_a_word_of_criu_is_received_into_the_record(record: Record) -> None:
    record.word[:] = struct.pack("=i", 4711)
    assert record.half_read == 4711


def test_what_happened_is_told_in_its_order(record: Record, pipe: tuple[int, int]) -> None:
    record.add_task(10, 7)
    os.write(pipe[1], UNMAP)
    event = record.read(pipe[0])
    assert event == userfault.Message(userfault.UNMAP, address=BASE, end=BASE + PAGE)
    assert record.add_copied(7, BASE, BASE + PAGE)
    record.add_gone(7)
    assert told(record) == [
        (TASK, 7, 10, 0, 0),
        (MESSAGE, pipe[0], 0, BASE, BASE + PAGE),
        (COPIED, 7, 0, BASE, BASE + PAGE),
        (GONE, 7, 0, 0, 0),
    ]
    assert record.tasks == [10]


def test_faults_take_no_room(record: Record, pipe: tuple[int, int]) -> None:
    for _ in range(3):
        os.write(pipe[1], FAULT)
        event = record.read(pipe[0])
        assert event is not None
        assert (event.event, event.address) == (userfault.FAULT, BASE)
    assert record.read(pipe[0]) is None
    assert record.used == 0
    assert told(record) == []


def test_a_message_over_which_its_reader_died_is_kept(record: Record, pipe: tuple[int, int]) -> None:
    """Read into the slot, and not counted: that is where SIGKILL may strike."""
    record.add_task(10, pipe[0])
    os.write(pipe[1], UNMAP)
    record.read(pipe[0])
    record.used -= 1
    assert told(record)[1:] == [(MESSAGE, pipe[0], 0, BASE, BASE + PAGE)]
    record.close_gap()
    assert record.used == 2
    record.close_gap()
    assert record.used == 2
    assert told(record)[1:] == [(MESSAGE, pipe[0], 0, BASE, BASE + PAGE)]


def test_a_fault_over_which_its_reader_died_comes_again(record: Record, pipe: tuple[int, int]) -> None:
    os.write(pipe[1], FAULT)
    record.read(pipe[0])
    record.close_gap()
    assert record.used == 0
    assert told(record) == []


def test_a_reader_that_died_before_it_read_leaves_nothing(record: Record, pipe: tuple[int, int]) -> None:
    os.write(pipe[1], UNMAP)
    record.read(pipe[0])
    record.used -= 1  # a predecessor's slot is used again
    assert record.read(pipe[0]) is None
    record.close_gap()
    assert told(record) == []


def test_a_descriptor_that_is_no_longer_good(record: Record) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    os.close(writer)
    with pytest.raises(OSError):
        record.read(reader)
    assert told(record) == []


def test_what_was_copied_next_to_the_last_takes_no_room(record: Record) -> None:
    for start in (BASE, BASE + PAGE, BASE - PAGE):
        assert record.add_copied(7, start, start + PAGE)
    assert told(record) == [(COPIED, 7, 0, BASE - PAGE, BASE + 2 * PAGE)]
    record.add_copied(8, BASE + 2 * PAGE, BASE + 3 * PAGE)
    assert told(record)[1:] == [(COPIED, 8, 0, BASE + 2 * PAGE, BASE + 3 * PAGE)]


def test_what_was_copied_is_never_joined_across_an_event(record: Record, pipe: tuple[int, int]) -> None:
    """A range may have been copied, removed, and be copied to again."""
    record.add_copied(pipe[0], BASE, BASE + PAGE)
    os.write(pipe[1], UNMAP)
    record.read(pipe[0])
    record.add_copied(pipe[0], BASE + PAGE, BASE + 2 * PAGE)
    assert [(kind, start) for kind, _, _, start, _ in told(record)] == [
        (COPIED, BASE),
        (MESSAGE, BASE),
        (COPIED, BASE + PAGE),
    ]


def test_events_have_the_second_half_to_themselves(monkeypatch: pytest.MonkeyPatch, pipe: tuple[int, int]) -> None:
    monkeypatch.setattr(module, "SLOTS", 8)
    record = Record()
    taken = [record.add_copied(7, BASE + number * 2 * PAGE, BASE + number * 2 * PAGE + PAGE) for number in range(6)]
    assert taken == [True] * 4 + [False] * 2
    for _ in range(4):
        os.write(pipe[1], UNMAP)
        assert record.read(pipe[0]) is not None
    os.write(pipe[1], UNMAP)
    with pytest.raises(RecordFull, match="over 8 events"):
        record.read(pipe[0])
    assert len(told(record)) == 8
    record.close_gap()
    assert record.used == 8


copies = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 20), st.integers(1, 4)), max_size=30)


@settings(deadline=None)
@given(copies)
def test_copied_ranges_add_up(given: list[tuple[int, int, int]]) -> None:
    """However they are joined, what the record tells is what was copied."""
    record = Record()
    model: set[tuple[int, int]] = set()
    for whose, page, pages in given:
        assert record.add_copied(whose, page * PAGE, (page + pages) * PAGE)
        model |= {(whose, number) for number in range(page, page + pages)}
    found = {
        (whose, number) for _, whose, _, start, end in told(record) for number in range(start // PAGE, end // PAGE)
    }
    assert found == model
