"""Pagemaps: read as they were written, cut off at every byte, and full of nonsense; what becomes lazy."""

from __future__ import annotations

import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from agent import pagemap
from agent.images import ImageError
from agent.pagemap import IN_PARENT, LAZY, PAGE, PRESENT, TooTorn
from tests import fake_images
from tests.fake_criu import varint
from tests.fake_images import ANONYMOUS, HUGE, LOCKED, ORDINARY, PRIVATE, VDSO

BASE = 0x7F0000000000

files = settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    (tmp_path / "2").mkdir()
    return tmp_path / "2" / "pagemap-10.img"


def read(path: Path, data: bytes) -> list[tuple[int, int, int]]:
    """(start, pages, flags) of each run in such an image."""
    path.write_bytes(data)
    return [(start, (end - start) // PAGE, flags) for start, end, flags in pagemap.read(path)]


def refused(path: Path, data: bytes) -> str:
    """What is said of such an image."""
    path.write_bytes(data)
    with pytest.raises(ImageError) as caught:
        pagemap.read(path)
    said = str(caught.value)
    assert said.startswith("2/pagemap-10.img")
    assert str(path.parent) not in said
    return said


@st.composite
def runs(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """What may stand in a pagemap."""
    found, position = [], draw(st.integers(0, 1 << 35))
    for gap, pages, flags in draw(
        st.lists(st.tuples(st.integers(0, 1 << 34), st.integers(1, 1 << 34), st.integers(0, 7)), max_size=12)
    ):
        found.append(((position + gap) * PAGE, pages, flags))
        position += gap + pages
    return found


def joined(given: list[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """The same, what continues a run made one with it."""
    found: list[tuple[int, int, int]] = []
    for start, pages, flags in given:
        if found and found[-1][0] + found[-1][1] * PAGE == start and found[-1][2] == flags:
            start, before, _ = found.pop()
            pages += before
        found.append((start, pages, flags))
    return found


@files
@given(runs())
@example([(BASE, 1 << 33, PRESENT)])
@example([(BASE, 256, PRESENT), (BASE + 256 * PAGE, 256, PRESENT), (BASE + 512 * PAGE, 1, IN_PARENT)])
def test_runs_are_read_as_they_were_written(path: Path, given: list[tuple[int, int, int]]) -> None:
    """But for those that criu parts where its pipe was full."""
    runs = joined(given)
    assert read(path, fake_images.pagemap(given, 7)) == runs
    content = pagemap.read(path)
    assert (content.pages_id, len(content)) == (7, len(runs))
    pagemap.write(path, content)
    assert read(path, path.read_bytes()) == runs
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(("parent", "flags"), [(0, PRESENT), (1, IN_PARENT)])
def test_entries_without_flags_are_older_ones(path: Path, parent: int, flags: int) -> None:
    body = varint(1, BASE) + varint(2, 3) + varint(3, parent)
    assert read(path, fake_images.image(fake_images.PAGEMAP, varint(1, 1), body)) == [(BASE, 3, flags)]


def test_what_we_write_older_criu_reads_too(path: Path) -> None:
    """The 64-bit number of pages is not known before criu 4: it is left out where the older field does."""
    content = pagemap.Map(1)
    content.append(BASE, BASE + 3 * PAGE, PRESENT)
    pagemap.write(path, content)
    body = varint(1, BASE) + varint(2, 3) + varint(4, PRESENT)
    assert path.read_bytes() == fake_images.image(fake_images.PAGEMAP, varint(1, 1), body)


def test_every_truncation_is_an_image_error_or_fewer_runs(path: Path) -> None:
    """Where an entry ends the file may end: that such a map is short shows against its pages (test_pageindex)."""
    given = [(BASE, 1, PRESENT), (BASE + PAGE, 300, IN_PARENT), (BASE + (1 << 30), 1 << 33, PRESENT | LAZY)]
    data = fake_images.pagemap(given)
    whole = [data.index(fake_images.entry(fake_images.run(*run))) for run in given] + [len(data)]
    for length in range(len(data)):
        if length in whole:
            assert read(path, data[:length]) == given[: whole.index(length)]
        else:
            assert "truncated" in refused(path, data[:length])


def test_no_file_is_an_image_error(path: Path) -> None:
    with pytest.raises(ImageError, match=r"^2/pagemap-10\.img is missing$"):
        pagemap.read(path)


ABSURD = {
    "unsorted": [(BASE + 8 * PAGE, 1, PRESENT), (BASE, 1, PRESENT)],
    "overlapping": [(BASE, 3, PRESENT), (BASE + 2 * PAGE, 3, PRESENT)],
    "twice": [(BASE, 1, PRESENT), (BASE, 1, PRESENT)],
    "no pages": [(BASE, 0, PRESENT)],
    "beyond user space": [(1 << 57, 1, PRESENT)],
    "up to beyond user space": [(BASE, 1 << 57, PRESENT)],
    "huge": [(BASE, (1 << 64) - 1, PRESENT)],
    "negative": [((1 << 64) - PAGE, 1, PRESENT)],
    "unaligned": [(BASE + 1, 1, PRESENT)],
}


@pytest.mark.parametrize("given", ABSURD.values(), ids=ABSURD.keys())
def test_runs_that_cannot_be_there(path: Path, given: list[tuple[int, int, int]]) -> None:
    assert "which cannot be there" in refused(path, fake_images.pagemap(given))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (varint(1, BASE) + varint(2, 1) + varint(4, 8), "flags 0x8"),
        (varint(1, BASE) + varint(2, 1) + varint(9, 1), "not known"),
        (varint(1, BASE) + b"\x12\x01\x01", "not known"),
        (varint(1, BASE) + b"\x10" + b"\x80" * 40 + b"\x01", "broken entry"),
        (varint(1, BASE) + b"\x10", "broken entry"),
        (b"", "a run of 0 pages"),
    ],
    ids=["flags", "field", "wire type", "endless number", "cut number", "empty"],
)
def test_entries_that_criu_does_not_write(path: Path, body: bytes, said: str) -> None:
    assert said in refused(path, fake_images.image(fake_images.PAGEMAP, varint(1, 1), body))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (fake_images.image(fake_images.MM, varint(1, 1)), "no image of its kind"),
        (b"\0" * 64, "no image of its kind"),
        (b"", "truncated"),
        (fake_images.image(fake_images.PAGEMAP, varint(2, 1)), "no head"),
        (fake_images.image(fake_images.PAGEMAP, varint(1, 1 << 32)), "no head"),
        (fake_images.image(fake_images.PAGEMAP, varint(1, 1)) + struct.pack("<I", (1 << 32) - 1), "truncated"),
    ],
    ids=["another image", "zeros", "nothing", "no head", "an absurd head", "an entry of 4 GiB"],
)
def test_files_that_are_no_pagemap(path: Path, data: bytes, said: str) -> None:
    assert said in refused(path, data)


@files
@given(position=st.floats(0, 1, exclude_max=True), value=st.integers(1, 255))
def test_a_damaged_byte_raises_nothing_but_image_error(path: Path, position: float, value: int) -> None:
    data = bytearray(fake_images.pagemap([(BASE, 1, PRESENT), (BASE + PAGE, 300, IN_PARENT)]))
    data[int(position * len(data))] ^= value
    path.write_bytes(data)
    try:
        pagemap.read(path)
    except ImageError as error:
        assert str(error).startswith("2/pagemap-10.img")


@given(st.binary(max_size=200))
@files
def test_garbage_raises_nothing_but_image_error(path: Path, data: bytes) -> None:
    path.write_bytes(fake_images.image(fake_images.PAGEMAP, varint(1, 1)) + data)
    try:
        pagemap.read(path)
    except ImageError:
        pass


def test_a_file_of_absurd_size_is_not_even_read(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 40)
    tracemalloc.start()
    try:
        with pytest.raises(ImageError, match="1099511627776 bytes, more than"):
            pagemap.read(path)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_too_many_runs_are_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pagemap, "MOST_PIECES", 3)
    given = [(BASE + 2 * number * PAGE, 1, PRESENT) for number in range(4)]
    assert read(path, fake_images.pagemap(given[:3])) == given[:3]
    path.write_bytes(fake_images.pagemap(given))
    with pytest.raises(TooTorn, match="over 3 pieces"):
        pagemap.read(path)


def test_a_run_takes_little_memory(path: Path) -> None:
    """Torn memory has millions of them."""
    count = 4_000
    path.write_bytes(fake_images.pagemap((BASE + 2 * number * PAGE, 1, PRESENT) for number in range(count)))
    tracemalloc.start()
    try:
        content = pagemap.read(path)
        assert len(content) == count
        assert tracemalloc.get_traced_memory()[1] < count * 60 + (1 << 16)
    finally:
        tracemalloc.stop()


# --- areas -----------------------------------------------------------------------------------------------------------


def areas(path: Path, data: bytes) -> list[tuple[int, int]]:
    path = path.with_name("mm-10.img")
    path.write_bytes(data)
    return pagemap.lazy_areas(path)


def test_only_private_anonymous_unlocked_memory_is_lazy(path: Path) -> None:
    plain = PRIVATE | ANONYMOUS
    given = [
        (plain, ORDINARY),
        (PRIVATE, ORDINARY),
        (ANONYMOUS | 0x01, ORDINARY),
        (plain | LOCKED, ORDINARY),
        (plain | HUGE, ORDINARY),
        (plain, VDSO),
        (plain, 1 << 2),
        (plain, 1 << 12),
        (plain | 0x0100, ORDINARY),
    ]
    each = [(BASE + number * PAGE, BASE + (number + 1) * PAGE, *one) for number, one in enumerate(given)]
    assert areas(path, fake_images.mm(each)) == [(BASE, BASE + PAGE), (BASE + 8 * PAGE, BASE + 9 * PAGE)]


@pytest.mark.parametrize(
    "given",
    [
        [(BASE + PAGE, BASE + 2 * PAGE), (BASE, BASE + PAGE)],
        [(BASE, BASE + 2 * PAGE), (BASE + PAGE, BASE + 3 * PAGE)],
        [(BASE, BASE)],
        [(BASE + PAGE, BASE)],
        [(BASE + 1, BASE + PAGE)],
        [(BASE, BASE + PAGE + 1)],
    ],
    ids=["unsorted", "overlapping", "empty", "backwards", "unaligned", "unaligned end"],
)
def test_areas_that_cannot_be_there(path: Path, given: list[tuple[int, int]]) -> None:
    with pytest.raises(ImageError, match=r"^2/mm-10\.img has an area .* cannot be there$"):
        areas(path, fake_images.mm((*each, PRIVATE | ANONYMOUS, ORDINARY) for each in given))


def test_forbidden_pages_inside_an_area_are_no_area(path: Path) -> None:
    """What criu 4.2 lists for a thread's stack of glibc 2.42."""
    whole, guard = (BASE, BASE + 8 * PAGE, PRIVATE | ANONYMOUS, ORDINARY), (BASE, BASE + PAGE, 0, 1 << 16)
    assert areas(path, fake_images.mm([whole, guard])) == [(BASE, BASE + 8 * PAGE)]


def test_an_area_without_addresses_cannot_be_there(path: Path) -> None:
    data = fake_images.image(fake_images.MM, b"\x72\x00")
    with pytest.raises(ImageError, match="cannot be there"):
        areas(path, data)


def test_every_truncation_of_an_mm_image_is_an_image_error(path: Path) -> None:
    data = fake_images.mm([(BASE, BASE + PAGE, PRIVATE | ANONYMOUS, ORDINARY)])
    for length in range(len(data)):
        with pytest.raises(ImageError, match=r"^2/mm-10\.img"):
            areas(path, data[:length])
    with pytest.raises(ImageError, match="does not hold one task"):
        areas(path, data + data[8:])


def test_a_missing_mm_image(path: Path) -> None:
    with pytest.raises(ImageError, match=r"^2/mm-10\.img is missing$"):
        pagemap.lazy_areas(path.with_name("mm-10.img"))


# --- marking ---------------------------------------------------------------------------------------------------------


@st.composite
def marking(draw: st.DrawFn) -> tuple[list[tuple[int, int, int]], list[tuple[int, int]]]:
    """Runs and areas in the same 40 pages."""
    edges = sorted(draw(st.sets(st.integers(0, 40), max_size=12)))
    taken = [(BASE + low * PAGE, high - low, draw(st.integers(0, 7))) for low, high in zip(edges, edges[1:])]
    edges = sorted(draw(st.sets(st.integers(0, 40), max_size=8)))
    wanted = [(BASE + low * PAGE, BASE + high * PAGE) for low, high in zip(edges, edges[1:])]
    return [run for run in taken if draw(st.booleans())], [area for area in wanted if draw(st.booleans())]


@given(marking())
def test_lazy_is_what_lies_in_an_earlier_round_and_in_an_area(
    case: tuple[list[tuple[int, int, int]], list[tuple[int, int]]],
) -> None:
    taken, wanted = case
    given = pagemap.Map(3)
    expected: dict[int, int] = {}
    for start, pages, flags in taken:
        given.append(start, start + pages * PAGE, flags)
        for page in range(start, start + pages * PAGE, PAGE):
            earlier = flags & IN_PARENT and not flags & PRESENT
            inside = any(low <= page < high for low, high in wanted)
            expected[page] = flags | LAZY if earlier and inside else flags
    result = pagemap.marked(given, wanted)
    behind, found = 0, {}
    for start, end, flags in result:
        assert behind <= start < end
        behind = end
        found.update(dict.fromkeys(range(start, end, PAGE), flags))
    assert found == expected
    assert result.pages_id == 3
    # once more changes nothing: a pager that replaces another may repeat it
    assert list(pagemap.marked(result, wanted)) == list(result)
