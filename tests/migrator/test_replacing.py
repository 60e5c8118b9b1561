"""A file's new content: whole, or the old one."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from migrator.replacing import replace


def test_a_new_content_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "a"
    for text in ("one", "größer"):
        replace(path, text)
        assert path.read_text(encoding="utf-8") == text
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [path]


def test_what_fails_leaves_the_old_one_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a"
    replace(path, "one")
    with pytest.raises(UnicodeEncodeError):
        replace(path, "two\udcff")
    assert path.read_text() == "one"
    assert list(tmp_path.iterdir()) == [path]
