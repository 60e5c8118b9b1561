"""On disk when it is said: every file, every directory, and what is named of it when that fails."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from agent import durable, mounts
from agent.images import NoRoom
from agent.ledger import Ledger


@pytest.fixture
def place(tmp_path: Path) -> Path:
    place = tmp_path / "images"
    (place / "1").mkdir(parents=True)
    (place / "2").mkdir()
    (place / "1" / "pages-1.img").write_bytes(b"one")
    (place / "2" / "pages-1.img").write_bytes(b"two")
    (place / "2" / "parent").symlink_to("../1")
    os.mkfifo(place / "2" / "fifo")
    return place


@pytest.fixture
def synced(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was synced, in its order."""
    paths: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        paths.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    return paths


def test_all_of_it_and_its_name_files_before_their_directories(place: Path, synced: list[str]) -> None:
    durable.keep(place)
    wanted = [place / "1/pages-1.img", place / "1", place / "2/pages-1.img", place / "2", place, place.parent]
    assert {str(path) for path in wanted} == set(synced)
    for directory in ("1", "2"):
        assert synced.index(str(place / directory / "pages-1.img")) < synced.index(str(place / directory))
    assert synced[-2:] == [str(place), str(place.parent)]


def test_a_round_on_shared_storage(place: Path, tmp_path: Path, synced: list[str]) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "core-1.img").write_bytes(b"core")
    (place / "3").symlink_to(shared)
    durable.keep(place / "3")
    assert str(shared / "core-1.img") in synced
    assert str(shared) in synced


def test_files_that_came_along(place: Path, tmp_path: Path, synced: list[str]) -> None:
    ledger = Ledger(tmp_path / "ledger")
    path = str(tmp_path / "log")
    temporary = ledger.temporary_beside(path)
    Path(temporary).write_bytes(b"lines")
    ledger.ready([(temporary, path)])
    ledger.place(path)
    synced.clear()
    durable.keep_all(place, ledger)
    assert {path, str(tmp_path), str(place / "1/pages-1.img")} <= set(synced)


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOSPC])
def test_a_disk_that_does_not_take_it(place: Path, monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    def fails(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(NoRoom, match=f"could not be put on disk: {os.strerror(number)}"):
        durable.keep(place)


@pytest.mark.parametrize(("kind", "volatile"), [("tmpfs", "tmpfs"), ("ramfs", "ramfs"), ("ext4", ""), ("xfs", "")])
def test_a_disk_that_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, volatile: str) -> None:
    device = tmp_path.stat().st_dev
    monkeypatch.setattr(mounts, "names", lambda text: {device: f"{kind} /dev/x"})
    assert durable.volatile(tmp_path / "not" / "there") == volatile
