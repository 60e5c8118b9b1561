"""agent/newcomers.py: what a tree has opened since it was inspected."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from agent import descriptors, newcomers


@pytest.fixture
def seen() -> set[str]:
    """All that we hold."""
    known: set[str] = set()
    newcomers.found(os.getpid(), known)
    return known


def test_what_is_known_is_not_told(seen: set[str]) -> None:
    assert newcomers.found(os.getpid(), seen) == ()


def test_what_is_opened_is_told_once(seen: set[str], tmp_path: Path) -> None:
    path = tmp_path / "a b\nnew"
    with path.open("w"):
        (file,) = newcomers.found(os.getpid(), seen)
        assert (file.path, file.kind, file.uses) == (str(path), "regular", ("open", "write"))
        assert newcomers.found(os.getpid(), seen) == ()


def test_what_is_only_mapped_is_told(seen: set[str], tmp_path: Path) -> None:
    path = tmp_path / "mapped"
    path.write_bytes(bytes(4096))
    with path.open("r+b") as file:
        area = mmap.mmap(file.fileno(), 4096)
        # the interpreter keeps a descriptor of its own to it: the name is found by either
    try:
        assert str(path) in [one.path for one in newcomers.found(os.getpid(), seen)]
    finally:
        area.close()


def test_what_has_no_name_travels_in_the_images(seen: set[str], tmp_path: Path) -> None:
    with (tmp_path / "gone").open("w"):
        (tmp_path / "gone").unlink()
        assert newcomers.found(os.getpid(), seen) == ()


def test_only_those_that_have_new_names_are_looked_into(seen: set[str], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    monkeypatch.setattr(descriptors, "collect", asked.append)
    assert newcomers.found(os.getpid(), seen) == ()
    assert asked == []
