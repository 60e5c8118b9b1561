"""Rounds that have come to this host."""

from __future__ import annotations

from pathlib import Path

import pytest

from agent.arriving import forget_ended
from agent.images import ImageError
from agent.pagemap import PRESENT
from tests import fake_images

RUNS = ((0x10000, 2, PRESENT),)


def names(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def test_the_memory_of_a_task_that_has_ended_is_forgotten(tmp_path: Path) -> None:
    fake_images.write_round(tmp_path, 1, {7: RUNS, 8: RUNS, 9: RUNS})
    fake_images.write_round(tmp_path, 2, {8: RUNS, 10: RUNS})
    newer = names(tmp_path / "2")
    forget_ended(tmp_path / "1", tmp_path / "2")
    assert names(tmp_path / "1") == {"pagemap-8.img", "pages-2.img"}
    assert names(tmp_path / "2") == newer
    forget_ended(tmp_path / "1", tmp_path / "2")


def test_so_are_shared_areas_that_are_gone(tmp_path: Path) -> None:
    fake_images.write_round(tmp_path, 1, {7: RUNS})
    fake_images.write_round(tmp_path, 2, {7: RUNS})
    (tmp_path / "1" / "pagemap-shmem-5.img").write_bytes(fake_images.pagemap(RUNS, 3))
    (tmp_path / "1" / "pages-3.img").write_bytes(bytes(8192))
    forget_ended(tmp_path / "1", tmp_path / "2")
    assert names(tmp_path / "1") == {"pagemap-7.img", "pages-1.img"}


def test_a_map_that_is_damaged_is_named(tmp_path: Path) -> None:
    fake_images.write_round(tmp_path, 1, {7: RUNS})
    fake_images.write_round(tmp_path, 2, {})
    (tmp_path / "1" / "pagemap-7.img").write_bytes(b"torn")
    with pytest.raises(ImageError, match="pagemap-7"):
        forget_ended(tmp_path / "1", tmp_path / "2")
