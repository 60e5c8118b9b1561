"""Files that a tree has opened, or mapped, since it was inspected: by name first, since the freeze asks this too."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from agent import descriptors, process
from agent.protocol import FileFacts

_MAPPED = re.compile(rb"^\S+ \S+ \S+ \S+ \d+ +(/.*)$", re.MULTILINE)


def found(root: int, seen: set[str]) -> tuple[FileFacts, ...]:
    """Facts of the files whose names are not among those seen; from then on they are. Raises NoSuchProcess.

    A name costs some microseconds; facts are gathered only of processes that have a new one.
    """
    fresh: set[str] = set()
    owners = []
    for pid in process.tree_pids(root):
        new = set(_names(pid)) - seen
        if new:
            owners.append(pid)
            fresh |= new
    seen |= fresh
    files = descriptors.collect(owners).files() if owners else ()
    return tuple(file for file in files if file.path in fresh and not file.deleted)


def _names(pid: int) -> Iterator[str]:
    """What a process has open or mapped, by the kernel's names without its ` (deleted)`; those gone are left out."""
    directory = f"/proc/{pid}/fd"
    links = []
    try:
        for name in os.listdir(directory):
            with contextlib.suppress(FileNotFoundError):  # closed meanwhile
                links.append(os.readlink(f"{directory}/{name}"))
        maps = Path(f"/proc/{pid}/maps").read_bytes()
    except OSError:
        return  # it has ended
    links += [os.fsdecode(name.replace(b"\\012", b"\n")) for name in set(_MAPPED.findall(maps))]
    for link in links:
        if link.startswith("/"):
            yield link[: -len(descriptors.DELETED)] if link.endswith(descriptors.DELETED) else link
