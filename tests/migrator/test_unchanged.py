"""Pages that come again as they were: the target ends up with the same memory, by fewer bytes."""

from __future__ import annotations

import struct
from collections.abc import Sequence

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from migrator import unchanged
from migrator.unchanged import Sifted, Unchanged
from tests.migrator.test_channel import Scripted

PAGE = 4096
OPEN2, PARENT, ADD_F, GET, CLOSE = 4, 5, 6, 7, 0x1024
IN_PARENT, LAZY, PRESENT = 1, 2, 4
SHORT, LONG = struct.Struct("=IIQQ"), struct.Struct("=I4xQQQ")
TASKS = (10, 11)
MOST = 8
"""Pages of a task."""

Pages = dict[int, int]
"""Number of a page -> what it holds, a number too."""
Round = dict[int, tuple[Pages, set[int]]]
"""Task -> its memory, and which pages of it are dirty."""


def content(number: int) -> bytes:
    return number.to_bytes(8, "little") * (PAGE // 8)


def whose(task: int, kind: int = 1) -> int:
    return task << 8 | kind


def run(form: struct.Struct, task: int, first: int, held: Sequence[int], flags: int, kind: int = 1) -> bytes:
    """A run of pages, as criu sends it."""
    head = form.pack(flags << 16 | ADD_F, len(held), first * PAGE, whose(task, kind))
    return head + (b"".join(map(content, held)) if flags & PRESENT else b"")


def dumped(form: struct.Struct, one: Round) -> bytes:
    """A round's stream: dirty pages in runs, the clean ones as runs that the round before has."""
    said = b""
    for task, (pages, dirty) in one.items():
        said += form.pack(OPEN2, 0, 0, whose(task))
        numbers = sorted(pages)
        while numbers:
            length = 1
            while length < len(numbers) and (
                numbers[length] == numbers[0] + length and (numbers[length] in dirty) == (numbers[0] in dirty)
            ):
                length += 1
            flags = PRESENT | LAZY if numbers[0] in dirty else IN_PARENT
            said += run(form, task, numbers[0], [pages[number] for number in numbers[:length]], flags)
            del numbers[:length]
    return said + form.pack(CLOSE, 0, 0, 0)


def served(form: struct.Struct, stream: bytes) -> list[dict[int, Pages]]:
    """What a page server has in the end of each round, refusing what criu's would."""
    rounds: list[dict[int, Pages]] = []
    now: dict[int, Pages] = {}
    at = 0
    while at < len(stream):
        word, count, address, owner = form.unpack_from(stream, at)
        at += form.size
        task, command, flags = owner >> 8, word & 0xFFFF, word >> 16
        if command == CLOSE:
            rounds.append(now)
            now = {}
        elif command == OPEN2:
            now[task] = {}
        else:
            assert command == ADD_F
            for number in range(address // PAGE, address // PAGE + count):
                assert number > max(now[task], default=-1), "in ascending order"
                if flags & PRESENT:
                    now[task][number] = int.from_bytes(stream[at : at + 8], "little")
                    assert stream[at : at + PAGE] == content(now[task][number])
                    at += PAGE
                else:
                    assert flags == IN_PARENT
                    now[task][number] = rounds[-1][task][number]  # KeyError: criu would look for it in vain
    assert now == {}
    return rounds


@st.composite
def histories(draw: st.DrawFn) -> list[Round]:
    """Rounds of two tasks: pages are written, mapped and unmapped; more are called dirty than were written."""
    before: dict[int, Pages] = {task: {} for task in TASKS}
    history: list[Round] = []
    for _ in range(draw(st.integers(3, 6))):
        one: Round = {}
        for task in TASKS:
            pages = dict(before[task])
            for number in range(MOST):
                fate = draw(st.sampled_from(["stays", "stays", "stays", "written", "unmapped"]))
                if fate == "written":
                    pages[number] = draw(st.integers(1, 2))
                elif fate == "unmapped":
                    pages.pop(number, None)
            written = {number for number, held in pages.items() if before[task].get(number) != held}
            huge = draw(st.booleans())
            one[task] = (pages, set(pages) if huge and written else written)
            before[task] = pages
        history.append(one)
    return history


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(histories(), st.sampled_from([SHORT, LONG]), st.lists(st.integers(1, 12 * PAGE), min_size=1, max_size=4))
def test_the_target_has_the_same_memory_after_every_round(
    history: list[Round], form: struct.Struct, pieces: list[int]
) -> None:
    stream = b"".join(dumped(form, one) for one in history)
    sift, passed, at, turn = Unchanged(PAGE), b"", 0, 0
    while at < len(stream):
        size = pieces[turn % len(pieces)]
        passed += sift.feed(stream[at : at + size])
        at, turn = at + size, turn + 1
    passed += sift.rest()
    assert served(form, passed) == [{task: pages for task, (pages, _) in one.items()} for one in history]
    assert len(passed) <= len(stream) + form.size * sum(len(dirty) for one in history for _, dirty in one.values())


def through(sift: Unchanged, form: struct.Struct, pages: Pages, dirty: set[int]) -> tuple[bytes, int]:
    """What is made of a round of one task, and how many pages of it travel."""
    out = sift.feed(dumped(form, {10: (pages, dirty)}))
    return out, len(out) // PAGE


@pytest.mark.parametrize("form", [SHORT, LONG], ids=["before 4.2", "since 4.2"])
def test_a_huge_page_of_which_little_was_written(form: struct.Struct) -> None:
    sift = Unchanged(PAGE)
    pages = dict.fromkeys(range(64), 1) | {number: number for number in range(100, 164)}
    hot = set(range(100, 164))
    assert through(sift, form, pages, set(pages)) == (dumped(form, {10: (pages, set(pages))}), 128)
    pages[100] = 7
    out, travelled = through(sift, form, pages, hot)
    assert (out, travelled) == (dumped(form, {10: (pages, hot)}), 64), "the first time that they are dirty again"
    pages[130] = 8
    out, travelled = through(sift, form, pages, hot)
    assert travelled == 1
    assert out == dumped(form, {10: (pages, {130})}), "as if the kernel noted single pages"
    out, travelled = through(sift, form, pages, hot)
    assert travelled == 0


def test_what_was_unmapped_in_the_round_before_is_sent() -> None:
    sift = Unchanged(PAGE)
    both = {1: 5, 2: 6}
    for pages, dirty, travels in (
        (both, {1, 2}, 2),
        (both, {1, 2}, 2),
        (both, {1, 2}, 0),
        ({1: 5}, {1}, 0),
        (both, {1, 2}, 1),  # the second is back, just as it was
        (both, {1, 2}, 0),
    ):
        assert through(sift, SHORT, pages, dirty)[1] == travels


def test_shared_memory_is_not_looked_at() -> None:
    sift = Unchanged(PAGE)
    stream = SHORT.pack(OPEN2, 0, 0, whose(3, 2)) + run(SHORT, 3, 0, [1, 2], PRESENT, 2) + SHORT.pack(CLOSE, 0, 0, 0)
    assert [sift.feed(stream) for _ in range(4)] == [stream] * 4


def test_where_nothing_comes_again_unchanged_nobody_looks_any_more() -> None:
    sift = Unchanged(PAGE)
    for held in range(1, 5):
        assert through(sift, SHORT, dict.fromkeys(range(20), held), set(range(20)))[1] == 20
    assert through(sift, SHORT, dict.fromkeys(range(20), 4), set(range(20)))[1] == 20, "it would have been found"


def test_no_more_is_remembered_than_there_is_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unchanged, "MOST_PAGES", 8)
    sift = Unchanged(PAGE)
    pages = dict.fromkeys(range(20), 1)
    assert [through(sift, SHORT, pages, set(pages))[1] for _ in range(4)] == [20, 20, 12, 12]


@pytest.mark.parametrize(
    "strange",
    [
        SHORT.pack(GET, 1, PAGE, whose(10)),
        SHORT.pack(OPEN2, 0, 0, whose(10)) + run(SHORT, 10, 9, [1], PRESENT) + run(SHORT, 10, 3, [1], PRESENT),
        b"PAGE\0\0\0\0",
    ],
    ids=["another command", "out of order", "no page server's"],
)
def test_what_is_not_understood_passes_as_it_is(strange: bytes) -> None:
    known = dumped(SHORT, {10: ({1: 5}, {1})})
    sift = Unchanged(PAGE)
    rounds = [known, known, known[: -SHORT.size] + strange, known, b"anything"]
    assert [sift.feed(each) for each in rounds[:2]] == rounds[:2]
    said = b"".join(sift.feed(each) for each in rounds[2:])
    assert said.endswith(strange[-8:] + known + b"anything")


def test_more_torn_than_there_is_room_for_passes_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(unchanged, "MOST_RANGES", 3)
    sift = Unchanged(PAGE)
    pages = dict.fromkeys(range(0, 20, 2), 1)
    rounds = [dumped(SHORT, {10: (pages, set(pages))}) for _ in range(4)]
    assert [sift.feed(each) for each in rounds] == rounds


async def test_a_channel_that_is_sifted() -> None:
    stream = dumped(SHORT, {10: ({1: 5}, {1})})
    inner = Scripted(stream[:30], stream[30:], stream, stream, stream[:10])
    channel = Sifted(inner)
    got = b""
    while data := await channel.read():
        got += data
    assert served(SHORT, got.removesuffix(stream[:10])) == [{10: {1: 5}}] * 3
    assert got.endswith(stream[:10])
    assert len(got) < 2 * len(stream) + 10 + 4 * SHORT.size
    await channel.write(b"answer")
    await channel.write_eof()
    await channel.close()
    assert inner.written == b"answer<end>"
    assert inner.closed


@pytest.mark.parametrize("form", [SHORT, LONG])
def test_a_run_beyond_all_addresses_is_passed_on_as_it_is(form: struct.Struct) -> None:
    stream = form.pack(OPEN2, 0, 0, whose(10)) + form.pack(PRESENT << 16 | ADD_F, 3, (1 << 64) - PAGE, whose(10))
    sifted = Unchanged(PAGE)
    assert sifted.feed(stream + b"rest") + sifted.rest() == stream + b"rest"
