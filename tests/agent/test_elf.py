"""agent/elf.py: real files, files made here, and garbage."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import elf

ID = bytes(range(20))


def note(owner: bytes, kind: int, body: bytes, order: str = "<", alignment: int = 4) -> bytes:
    """One note as an ELF file holds it."""
    name = owner + bytes(-len(owner) % alignment) if alignment == 4 else owner
    text = struct.pack(order + "III", len(owner), len(body), kind) + name
    text += bytes(-len(text) % alignment)
    return text + body + bytes(-len(body) % alignment)


def elf_file(notes: bytes, *, wide: bool = True, order: str = "<", alignment: int = 4) -> bytes:
    """An ELF file with a PT_LOAD and a PT_NOTE."""
    ident = b"\x7fELF" + bytes([2 if wide else 1, 1 if order == "<" else 2, 1]) + bytes(9)
    if wide:
        head = struct.pack(order + "HHIQQQIHHHHHH", 3, 62, 1, 0, 64, 0, 0, 64, 56, 2, 0, 0, 0)
        offset = 64 + 2 * 56
        load = struct.pack(order + "IIQQQQQQ", 1, 5, 0, 0, 0, 0, 0, 4096)
        segment = struct.pack(order + "IIQQQQQQ", 4, 4, offset, 0, 0, len(notes), len(notes), alignment)
    else:
        head = struct.pack(order + "HHIIIIIHHHHHH", 3, 3, 1, 0, 52, 0, 0, 52, 32, 2, 0, 0, 0)
        offset = 52 + 2 * 32
        load = struct.pack(order + "IIIIIIII", 1, 0, 0, 0, 0, 0, 5, 4096)
        segment = struct.pack(order + "IIIIIIII", 4, offset, 0, 0, len(notes), len(notes), 4, alignment)
    return ident + head + load + segment + notes


@pytest.mark.parametrize("wide", [True, False])
@pytest.mark.parametrize("order", ["<", ">"])
def test_the_id_is_found_behind_other_notes(tmp_path: Path, wide: bool, order: str) -> None:
    notes = note(b"GNU\0", 1, bytes(16), order) + note(b"Go\0", 3, b"no", order) + note(b"GNU\0", 3, ID, order)
    (tmp_path / "x").write_bytes(elf_file(notes, wide=wide, order=order))
    assert elf.build_id(str(tmp_path / "x")) == ID.hex()


def test_notes_may_be_aligned_to_eight(tmp_path: Path) -> None:
    notes = note(b"GNU\0", 5, bytes(28), alignment=8) + note(b"GNU\0", 3, ID, alignment=8)
    (tmp_path / "x").write_bytes(elf_file(notes, alignment=8))
    assert elf.build_id(str(tmp_path / "x")) == ID.hex()


def test_it_is_the_one_that_the_linker_wrote() -> None:
    """Against readelf where there is one, on the library of C that runs here."""
    maps = Path("/proc/self/maps").read_text()
    library = next(line.split()[-1] for line in maps.splitlines() if "/libc.so" in line or "/libc-" in line)
    assert len(elf.build_id(library)) >= 16
    try:
        said = subprocess.run(["readelf", "-n", library], capture_output=True, text=True, check=True).stdout
    except FileNotFoundError:
        return
    assert f"Build ID: {elf.build_id(library)}" in said


@pytest.mark.parametrize("content", [b"", b"\x7fELF", b"#!/bin/sh\n", bytes(4096), elf_file(b""), elf_file(b"")[:70]])
def test_what_has_no_id_has_none(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x").write_bytes(content)
    assert elf.build_id(str(tmp_path / "x")) == ""


def test_what_is_no_file_has_none_and_nobody_waits(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path, tmp_path / "missing", Path("/dev/zero")):
        assert elf.build_id(str(path)) == ""


def test_numbers_that_point_anywhere_do_no_harm(tmp_path: Path) -> None:
    good = bytearray(elf_file(note(b"GNU\0", 3, ID)))
    for position, width in ((32, 8), (54, 2), (56, 2), (64 + 56 + 8, 8), (64 + 56 + 32, 8)):
        bad = bytearray(good)
        bad[position : position + width] = b"\xff" * width
        (tmp_path / "x").write_bytes(bad)
        assert elf.build_id(str(tmp_path / "x")) in ("", ID.hex())


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.data())
def test_a_damaged_file_never_raises(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(elf_file(note(b"GNU\0", 1, bytes(16)) + note(b"GNU\0", 3, ID)))
    for _ in range(data.draw(st.integers(1, 6))):
        content[data.draw(st.integers(4, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "x").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    assert isinstance(elf.build_id(str(tmp_path / "x")), str)


@given(st.lists(st.tuples(st.binary(min_size=1, max_size=9), st.integers(0, 9), st.binary(max_size=40)), max_size=4))
def test_any_notes_before_it_are_stepped_over(before: list[tuple[bytes, int, bytes]]) -> None:
    others = b"".join(note(owner, kind, body) for owner, kind, body in before if (owner, kind) != (b"GNU\0", 3))
    assert elf.notes_build_id(others + note(b"GNU\0", 3, ID)) == ID.hex()


@given(st.binary(max_size=200))
def test_garbage_for_notes_is_no_id_or_one(data: bytes) -> None:
    assert len(elf.notes_build_id(data)) <= 128


def test_this_interpreter_answers_at_once() -> None:
    assert isinstance(elf.build_id(os.path.realpath(sys.executable)), str)
