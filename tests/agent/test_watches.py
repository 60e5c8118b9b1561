"""agent/watches.py: real watches of real processes, and texts of the kernel."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from agent import watches
from agent.descriptors import opened
from tests.children import child

INOTIFY = b"""pos:\t0
flags:\t00
inotify wd:3 ino:9e7e sdev:800013 mask:800afce ignored_mask:0 fhandle-bytes:8 fhandle-type:1 f_handle:7e9e0000640d1b6c
inotify wd:2 ino:a111 sdev:800013 mask:800afce ignored_mask:0
fanotify flags:10 event-flags:0
fanotify ino:4f969 sdev:800013 mflags:0 mask:3b ignored_mask:40000000 fhandle-bytes:4 fhandle-type:1 f_handle:69f90400
fanotify mnt_id:12 mflags:40 mask:38 ignored_mask:40000003
"""


def test_watches_are_read_with_their_handles() -> None:
    device = os.makedev(8, 0x13)
    assert list(watches.parse(INOTIFY)) == [
        (0x9E7E, device, 1, bytes.fromhex("7e9e0000640d1b6c")),
        (0x4F969, device, 1, bytes.fromhex("69f90400")),
    ]


SOURCE = """
import ctypes
libc = ctypes.CDLL(None)
descriptor = libc.inotify_init1(0)
assert libc.inotify_add_watch(descriptor, os.fsencode(sys.argv[1] + "/watched"), 0xFFF) == 1
"""


@pytest.mark.skipif(os.getuid() != 0, reason="opening by handle wants CAP_DAC_READ_SEARCH")
def test_a_watched_path_is_found_and_one_without_a_path_is_said(tmp_path: Path) -> None:
    watched = tmp_path / "watched"
    watched.write_text("")
    with child(SOURCE + "os.rename(sys.argv[1] + '/watched', sys.argv[1] + '/moved')\nready()", tmp_path) as pid:
        (found,) = watches.watched(list(opened(pid)))
        assert (found.kind, found.object, found.detail) == ("watch", str(tmp_path / "moved"), "inotify")
    (tmp_path / "moved").rename(watched)
    with child(SOURCE + "held = open(sys.argv[1] + '/watched')\nos.unlink(held.name)\nready()", tmp_path) as pid:
        (found,) = watches.watched(list(opened(pid)))
        assert (found.kind, found.object) == ("watch-lost", f"inode {os.stat(f'/proc/{pid}/fd/4').st_ino}")


def test_who_watches_nothing(tmp_path: Path) -> None:
    with child("ready()", tmp_path) as pid:
        assert list(watches.watched(list(opened(pid)))) == []
