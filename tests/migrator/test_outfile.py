"""A file that is written at the end of a command: refused at its beginning, or there as a whole."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from migrator.errors import UsageError
from migrator.outfile import Outfile


@pytest.mark.parametrize("path", ["/nonexistent/x", "/", "a\0b", "/proc/x"])
def test_one_that_cannot_be_written_is_told_at_once(path: str) -> None:
    with pytest.raises(UsageError) as told:
        Outfile("--report", path)
    assert told.value.message.startswith(f"--report {path}: ")


def test_it_is_replaced_as_a_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text("old")
    file = Outfile("--report", str(path))
    with path.open() as before:
        assert file.write(b"new") == ""
        assert before.read() == "old"
    assert path.read_text() == "new"
    assert os.listdir(tmp_path) == ["report.json"]


@pytest.mark.parametrize(("mode", "umask", "seen"), [(0o644, 0o077, 0o644), (0, 0o077, 0o600), (0, 0o022, 0o644)])
def test_who_may_read_it(tmp_path: Path, mode: int, umask: int, seen: int) -> None:
    before = os.umask(umask)
    try:
        Outfile("--metrics", str(tmp_path / "m"), mode).write(b"")
    finally:
        os.umask(before)
    assert (tmp_path / "m").stat().st_mode & 0o777 == seen


def test_a_link_stays_one(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "there/file")
    assert Outfile("--report", str(link)).write(b"x") == ""
    assert link.is_symlink()
    assert (tmp_path / "there/file").read_bytes() == b"x"


def test_a_pipe_is_written_into(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    file = Outfile("--report", str(pipe))
    read: list[bytes] = []
    reader = threading.Thread(target=lambda: read.append(pipe.read_bytes()))
    reader.start()
    assert file.write(b"x") == ""
    reader.join(60)
    assert read == [b"x"]
    assert pipe.is_fifo()


def test_what_goes_wrong_at_the_end_is_told_and_no_error(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    file = Outfile("--report", str(folder / "x"))
    folder.rmdir()
    assert file.write(b"x") == f"--report {folder}/x: No such file or directory"
    assert Outfile("--report", "/dev/full").write(b"x") == "--report /dev/full: No space left on device"
