"""What a migration takes on one host, seen from outside. Standard library only; runs on the lab's hosts.

    watch.py memory PID     samples what the tree of PID takes, and what everything takes that came since the start; in
                            the end one JSON list of [time, images, others, tree], in bytes
    watch.py logs           reads criu's logs of new migrations, which go when a migration is over; in the end one JSON
                            object, name -> text

Both say `watching` when they have begun, and end with their input.

Others are all new processes but the tree and the benchmark's (`migrate`, agents, pager, warden, criu, sshd), by their
PSS. Images are what lies in the migrations' own file systems. The tree is taken by RSS, which is read at no cost to it.
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

PAGE = os.sysconf("SC_PAGE_SIZE")
INTERVAL = 0.02
HOOK = "Running post-restore scripts"
SHORT_INTERVAL = 0.002
"""From the hook on, behind which a restore's log grows and is soon gone."""
LAST_WORDS = ("Restore finished successfully",)
"""Behind it nothing more is read: an open file would keep a file system from being unmounted."""


def processes() -> set[int]:
    """Everybody."""
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def parent(pid: int) -> int:
    """0 where it is gone."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def session(pid: int) -> int:
    """0 where it is gone."""
    with contextlib.suppress(OSError):
        return os.getsid(pid)
    return 0


def pss(pid: int) -> int:
    """Bytes, its part of what it shares."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0


def rss(pid: int) -> int:
    """Bytes."""
    with contextlib.suppress(OSError):
        return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    return 0


def images() -> int:
    """Bytes in the images' own file systems."""
    total = 0
    with contextlib.suppress(OSError):
        for name in os.listdir("/run/migrate"):
            place = f"/run/migrate/{name}"
            if os.path.ismount(place):
                room = os.statvfs(place)
                total += (room.f_blocks - room.f_bfree) * room.f_frsize
    return total


def turns(interval: Callable[[], float] = lambda: INTERVAL) -> Iterator[float]:
    """The time, again and again until our input ends."""
    print("watching", flush=True)
    while not select.select([0], [], [], interval())[0]:
        yield time.time()


def of_bench(pid: int) -> bool:
    """Whether it is what runs `migrate` for the benchmark and puts the time before its lines."""
    with contextlib.suppress(OSError):
        return b"stamp.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return True


def memory(tree: int) -> list[tuple[float, int, int, int]]:
    """Samples of what the tree and the others take."""
    there = processes()
    mine = {os.getpid(), os.getppid(), parent(os.getppid())}
    samples = []
    for now in turns():
        now_there = processes()
        of_tree = {pid for pid in now_there if pid == tree or session(pid) == tree}
        there &= now_there  # a number that is given out again is another process
        others = [pid for pid in now_there - there - mine - of_tree if not of_bench(pid)]
        samples.append((now, images(), sum(map(pss, others)), sum(map(rss, of_tree))))
    return samples


def logs() -> dict[str, str]:
    """Each log to its end. One that lies on the disk is kept open, so that it is whole however soon it is removed; a
    link leads to the images' file system, where it has to be read again and again."""
    found: dict[str, str] = {}
    kept: dict[str, TextIO] = {}
    journals = Path("/var/lib/migrate")
    before = set(journals.glob("*"))
    for _ in turns(lambda: SHORT_INTERVAL if any(HOOK in text for text in found.values()) else INTERVAL):
        for path in journals.glob("*/*.log"):
            seen = found.get(path.name, "")
            if path.parent in before or path.name in kept or any(words in seen for words in LAST_WORDS):
                continue
            with contextlib.suppress(OSError):
                if path.is_symlink():
                    found[path.name] = path.read_text(errors="replace")
                else:
                    kept[path.name] = path.open(errors="replace")
    return {**found, **{name: log.read() for name, log in kept.items()}}


def main() -> None:
    seen: object = memory(int(sys.argv[2])) if sys.argv[1] == "memory" else logs()
    print(json.dumps(seen))


if __name__ == "__main__":
    main()
