"""agent/anchor.py: where a path leads, and that it still leads there when it matters."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from agent import anchor


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """`real/deep` with a file in it, and links to it."""
    (tmp_path / "real" / "deep").mkdir(parents=True)
    (tmp_path / "real" / "deep" / "file").write_text("content")
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "far").symlink_to(tmp_path / "link" / "deep")
    (tmp_path / "loop").symlink_to("loop")
    return tmp_path


@pytest.mark.parametrize("way", ["real/deep", "link/deep", "far", "link/../far", "real/./deep/../deep"])
def test_links_in_the_directories_are_taken_out(home: Path, way: str) -> None:
    assert anchor.settled(f"{home}/{way}/file") == f"{home}/real/deep/file"
    with anchor.at(anchor.settled(f"{home}/{way}/file")) as here:
        assert Path(here).read_text() == "content"
        assert anchor.beside(here, "/elsewhere/other") == f"{os.path.dirname(here)}/other"


def test_the_last_component_is_left_alone(home: Path) -> None:
    assert anchor.settled(f"{home}/link") == f"{home}/link"
    assert anchor.settled("/x") == "/x"
    with anchor.at("/etc") as here:
        assert os.path.isdir(here)


@pytest.mark.parametrize("way", ["loop", "loop/x", "nowhere", "real/deep/file"])
def test_a_way_that_leads_nowhere(home: Path, way: str) -> None:
    with pytest.raises(OSError), anchor.at(anchor.settled(f"{home}/{way}/file")):
        pass


def test_a_link_that_has_come_since_is_not_followed(home: Path) -> None:
    path = anchor.settled(f"{home}/far/file")
    (home / "real" / "deep").rename(home / "elsewhere")
    (home / "real" / "deep").symlink_to(home / "elsewhere")
    with pytest.raises(OSError) as caught, anchor.at(path):
        pass
    assert caught.value.errno in (errno.ENOTDIR, errno.ELOOP)
    assert caught.value.filename == f"{home}/real/deep"


def test_a_directory_that_was_moved_is_still_the_one(home: Path) -> None:
    with anchor.at(f"{home}/real/deep/file") as here:
        (home / "real" / "deep").rename(home / "elsewhere")
        (home / "real" / "deep").symlink_to("/etc")
        assert Path(here).read_text() == "content"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make links of others")
def test_a_link_of_somebody_leads_into_his_own_directories_only(home: Path) -> None:
    os.lchown(home / "link", 1234, 1234)
    with pytest.raises(OSError, match="directory of another user"):
        anchor.settled(f"{home}/link/deep/file")
    os.chown(home / "real" / "deep", 1234, 1234)
    assert anchor.settled(f"{home}/link/deep/file") == f"{home}/real/deep/file"
    os.chown(home / "real" / "deep", 1235, 1234)
    with pytest.raises(OSError, match="directory of another user"):
        anchor.settled(f"{home}/link/deep/file")
