"""Who recovers a migration on this host: one at a time, for as long as its agent's conversation lasts.

A lock on the migration's directory. It leaves no file, and dies with whoever holds it. It orders operators' commands,
and no more: what may be done the journal says, whoever asks.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from pathlib import Path

PATIENCE = 60.0
"""Seconds to wait for another recovery of the same migration: most are over in a few."""
_PAUSE = 0.1


class Claimed(Exception):
    """Another recovery is at work on it."""


async def claim(directory: Path) -> int:
    """Wait for our turn with the migration of this directory. Returns the descriptor that holds it. Raises Claimed."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    for _ in range(int(PATIENCE / _PAUSE)):
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            await asyncio.sleep(_PAUSE)
            continue
        except OSError:
            return descriptor  # a directory that can't be locked, on NFS: then only the journals order what is done
        return descriptor
    os.close(descriptor)
    raise Claimed(f"another recovery of migration {directory.name} is at work")
