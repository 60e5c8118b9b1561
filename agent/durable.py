"""What a restore needs, on this host's disk, where that was ordered: it has to outlive a power cut. Removes nothing.

Rounds are put on disk when they have arrived, while the tree runs; in the freeze only the last one is left, and it goes
there beside the restore. HELD waits for it. Only images whose journal says `durable` are used after a reboot: of others
the kernel may have written half.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from agent import mounts
from agent.disk import to_disk
from agent.images import NoRoom
from agent.ledger import Ledger

VOLATILE = ("tmpfs", "ramfs", "devtmpfs")
"""File systems that are in memory."""


def keep(place: Path) -> None:
    """A directory, all that lies in it, and its name. Links are followed, to what is on shared storage. Raises NoRoom.

    What criu makes and removes while it restores is no part of it.
    """
    try:
        for directory, _, names in os.walk(place, topdown=False, followlinks=True):
            for name in names:
                path = Path(directory) / name
                if path.is_file():
                    with contextlib.suppress(FileNotFoundError):
                        to_disk(path)
            to_disk(directory)
        to_disk(place.parent)
    except OSError as error:
        raise NoRoom(f"{error.filename or place}: could not be put on disk: {error.strerror}") from error


def keep_all(place: Path, ledger: Ledger) -> None:
    """The images, and the files that came along. Raises NoRoom."""
    keep(place)
    if left := ledger.settle():
        raise NoRoom(left[0])


def volatile(directory: Path) -> str:
    """The type of the file system that a directory is on, or will be made on, if that does not outlive a power cut; ""
    if it does, as far as that can be told."""
    while not directory.exists():
        directory = directory.parent
    kind = mounts.names(mounts.mountinfo()).get(directory.stat().st_dev, "").split(" ")[0]
    return kind if kind in VOLATILE else ""
