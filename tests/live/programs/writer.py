"""Writes to so many MiB of memory, page after page, as fast as it can. Standard library only, for the lab's hosts."""

from __future__ import annotations

import mmap
import os
import sys

PAGE = 4096


def main() -> None:
    """Until it is killed. What moves it has precedence: a lab's host has one processor."""
    os.nice(10)
    size = int(sys.argv[1]) << 20
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)
    number = 0
    while True:
        number = (number + 1) % 256
        for start in range(0, size, PAGE):
            memory[start] = number


if __name__ == "__main__":
    main()
