"""Where the lab keeps what it built, and the rule for when to build again.

A built thing lies beside a file NAME.key that holds a digest of its recipe; another digest means that it is
stale. Building happens under one lock, so that two labs that start together build once.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

PLACE_VARIABLE = "MIGRATE_LAB_DIR"
REPOSITORY = Path(__file__).resolve().parent.parent.parent


def place() -> Path:
    """The lab's folder: $MIGRATE_LAB_DIR, or ~/.cache/migrate-lab."""
    chosen = os.environ.get(PLACE_VARIABLE)
    folder = Path(chosen) if chosen else Path.home() / ".cache" / "migrate-lab"
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def digest(*parts: str | bytes) -> str:
    """A short name for a recipe; the parts cannot run into each other."""
    total = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        total.update(len(data).to_bytes(8, "big") + data)
    return total.hexdigest()[:16]


def _key_file(thing: Path) -> Path:
    return thing.with_name(thing.name + ".key")


def is_fresh(thing: Path, key: str) -> bool:
    """Was this built by the recipe with this digest?"""
    key_file = _key_file(thing)
    return thing.exists() and key_file.exists() and key_file.read_text() == key


def take_key(thing: Path) -> str:
    """Marks a thing stale for as long as it is changed; its key goes to mark_fresh() afterwards."""
    key = _key_file(thing).read_text()
    mark_stale(thing)
    return key


def mark_stale(thing: Path) -> None:
    """Said before a thing is taken apart, so that an interrupted build is never taken for a good one."""
    _key_file(thing).unlink(missing_ok=True)


def mark_fresh(thing: Path, key: str) -> None:
    """Said after a thing was built."""
    _key_file(thing).write_text(key)


@contextlib.contextmanager
def lock(name: str) -> Iterator[None]:
    """Holds the named lock; it is gone with the process that holds it, however that ends."""
    folder = place() / "locks"
    folder.mkdir(exist_ok=True)
    with (folder / name).open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
