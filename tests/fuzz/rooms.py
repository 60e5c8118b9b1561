"""A directory for those parsers that read files: emptied for each input, with a neighbour that nothing may touch."""

from __future__ import annotations

import atexit
import functools
import os
import shutil
import stat
import tempfile
from pathlib import Path

_MEMORY = "/dev/shm"
"""Thousands of files a second belong into memory."""
_KEPT = b"somebody else's"


@functools.cache
def _home() -> Path:
    home = Path(tempfile.mkdtemp(prefix="fuzz-", dir=_MEMORY if os.path.isdir(_MEMORY) else None))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return home


def room(name: str) -> Path:
    """An empty directory, the same one whenever the name is given."""
    place = _home() / name
    if place.exists():
        for entry in os.scandir(place):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
    else:
        place.mkdir()
        (_home() / f"{name}.neighbour").write_bytes(_KEPT)
    return place


def only_plain_files(place: Path, ending: str = "") -> list[str]:
    """The names in a room. Whatever was read, these are regular files of ours, and beside it nothing has changed."""
    for path in place.iterdir():
        status = path.lstat()
        assert stat.S_ISREG(status.st_mode), f"{path.name!r} is no regular file"
        assert not status.st_mode & 0o7111, f"{path.name!r} has mode {status.st_mode:o}"
        assert path.name.endswith(ending), f"{path.name!r} is not of the kind that is written"
    home = _home()
    assert (home / f"{place.name}.neighbour").read_bytes() == _KEPT
    strange = {path.name for path in home.iterdir()} - {path.name for path in home.iterdir() if _is_ours(home, path)}
    assert not strange, f"written outside the directory: {sorted(strange)}"
    return sorted(path.name for path in place.iterdir())


def _is_ours(home: Path, path: Path) -> bool:
    return path.is_dir() or (path.name.endswith(".neighbour") and (home / path.name[: -len(".neighbour")]).is_dir())
