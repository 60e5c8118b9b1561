"""agent/files.py: what a host holds of what is asked."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from agent import files, process
from agent.protocol import Check, FileFacts
from tests.children import child, until

NOBODY = 4_190_000


def asked(path: str | Path, kind: str = "regular", *uses: str, build_id: str = "") -> FileFacts:
    """A question."""
    return FileFacts(str(path), kind, 0, 0, 0, 0, 0, 0, uses, build_id=build_id)


def test_every_question_is_answered_in_its_order(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"12345")
    (tmp_path / "file").chmod(0o640)
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "nowhere").symlink_to("missing")
    os.mkfifo(tmp_path / "fifo")
    paths = ["file", "link", "missing", "nowhere", "file/x", "fifo", ""]
    questions = [asked(tmp_path / path if path else tmp_path, "regular", "open") for path in paths] + [asked("/x\0y")]
    answer = files.check(Check((*questions, asked("/dev/null", "char")), ()), tmp_path)
    assert [one.path for one in answer.files[:-1]] == [one.path for one in questions]
    kinds = [one.kind for one in answer.files]
    # as criu, which opens: what a link leads to counts
    assert kinds == ["regular", "regular", "missing", "missing", "missing", "fifo", "directory", "missing", "char"]
    file = answer.files[0]
    assert (file.size, file.mode, file.uid, file.uses) == (5, 0o640, os.getuid(), ("open",))
    assert file.mtime_ns == (tmp_path / "file").stat().st_mtime_ns
    assert answer.files[-1].rdev == os.makedev(1, 3)


def test_a_link_that_is_held_itself_is_looked_at_itself(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("missing")
    (found,) = files.check(Check((asked(tmp_path / "link", "link", "open"),), ()), tmp_path).files
    assert found.kind == "link"


def test_a_build_id_is_read_only_where_the_source_has_one(tmp_path: Path) -> None:
    library = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libc" in line)
    answer = files.check(Check((asked(library, build_id="ab"), asked(library, "regular", "exec")), ()), tmp_path)
    assert len(answer.files[0].build_id) >= 16
    assert answer.files[1].build_id == ""


def test_a_socket_that_is_in_use_is_told_from_one_left_behind(tmp_path: Path) -> None:
    path = str(tmp_path / "a socket")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(path)
        (used,) = files.check(Check((asked(path, "socket", "bind"),), ()), tmp_path).files
    (left,) = files.check(Check((asked(path, "socket", "bind"),), ()), tmp_path).files
    assert (used.kind, used.uses) == ("socket", ("bind", "bound"))
    assert (left.kind, left.uses) == ("socket", ("bind",))


def taken(*ids: int) -> list[int]:
    """PIDs of those that hold these numbers."""
    return [task.pid for task in files.check(Check((), ids), Path("/")).taken]


def test_numbers_that_are_in_use_are_found_with_their_owners(tmp_path: Path) -> None:
    source = """
import threading
threading.Thread(target=time.sleep, args=(600,)).start()
if os.fork() == 0:
    os.setpgid(0, 0)
    if os.fork() == 0:
        open("member", "w").write(str(os.getpid()))
        time.sleep(600)
    os._exit(0)
os.wait()
while not os.path.exists("member") or not open("member").read():
    time.sleep(0.001)
ready()
"""
    with child(source, tmp_path) as pid:
        tid = process.threads(pid)[1]
        member = int((tmp_path / "member").read_text())
        dead_leader = process.read_stat(member).pgid
        try:
            assert pid in taken(pid)
            assert taken(tid) == [pid]
            assert taken(dead_leader) == [member]
            assert member in taken(pid)  # by its session
            assert taken(NOBODY) == taken() == []
        finally:
            os.kill(member, 9)


def test_a_zombie_holds_its_number() -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    try:
        until(lambda: process.read_stat(ended.pid).state == "Z")
        assert taken(ended.pid) == [ended.pid]
    finally:
        ended.wait()


def test_room_is_told_even_of_a_directory_that_is_not_there_yet(tmp_path: Path) -> None:
    answer = files.check(Check((), ()), tmp_path / "not" / "yet")
    status = os.statvfs(tmp_path)
    assert 0 < answer.disk_available <= status.f_blocks * status.f_frsize
    assert answer.memory_available > 1 << 20


def test_five_hundred_files_take_no_time(tmp_path: Path) -> None:
    library = next(line.split()[-1] for line in Path("/proc/self/maps").read_text().splitlines() if "/libc" in line)
    request = Check(
        (asked(library, build_id="ab"),) * 250 + (asked("/dev/null"),) * 250, tuple(range(NOBODY, NOBODY + 99))
    )
    fastest = min(_timed(lambda: files.check(request, tmp_path)) for _ in range(3))
    assert fastest < 0.3


def _timed(act: Callable[[], object]) -> float:
    started = time.perf_counter()
    act()
    return time.perf_counter() - started
