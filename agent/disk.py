"""What is on disk when a call returns, and whose it is. Knows nothing of what it is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Union


class NotOurs(Exception):
    """A directory in which somebody else could have put what we would take for our own."""


def trusted(path: Path) -> None:
    """Raises NotOurs for a directory that is there and that others made, or may write to."""
    try:
        status = os.stat(path)
    except OSError:
        return  # whoever wants it makes it, or fails
    if status.st_uid != os.geteuid():
        raise NotOurs(f"{path} belongs to user {status.st_uid}: remove it, or find out who made it")
    if status.st_mode & 0o022:
        raise NotOurs(f"{path} is writable for others: chmod go-w {path}, and see what is in it")


def to_disk(path: Union[str, Path]) -> None:
    """A file's content, or a directory's names: on return a power cut does not take it away. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
