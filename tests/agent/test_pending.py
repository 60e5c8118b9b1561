"""What is still to come of address spaces, against a naive model: forks, moves, removals, unmappings, ends."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from agent.pending import Pages, Pending, Piece

PAGE = 4096
PAGES = 32
"""The whole address space of the model."""

Model = dict[int, tuple[int, int]]
"""page -> (image, offset)."""


def flat(pieces: object) -> Model:
    """Pages one by one; pieces must be ascending and without overlap."""
    found: Model = {}
    behind = 0
    for start, end, image, offset in pieces:  # type: ignore[attr-defined]
        assert behind <= start < end
        behind = end
        for page in range(start, end, PAGE):
            found[page] = (image, offset + page - start)
    return found


@st.composite
def pieces(draw: st.DrawFn) -> list[Piece]:
    """What a pager begins with."""
    edges = sorted(draw(st.sets(st.integers(0, PAGES), max_size=14)))
    return [
        (low * PAGE, high * PAGE, draw(st.integers(0, 3)), draw(st.integers(0, 9)) * PAGE)
        for low, high in zip(edges, edges[1:])
        if draw(st.booleans())
    ]


ranges = st.tuples(st.integers(0, PAGES), st.integers(0, PAGES)).map(lambda pair: (min(pair) * PAGE, max(pair) * PAGE))


class Spaces(RuleBasedStateMachine):
    """A few address spaces that live, and a dictionary of pages for each."""

    def __init__(self) -> None:
        super().__init__()
        self.spaces: list[tuple[Pending, Model]] = []

    def _one(self, number: int) -> tuple[Pending, Model]:
        return self.spaces[number % len(self.spaces)]

    @precondition(lambda self: len(self.spaces) < 4)
    @rule(given=pieces())
    def task(self, given: list[Piece]) -> None:
        self.spaces.append((Pending(given), flat(given)))

    @precondition(lambda self: 0 < len(self.spaces) < 4)
    @rule(number=st.integers(0, 3))
    def fork(self, number: int) -> None:
        pending, model = self._one(number)
        self.spaces.append((pending.copy(), dict(model)))

    @precondition(lambda self: self.spaces)
    @rule(number=st.integers(0, 3))
    def ends(self, number: int) -> None:
        del self.spaces[number % len(self.spaces)]

    @precondition(lambda self: self.spaces)
    @rule(number=st.integers(0, 3), taken=ranges)
    def copied_or_removed(self, number: int, taken: tuple[int, int]) -> None:
        pending, model = self._one(number)
        start, end = taken
        inside = {page: place for page, place in model.items() if start <= page < end}
        assert flat(pending.drop(start, end)) == inside
        for page in inside:
            del model[page]

    @precondition(lambda self: self.spaces)
    @rule(number=st.integers(0, 3), taken=ranges, kept=st.integers(0, PAGES))
    def copied_half(self, number: int, taken: tuple[int, int], kept: int) -> None:
        """The address space was busy: what was not copied goes back."""
        pending, model = self._one(number)
        for position, (start, end, image, offset) in enumerate(pending.drop(*taken)):
            low = min(end, start + kept * PAGE) if position == 0 else start
            for page in range(start, low, PAGE):
                del model[page]
            if low < end:
                pending.insert((low, end, image, offset + low - start))

    @precondition(lambda self: self.spaces)
    @rule(number=st.integers(0, 3), taken=ranges, to=st.integers(0, PAGES))
    def moved(self, number: int, taken: tuple[int, int], to: int) -> None:
        """What was at the new place is unmapped by the move. Old and new place never overlap (mremap(2))."""
        pending, model = self._one(number)
        start, end = taken
        place = to * PAGE
        if place < end and start < place + end - start:
            return
        pending.move(start, place, end - start)
        away = {page: model.pop(page) for page in list(model) if start <= page < end}
        for page in list(model):
            if place <= page < place + end - start:
                del model[page]
        model.update({page - start + place: what for page, what in away.items()})

    @invariant()
    def same(self) -> None:
        for pending, model in self.spaces:
            assert flat(pending.pieces) == model
            assert pending.size == len(model) * PAGE
            last = pending.first
            assert (last is None) == (not model)
            assert last is None or last[1] == max(model) + PAGE
            for page in range(0, 2 * PAGES * PAGE, PAGE):
                piece = pending.at(page + 7)
                assert (piece is not None) == (page in model)
                if piece is not None:
                    start, _, image, offset = piece
                    assert model[page] == (image, offset + page - start)


TestSpaces = Spaces.TestCase
TestSpaces.settings = settings(max_examples=60, stateful_step_count=20, deadline=None)


@given(pieces())
def test_a_copy_has_a_life_of_its_own(given: list[Piece]) -> None:
    first = Pending(given)
    second = first.copy()
    first.drop(0, PAGES * PAGE)
    assert (first.size, first.first) == (0, None)
    assert flat(second.pieces) == flat(given)


# --- images ----------------------------------------------------------------------------------------------------------


def test_a_pages_image_is_mapped_and_given_back(tmp_path: Path) -> None:
    import ctypes

    path = tmp_path / "pages-1.img"
    path.write_bytes(b"a" * PAGE + b"b" * PAGE + b"c" * PAGE)
    image = Pages(path)
    try:
        assert image.size == 3 * PAGE
        assert ctypes.string_at(image.ready(PAGE, PAGE), PAGE) == b"b" * PAGE
        image.punch(PAGE, PAGE)
        assert path.read_bytes() == b"a" * PAGE + bytes(PAGE) + b"c" * PAGE
        assert path.stat().st_size == 3 * PAGE
    finally:
        os.close(image.descriptor)


def test_an_image_that_can_t_be_mapped(tmp_path: Path) -> None:
    path = tmp_path / "pages-1.img"
    path.touch()
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError, match=r"pages-1\.img can't be mapped"):
        Pages(path)
    assert len(os.listdir("/proc/self/fd")) == before
