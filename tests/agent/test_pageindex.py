"""The page index against a naive model: newest round wins, every hole in the chain is found; and limits."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import pageindex, pagemap
from agent.images import ImageError
from agent.pageindex import BrokenChain, Index, Memory
from agent.pagemap import IN_PARENT, LAZY, PAGE, PRESENT, TooTorn
from tests import fake_images
from tests.fake_images import ANONYMOUS, LOCKED, ORDINARY, PRIVATE

BASE = 0x7F0000000000
PAGES = 24
PLAIN = PRIVATE | ANONYMOUS

Model = dict[int, tuple[int, int]]
"""page -> (round, offset)."""
Round = list[tuple[int, int, int]]


@st.composite
def rounds(draw: st.DrawFn) -> list[Round]:
    """Some rounds of one task; the pages that they expect of each other may be there or not."""
    return [
        [
            (BASE + low * PAGE, high - low, flags)
            for low, high in zip(edges, edges[1:])
            if (flags := draw(st.sampled_from((0, IN_PARENT, PRESENT, PRESENT | LAZY, IN_PARENT | LAZY)))) or low % 2
        ]
        for edges in draw(st.lists(st.sets(st.integers(0, PAGES), max_size=10).map(sorted), min_size=1, max_size=5))
    ]


def laid(number: int, older: Model, given: Round) -> Model | int:
    """What the model has after a round, or the page that no round has."""
    newer: Model = {}
    offset = 0
    for start, pages, flags in given:
        for page in range(start, start + pages * PAGE, PAGE):
            if flags & PRESENT:
                newer[page] = (number, offset)
                offset += PAGE
            elif flags & IN_PARENT:
                if page not in older:
                    return page
                newer[page] = older[page]
    return newer


def as_map(given: Round) -> pagemap.Map:
    found = pagemap.Map(1)
    for start, pages, flags in given:
        found.append(start, start + pages * PAGE, flags)
    return found


def bytes_of(given: Round) -> int:
    return sum(pages * PAGE for _, pages, flags in given if flags & PRESENT)


def flat(index: Index) -> Model:
    """Its pages one by one; extents must be ascending, whole, and without overlap."""
    found: Model = {}
    behind = 0
    for start, end, number, offset in index.extents:
        assert behind <= start < end
        behind = end
        for page in range(start, end, PAGE):
            found[page] = (number, offset + page - start)
    return found


@settings(max_examples=300, deadline=None)
@given(rounds())
def test_the_newest_round_wins_and_every_hole_is_found(given: list[Round]) -> None:
    index, model = Index(), dict[int, tuple[int, int]]()
    for number, each in enumerate(given, 1):
        after = laid(number, model, each)
        if isinstance(after, int):
            with pytest.raises(BrokenChain, match=f"^round {number} expects a page at {after:#x} in an earlier round"):
                index.overlaid(number, as_map(each), bytes_of(each))
            assert flat(index) == model, "what was there before is left alone"
            return
        index, model = index.overlaid(number, as_map(each), bytes_of(each)), after
        assert flat(index) == model


@given(rounds(), st.integers(0, PAGES), st.integers(0, PAGES))
def test_a_range_is_cut_out(given: list[Round], low: int, high: int) -> None:
    first = [(start, pages, PRESENT) for start, pages, _ in given[0]]
    index = Index().overlaid(1, as_map(first), bytes_of(first))
    start, end = BASE + low * PAGE, BASE + high * PAGE
    found = {
        page: (number, offset + page - first)
        for first, last, number, offset in index.within(start, end)
        for page in range(first, last, PAGE)
    }
    assert found == {page: place for page, place in flat(index).items() if start <= page < end}


@pytest.mark.parametrize("size", [0, PAGE, 2 * PAGE - 1, 2 * PAGE + 1, 3 * PAGE])
def test_a_pages_image_of_another_size_breaks_the_chain(size: int) -> None:
    with pytest.raises(BrokenChain, match=f"round 2 holds {size} bytes of pages, its map says 8192"):
        Index().overlaid(2, as_map([(BASE, 2, PRESENT)]), size)


def test_neighbours_are_made_one() -> None:
    """CRIU cuts runs where its buffers end: an index of 1 MiB pieces would be no index."""
    given = [(BASE + number * PAGE, 1, PRESENT) for number in range(100)]
    index = Index().overlaid(1, as_map(given), 100 * PAGE)
    assert list(index.extents) == [(BASE, BASE + 100 * PAGE, 1, 0)]
    later = index.overlaid(2, as_map([(start, 1, IN_PARENT) for start, _, _ in given]), 0)
    assert list(later.extents) == list(index.extents)


# --- a tree's rounds on disk -----------------------------------------------------------------------------------------


def test_rounds_of_two_tasks(tmp_path: Path) -> None:
    areas = {10: [(BASE, BASE + 8 * PAGE, PLAIN, ORDINARY)], 11: [(BASE, BASE + 8 * PAGE, PLAIN, ORDINARY)]}
    fake_images.write_round(tmp_path, 1, {10: [(BASE, 4, PRESENT)], 11: [(BASE, 2, PRESENT)]})
    second = {10: [(BASE, 1, IN_PARENT), (BASE + PAGE, 1, PRESENT | LAZY)], 11: [(BASE, 2, IN_PARENT)]}
    fake_images.write_round(tmp_path, 2, second, areas)
    memory = Memory(tmp_path)
    memory.add_round(1)
    memory.add_round(2)
    memory.mark()
    lazy = memory.lazy()
    assert flat(lazy[10]) == {BASE: (1, 0), BASE + PAGE: (2, 0)}
    assert flat(lazy[11]) == {BASE: (1, 0), BASE + PAGE: (1, PAGE)}
    assert memory.pages(10, 1) == tmp_path / "1" / "pages-1.img"
    assert memory.pages(11, 2) == tmp_path / "2" / "pages-2.img"
    # a pager that replaces another reads the same out of the files
    again = Memory(tmp_path)
    again.add_round(1)
    again.add_round(2)
    for _ in range(2):
        assert {pid: flat(index) for pid, index in again.lazy().items()} == {pid: flat(lazy[pid]) for pid in lazy}
        again.mark()


def test_a_task_that_ended_meanwhile_and_one_that_began(tmp_path: Path) -> None:
    fake_images.write_round(tmp_path, 1, {10: [(BASE, 1, PRESENT)]})
    fake_images.write_round(tmp_path, 2, {11: [(BASE, 1, PRESENT | LAZY)]}, {11: [(BASE, BASE + PAGE, PLAIN, 1)]})
    memory = Memory(tmp_path)
    memory.add_round(1)
    memory.add_round(2)
    memory.mark()
    assert {pid: flat(index) for pid, index in memory.lazy().items()} == {11: {BASE: (2, 0)}}


def test_what_is_not_lazy_is_left_to_criu(tmp_path: Path) -> None:
    """Locked memory stays in the maps as it was; only what its newest map marks is filled by us."""
    areas = [(BASE, BASE + 2 * PAGE, PLAIN | LOCKED, ORDINARY), (BASE + 2 * PAGE, BASE + 4 * PAGE, PLAIN, ORDINARY)]
    fake_images.write_round(tmp_path, 1, {10: [(BASE, 4, PRESENT)]})
    fake_images.write_round(tmp_path, 2, {10: [(BASE, 4, IN_PARENT)]}, {10: areas})
    memory = Memory(tmp_path)
    memory.add_round(1)
    memory.add_round(2)
    memory.mark()
    assert list(pagemap.read(tmp_path / "2" / "pagemap-10.img")) == [
        (BASE, BASE + 2 * PAGE, IN_PARENT),
        (BASE + 2 * PAGE, BASE + 4 * PAGE, IN_PARENT | LAZY),
    ]
    assert flat(memory.lazy()[10]) == {BASE + 2 * PAGE: (1, 2 * PAGE), BASE + 3 * PAGE: (1, 3 * PAGE)}


def test_no_piece_lies_in_two_areas(tmp_path: Path) -> None:
    """userfaultfd copies into one area at a time, and CRIU makes one run of what adjoins."""
    areas = [(BASE, BASE + 2 * PAGE, PLAIN, 1), (BASE + 2 * PAGE, BASE + 5 * PAGE, PLAIN, 1)]
    fake_images.write_round(tmp_path, 1, {10: [(BASE, 5, PRESENT | LAZY)]}, {10: areas})
    memory = Memory(tmp_path)
    memory.add_round(1)
    memory.mark()
    assert [extent[:2] for extent in memory.lazy()[10].extents] == [area[:2] for area in areas]


@pytest.mark.parametrize("name", ["pagemap-10.img", "pages-1.img", "mm-10.img"])
def test_every_truncation_on_disk_is_one_image_error(tmp_path: Path, name: str) -> None:
    """Also where an entry ends: the map is short then, and its pages too many."""
    given = [(BASE, 1, PRESENT | LAZY), (BASE + 2 * PAGE, 1, PRESENT | LAZY)]
    fake_images.write_round(tmp_path, 1, {10: given}, {10: [(BASE, BASE + 8 * PAGE, PLAIN, ORDINARY)]})
    path = tmp_path / "1" / name
    data = path.read_bytes()
    lengths = range(len(data)) if name != "pages-1.img" else (0, 1, PAGE, len(data) - 1)
    for length in lengths:
        path.write_bytes(data[:length])
        with pytest.raises(ImageError) as caught:
            memory = Memory(tmp_path)
            memory.add_round(1)
            memory.mark()
        said = str(caught.value)
        assert said.startswith((f"1/{name} ", f"1/{name}: ", "round 1 holds "))
        assert str(tmp_path) not in said
        assert "\n" not in said


@pytest.mark.parametrize("name", ["pagemap-10.img", "pages-1.img", "mm-10.img"])
def test_a_file_that_is_missing(tmp_path: Path, name: str) -> None:
    fake_images.write_round(tmp_path, 1, {10: [(BASE, 1, PRESENT)]}, {10: []})
    fake_images.write_round(tmp_path, 2, {10: [(BASE, 1, IN_PARENT)]}, {10: []})
    (tmp_path / "1" / name).unlink()
    memory = Memory(tmp_path)
    if name == "mm-10.img":
        memory.add_round(1)
        with pytest.raises(ImageError, match=r"^1/mm-10\.img is missing$"):
            memory.mark()
        return
    with pytest.raises(BrokenChain, match="round"):
        memory.add_round(1)
        memory.add_round(2)


def test_a_map_of_no_task(tmp_path: Path) -> None:
    fake_images.write_round(tmp_path, 1, {10: [(BASE, 1, PRESENT)]})
    (tmp_path / "1" / "pagemap-10x.img").write_bytes(b"")
    with pytest.raises(ImageError, match=r"^1/pagemap-10x\.img is the map of no task$"):
        Memory(tmp_path).add_round(1)


def test_a_round_that_fails_leaves_the_index_alone(tmp_path: Path) -> None:
    fake_images.write_round(tmp_path, 1, {10: [(BASE, 1, PRESENT | LAZY)]}, {10: [(BASE, BASE + PAGE, PLAIN, 1)]})
    fake_images.write_round(tmp_path, 2, {10: [(BASE, 2, IN_PARENT)]})
    memory = Memory(tmp_path)
    memory.add_round(1)
    with pytest.raises(BrokenChain):
        memory.add_round(2)
    assert flat(memory.lazy()[10]) == {BASE: (1, 0)}


# --- limits ----------------------------------------------------------------------------------------------------------


def torn(count: int) -> Round:
    """Every other page."""
    return [(BASE + 2 * number * PAGE, 1, PRESENT) for number in range(count)]


def test_an_index_beyond_the_limit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pageindex, "MOST_PIECES", 10)
    assert len(Index().overlaid(1, as_map(torn(10)), 10 * PAGE)) == 10
    with pytest.raises(TooTorn, match="too many to fill it in"):
        Index().overlaid(1, as_map(torn(11)), 11 * PAGE)


def test_the_limit_is_the_trees_not_the_tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thousand tasks may not hold a thousand times as much."""
    monkeypatch.setattr(pageindex, "MOST_PIECES", 10)
    fake_images.write_round(tmp_path, 1, {10: torn(6), 11: torn(4)})
    Memory(tmp_path).add_round(1)
    fake_images.write_round(tmp_path, 2, {10: torn(6), 11: torn(5)})
    with pytest.raises(TooTorn, match="too many to fill it in"):
        Memory(tmp_path).add_round(2)


def test_a_piece_takes_little_memory() -> None:
    count = 4_000
    newest = as_map(torn(count))
    tracemalloc.start()
    try:
        index = Index().overlaid(1, newest, count * PAGE)
        assert len(index) == count
        assert tracemalloc.get_traced_memory()[1] < count * 64 + (1 << 16)
    finally:
        tracemalloc.stop()


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(["pagemap-10.img", "mm-10.img"]), position=st.floats(0, 1, exclude_max=True),
       value=st.integers(1, 255))  # fmt: skip
def test_a_damaged_byte_raises_nothing_but_image_error(
    tmp_path_factory: pytest.TempPathFactory, name: str, position: float, value: int
) -> None:
    images = tmp_path_factory.mktemp("images")
    given = [(BASE, 1, PRESENT | LAZY), (BASE + 2 * PAGE, 1, PRESENT | LAZY)]
    fake_images.write_round(images, 1, {10: given}, {10: [(BASE, BASE + 8 * PAGE, PLAIN, ORDINARY)]})
    path = images / "1" / name
    data = bytearray(path.read_bytes())
    data[int(position * len(data))] ^= value
    path.write_bytes(data)
    memory = Memory(images)
    try:
        memory.add_round(1)
        memory.mark()
        memory.lazy()
    except ImageError as error:
        assert str(images) not in str(error)
