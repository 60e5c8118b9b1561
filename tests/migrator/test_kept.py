"""The directory of the last reports: whose it is, how many are in it, and that it is never an error."""

from __future__ import annotations

import dataclasses
import errno
import os
import resource
import signal
import stat
from pathlib import Path

import pytest

from migrator import kept
from migrator.kept import Reports
from migrator.report import parse
from tests.migrator import fake_reports


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "state" / "reports"


def numbered(number: int) -> str:
    return f"20260704-03{number // 60:02}{number % 60:02}-aaaaaa"


def test_a_report_is_kept_for_its_owner_alone(directory: Path) -> None:
    assert Reports(directory).keep(fake_reports.MOVED) == ""
    (path,) = Reports(directory).paths()
    assert path == Reports(directory).path(fake_reports.MOVED.id)
    assert parse(path.read_text()) == parse(path.read_text())
    assert parse(path.read_text()).id == fake_reports.MOVED.id
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_the_last_hundred_stay(directory: Path) -> None:
    reports = Reports(directory)
    for number in range(kept.KEPT + 5):
        assert reports.keep(dataclasses.replace(fake_reports.MOVED, id=numbered(number))) == ""
        os.utime(directory / f"{numbered(number)}.json", (number, number))
    assert [path.stem for path in reports.paths()] == [numbered(n) for n in range(kept.KEPT + 4, 4, -1)]
    assert len(list(directory.iterdir())) == kept.KEPT, "nothing else lies there"


def test_no_directory_has_no_reports(tmp_path: Path) -> None:
    assert Reports(tmp_path / "none").paths() == []
    assert Reports(None).paths() == []
    assert Reports(None).keep(fake_reports.MOVED) == ""
    assert Reports(None).path(fake_reports.MOVED.id) is None


@pytest.mark.parametrize("word", ["", "../x", "a/b", ".hidden", "x" * 65, "a.json"])
def test_what_is_no_id_has_no_path(directory: Path, word: str) -> None:
    assert Reports(directory).path(word) is None


def test_others_files_are_left_alone(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "notes.txt").write_text("mine")
    (directory / ".20260704-a.json-half").write_text("{")
    assert Reports(directory).keep(fake_reports.MOVED) == ""
    assert [path.name for path in Reports(directory).paths()] == [f"{fake_reports.MOVED.id}.json"]
    assert (directory / "notes.txt").exists()


def test_a_full_disk_is_said_and_leaves_nothing(directory: Path) -> None:
    """A limit on the size of files stands for it: the write fails half-way, as on a full disk."""
    directory.mkdir(parents=True)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        problem = Reports(directory).keep(fake_reports.MOVED)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
    assert problem == f"{directory}: {os.strerror(errno.EFBIG)}"
    assert list(directory.iterdir()) == []
