"""agent/blocks.py: sums of a file's blocks, whatever holes and ends it has."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import blocks


def naive(content: bytes, block: int) -> list[bytes]:
    """As it is said."""
    return [hashlib.sha1(content[at : at + block]).digest() for at in range(0, len(content), block)]


@pytest.fixture
def file(tmp_path: Path) -> Iterator[int]:
    descriptor = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield descriptor
    os.close(descriptor)


@pytest.mark.parametrize("size", [0, 1, 99, 100, 101, 1000, 12345])
def test_every_block_has_its_sum(file: int, size: int) -> None:
    content = os.urandom(size)
    os.write(file, content)
    assert blocks.sums(file, size, 100) == naive(content, 100)


def test_more_than_one_thread_takes(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "_STRETCH", 1000)
    content = os.urandom(54321)
    os.write(file, content)
    assert blocks.sums(file, len(content), 100) == naive(content, 100)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(st.lists(st.tuples(st.integers(0, 300_000), st.binary(min_size=1, max_size=50))), st.integers(0, 300_000))
def test_holes_count_as_the_zeros_that_they_show(file: int, pieces: list[tuple[int, bytes]], size: int) -> None:
    os.ftruncate(file, 0)
    for offset, piece in pieces:
        os.pwrite(file, piece, offset)
    os.ftruncate(file, size)
    content = os.pread(file, size, 0)
    assert blocks.sums(file, size, 4096) == naive(content, 4096)


def test_a_hole_is_not_read(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    os.ftruncate(file, 1 << 40)
    os.pwrite(file, b"x", 1 << 39)
    read, seen = blocks.read, []

    def noted(descriptor: int, offset: int, length: int) -> memoryview:
        seen.append(offset)
        return read(descriptor, offset, length)

    monkeypatch.setattr(blocks, "read", noted)
    block = blocks.block_for(1 << 40)
    assert len(blocks.sums(file, 1 << 40, block)) == 1 << 16
    assert seen == [1 << 39]


def test_where_holes_cannot_be_told_all_is_read(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    os.ftruncate(file, 1000)
    os.pwrite(file, b"x", 500)

    def cannot(descriptor: int, offset: int, how: int) -> int:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(os, "lseek", cannot)
    assert blocks.sums(file, 1000, 100) == naive(bytes(500) + b"x" + bytes(499), 100)


def test_what_is_no_longer_there_reads_as_zeros(file: int) -> None:
    os.write(file, b"x" * 150)
    assert blocks.sums(file, 250, 100) == naive(b"x" * 150 + bytes(100), 100)


def test_a_file_has_so_many_blocks_at_most() -> None:
    assert blocks.block_for(0) == blocks.block_for(1 << 32) == blocks.BLOCK
    for size in ((1 << 32) + 1, 1 << 40, 10**15):
        assert blocks.MOST / 2 <= size / blocks.block_for(size) <= blocks.MOST


def test_an_unreadable_file_is_an_error_from_whatever_thread(file: int, monkeypatch: pytest.MonkeyPatch) -> None:
    os.write(file, b"x" * 1000)

    def broken(*words: object) -> int:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(os, "preadv", broken)
    for stretch in (100, 4 << 20):
        monkeypatch.setattr(blocks, "_STRETCH", stretch)
        with pytest.raises(OSError, match="Input/output"):
            blocks.sums(file, 1000, 100)
