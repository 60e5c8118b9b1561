"""Memory in huge pages, of each of which one byte is written to again and again. Standard library only, for the lab.

    huge.py MIB FILE

On SIGUSR1 it looks at everything else, and writes into FILE how many of its huge pages are not what they were.
"""

from __future__ import annotations

import mmap
import os
import signal
import sys
import time
import zlib
from pathlib import Path

HUGE = 2 << 20


def main() -> None:
    """Until it is killed."""
    size, answer = int(sys.argv[1]) << 20, Path(sys.argv[2])
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    starts = range(0, size, HUGE)

    def sums() -> list[int]:
        return [zlib.crc32(memory[start + 1 : start + HUGE]) for start in starts]

    for start in starts:
        memory[start : start + HUGE] = os.urandom(HUGE)
    right = sums()
    signal.signal(
        signal.SIGUSR1, lambda *_: print(sum(a != b for a, b in zip(right, sums())), file=answer.open("w"), flush=True)
    )
    number = 0
    while True:
        number = (number + 1) % 256
        for start in starts:
            memory[start] = number
        time.sleep(0.1)


if __name__ == "__main__":
    main()
