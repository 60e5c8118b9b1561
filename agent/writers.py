"""Who may write to a file, and how: whether its time stamps and its size tell of every change. Looks only."""

from __future__ import annotations

from collections.abc import Iterable

from agent import descriptors

Key = tuple[int, int]
"""Device and inode of a file."""


def mapped_to_write(pids: Iterable[int]) -> set[Key]:
    """Files that these processes have mapped shared and writable.

    Stores into a page that is dirty already leave the time stamps alone, so these may change unseen.
    """
    return {
        (mapping.status.st_dev, mapping.status.st_ino)
        for pid in pids
        for mapping in descriptors.mapped(pid, written_only=True)
    }


def only_appended(pids: Iterable[int]) -> set[Key]:
    """Files that these processes have open for writing, every descriptor of them with O_APPEND.

    The kernel puts what is written through such a descriptor at the end, pwrite(2) too; so only the tail can be new, as
    long as nobody else writes to the file or cuts it off.
    """
    appended: set[Key] = set()
    written: set[Key] = set()
    for pid in pids:
        for one in descriptors.opened(pid):
            if one.writing:
                (appended if one.appending else written).add((one.status.st_dev, one.status.st_ino))
    return appended - written
