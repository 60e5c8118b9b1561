"""The images of a tree that gets a terminal from its holder: a session that its root led, and what is external."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from agent import ttyimages
from agent.images import ImageError, fields
from tests.fake_criu import message, varint

COMMON, PSTREE, TTY_INFO = 0x54564319, 0x50273030, 0x59453036


def image(magic: int, *entries: bytes) -> bytes:
    """An image file with these entries."""
    return struct.pack("<II", COMMON, magic) + b"".join(struct.pack("<I", len(one)) + one for one in entries)


def task(pid: int, sid: int) -> bytes:
    """A pstree_entry, its only thread included."""
    return varint(1, pid) + varint(2, 1) + varint(3, pid) + varint(4, sid) + varint(5, pid)


def terminal(kind: int, sid: int, pgrp: int) -> bytes:
    """A tty_info_entry, with a message and a large number in it."""
    head = varint(1, 9) + varint(2, kind) + varint(3, 0) + varint(6, sid) + varint(7, pgrp) + varint(8, 34816)
    return head + message(9, varint(1, 300) + varint(6, 7)) + varint(13, 93)


def values(path: Path) -> list[dict[int, int]]:
    """The numbers of each entry."""
    data, position, found = path.read_bytes(), 8, []
    while position < len(data):
        size = int.from_bytes(data[position : position + 4], "little")
        entry = data[position + 4 : position + 4 + size]
        found.append({number: value for number, value, body in fields(entry) if not body})
        position += 4 + size
    return found


def write(directory: Path) -> None:
    """A shell with a job, a daemon that it has started, and both ends of a pty beside the external terminal."""
    tree = image(PSTREE, task(4000, 4000), task(4001, 4000), task(4002, 4002))
    (directory / "pstree.img").write_bytes(tree)
    terminals = image(TTY_INFO, terminal(5, 4000, 4001), terminal(1, 4002, 4002))
    (directory / "tty-info.img").write_bytes(terminals)


def test_a_session_that_the_root_leads_is_made_a_jobs(tmp_path: Path) -> None:
    write(tmp_path)
    assert ttyimages.fit(tmp_path) == 4001
    assert [one[4] for one in values(tmp_path / "pstree.img")] == [1, 1, 4002]
    assert [one[6] for one in values(tmp_path / "tty-info.img")] == [0, 4002]


@pytest.mark.parametrize("tree", [image(PSTREE), image(PSTREE, varint(4, 4000))])
def test_a_tree_without_a_root_is_none(tmp_path: Path, tree: bytes) -> None:
    write(tmp_path)
    (tmp_path / "pstree.img").write_bytes(tree)
    with pytest.raises(ImageError, match="names no root"):
        ttyimages.fit(tmp_path)


def test_all_else_stays(tmp_path: Path) -> None:
    write(tmp_path)
    before = values(tmp_path / "pstree.img"), values(tmp_path / "tty-info.img")
    ttyimages.fit(tmp_path)
    after = values(tmp_path / "pstree.img"), values(tmp_path / "tty-info.img")
    for old, new, number in zip(before, after, (4, 6), strict=True):
        assert [{**one, number: 0} for one in old] == [{**one, number: 0} for one in new]
    data = (tmp_path / "tty-info.img").read_bytes()
    assert message(9, varint(1, 300) + varint(6, 7)) in data


def test_a_second_time_changes_nothing(tmp_path: Path) -> None:
    write(tmp_path)
    ttyimages.fit(tmp_path)
    once = (tmp_path / "pstree.img").read_bytes(), (tmp_path / "tty-info.img").read_bytes()
    assert ttyimages.fit(tmp_path) == 4001
    assert ((tmp_path / "pstree.img").read_bytes(), (tmp_path / "tty-info.img").read_bytes()) == once


@pytest.mark.parametrize("content", [b"", b"\x19\x43\x56\x54abcd", image(PSTREE, task(4000, 4000))[:-3]])
def test_what_is_no_such_image(tmp_path: Path, content: bytes) -> None:
    write(tmp_path)
    (tmp_path / "pstree.img").write_bytes(content)
    with pytest.raises(ImageError):
        ttyimages.fit(tmp_path)


def test_an_image_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="missing"):
        ttyimages.fit(tmp_path)
