"""Paths that lead where they did when they were looked at, whoever owns the directories on the way.

A root process that writes below somebody's directory must not be led elsewhere by a link that the owner puts in its
place. So a path is taken apart once (`settled`), and from then on every act on it goes by its directories, opened one
by one without following a link (`at`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

_LINKS = 40
"""Links on the way of one path, as many as the kernel follows."""


def settled(path: str) -> str:
    """A path without links in its directories; its last component is left as it is.

    A link of root's is followed, and one of somebody else's into a directory of his own. Raises OSError, ELOOP for a
    link that leads into another one's directory.
    """
    directory, name = os.path.split(path)
    return os.path.join(_without_links(directory), name)


def _without_links(directory: str) -> str:
    waiting = [part for part in reversed(directory.split("/")) if part]
    reached, owners, links = "/", set[int](), 0
    while waiting:
        part = waiting.pop()
        here = os.path.normpath(os.path.join(reached, part))
        status = os.lstat(here)
        if not stat.S_ISLNK(status.st_mode):
            reached = here
            continue
        links += 1
        owners.add(status.st_uid)
        where = os.readlink(here)
        if links > _LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), directory)
        if where.startswith("/"):
            reached = "/"
        waiting += [part for part in reversed(where.split("/")) if part]
    if owners - {0, os.stat(reached).st_uid}:
        raise OSError(errno.ELOOP, "leads through a link into the directory of another user", directory)
    return reached


@contextlib.contextmanager
def at(path: str) -> Iterator[str]:
    """A name for the file at a settled path, for as long as this lasts, whatever becomes of the links on the way.

    Raises OSError, ELOOP or ENOTDIR where a directory has become a link.
    """
    directory, name = os.path.split(path)
    descriptor = _opened(directory)
    try:
        yield f"/proc/self/fd/{descriptor}/{name}"
    finally:
        os.close(descriptor)


def beside(here: str, path: str) -> str:
    """The name, as `at` gives it, of another file in the same directory."""
    return os.path.join(os.path.dirname(here), os.path.basename(path))


def _opened(directory: str) -> int:
    flags = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open("/", flags)
    for part in directory.split("/"):
        if not part:
            continue
        try:
            following = os.open(part, flags, dir_fd=descriptor)
        except OSError as error:
            raise OSError(error.errno, error.strerror, directory) from None
        finally:
            os.close(descriptor)
        descriptor = following
    return descriptor
