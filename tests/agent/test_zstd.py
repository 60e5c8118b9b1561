"""zstd by each way that this machine has."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import pytest
import zstandard

from agent import zstd

TEXT = b"".join(b"user%d@example.org " % number for number in range(50000))[: zstd.LARGEST]


def there() -> list[str]:
    """The ways that are here."""
    found = []
    for name, make in zstd.ways().items():
        with contextlib.suppress(ImportError, OSError):
            make()
            found.append(name)
    return found


def buffer(data: bytes) -> memoryview:
    """As `frames` has it."""
    return memoryview(bytearray(data))


def test_there_is_one_to_test_and_the_best_is_chosen() -> None:
    assert there()
    assert zstd.find()[0] == there()[0]


@pytest.mark.parametrize("way", there())
class TestEachWay:
    def test_one_piece_after_the_other(self, way: str) -> None:
        unpack = zstd.ways()[way]()
        for data in (TEXT, b"x", os.urandom(5000), bytes(zstd.LARGEST), TEXT[:4096]):
            packed = zstandard.ZstdCompressor(write_checksum=True).compress(data)
            assert unpack(buffer(packed), len(data)) == data

    @pytest.mark.parametrize("change", [-1, 1, -4096])
    def test_another_size_than_was_announced_is_damage(self, way: str, change: int) -> None:
        packed = zstandard.ZstdCompressor(write_checksum=True).compress(TEXT[:9000])
        with pytest.raises(zstd.Damaged):
            zstd.ways()[way]()(buffer(packed), 9000 + change)

    def test_a_bomb_gets_no_more_than_was_announced(self, way: str) -> None:
        packed = zstandard.ZstdCompressor().compress(bytes(1 << 28))
        with pytest.raises(zstd.Damaged):
            zstd.ways()[way]()(buffer(packed), 4096)

    def test_damage_is_told_and_harms_nothing(self, way: str) -> None:
        unpack = zstd.ways()[way]()
        packed = bytearray(zstandard.ZstdCompressor(write_checksum=True).compress(TEXT))
        for bad in (packed[:-1], b"\0" * 40, packed[:3], packed[: len(packed) // 2], packed[:-4] + b"abcd"):
            with pytest.raises(zstd.Damaged):
                unpack(buffer(bytes(bad)), len(TEXT))
        assert unpack(buffer(bytes(packed)), len(TEXT)) == TEXT


def test_a_host_without_any(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(zstd, "LIBRARY", str(tmp_path / "none.so"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert zstd.find()[0] in ("", "module")


def test_the_program_is_found_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A stand-in that says what it was asked, so that this runs where there is no zstd program."""
    program = tmp_path / "zstd"
    program.write_text('#!/bin/sh\nprintf "%s " "$@"\ncat\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    unpack = zstd.ways()["program"]()
    assert bytes(unpack(buffer(b"body"), 15)) == b"-d -c -q - body"
    with pytest.raises(zstd.Damaged):
        unpack(buffer(b"body"), 14)
