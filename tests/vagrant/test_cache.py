"""When a thing is built again."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from labkit import cache


def test_the_documented_variable_decides_where(place: Path) -> None:
    assert cache.place() == place
    assert place.is_dir()


def test_parts_of_a_recipe_do_not_run_into_each_other() -> None:
    assert cache.digest("ab", "c") != cache.digest("a", "bc")
    assert cache.digest("a") != cache.digest("a", "")
    assert cache.digest("a", b"b") == cache.digest("a", "b")


def test_a_thing_is_fresh_from_mark_to_mark(tmp_path: Path) -> None:
    thing = tmp_path / "thing"
    assert not cache.is_fresh(thing, "one")
    thing.write_text("built")
    assert not cache.is_fresh(thing, "one")
    cache.mark_fresh(thing, "one")
    assert cache.is_fresh(thing, "one")
    assert not cache.is_fresh(thing, "two")
    cache.mark_stale(thing)
    assert not cache.is_fresh(thing, "one")


def test_a_thing_that_is_gone_is_not_fresh(tmp_path: Path) -> None:
    cache.mark_fresh(tmp_path / "thing", "one")
    assert not cache.is_fresh(tmp_path / "thing", "one")


def test_while_its_key_is_taken_a_thing_is_stale(tmp_path: Path) -> None:
    thing = tmp_path / "thing"
    thing.mkdir()
    cache.mark_fresh(thing, "one")
    key = cache.take_key(thing)
    assert key == "one"
    assert not cache.is_fresh(thing, "one")
    cache.mark_fresh(thing, key)
    assert cache.is_fresh(thing, "one")


def test_a_lock_keeps_others_out_until_it_is_left(place: Path) -> None:
    with cache.lock("build"), (place / "locks/build").open("w") as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with (place / "locks/build").open("w") as other:
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
