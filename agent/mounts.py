"""Mounted file systems by device number, from proc_pid_mountinfo(5). Looks only."""

from __future__ import annotations

import dataclasses
import os
import re
from collections.abc import Iterator
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Mount:
    """One line of mountinfo."""

    device: int  # as stat gives it; not so on btrfs, whose subvolumes have numbers of their own
    point: str
    type: str
    source: str
    options: tuple[str, ...] = ()  # of the file system itself: which controllers a cgroup has

    @property
    def name(self) -> str:
        """Type and source, as FileFacts carries them: `ext4 /dev/sda1`, `nfs4 server:/export`."""
        return f"{self.type} {self.source}"


def mountinfo() -> str:
    """This process's mounts; "" where /proc does not say."""
    try:
        return os.fsdecode(Path("/proc/self/mountinfo").read_bytes())
    except OSError:
        return ""


def parse(text: str) -> Iterator[Mount]:
    """The mounts in a mountinfo; lines that are none are passed over."""
    for line in text.split("\n"):
        before, _, after = line.partition(" - ")
        fields, rest = before.split(" "), after.split(" ")
        if len(fields) < 5 or len(rest) < 2:
            continue
        major, _, minor = fields[2].partition(":")
        if major.isdigit() and minor.isdigit():
            device = os.makedev(int(major), int(minor))
            options = tuple(rest[2].split(",")) if len(rest) > 2 else ()
            yield Mount(device, _unescaped(fields[4]), rest[0], _unescaped(rest[1]), options)


def _unescaped(word: str) -> str:
    """Space, tab, newline and backslash come as octal escapes."""
    return re.sub(r"\\([0-7]{3})", lambda found: chr(int(found[1], 8)), word)


def names(text: str) -> dict[int, str]:
    """Device number -> `Mount.name`."""
    return {one.device: one.name for one in parse(text)}
