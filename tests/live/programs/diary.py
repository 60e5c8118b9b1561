"""Memory of which it is known what has changed: SIGUSR1 writes over a part of it, SIGUSR2 says what stands there.

diary.py MIB PERCENT    says `ready` into /root/diary.said, and later the number of times, and whether all is right
"""

from __future__ import annotations

import mmap
import signal
import sys
from pathlib import Path

SAID = Path("/root/diary.said")
PAGE = 4096


def main() -> None:
    size, percent = int(sys.argv[1]) << 20, int(sys.argv[2])
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_NOHUGEPAGE)  # one byte of a huge page dirties all of it
    part = size * percent // 100 // PAGE * PAGE
    for at in range(0, size, PAGE):
        memory[at : at + 8] = b"%8x" % at
    times = 0
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGUSR1, signal.SIGUSR2))
    SAID.write_text("ready")
    while True:
        if signal.sigwait((signal.SIGUSR1, signal.SIGUSR2)) == signal.SIGUSR1:
            times += 1
            for at in range(0, part, PAGE):
                memory[at + 8 : at + 16] = b"%8x" % times
        wanted = b"%8x" % times if times else bytes(8)
        right = all(memory[at : at + 8] == b"%8x" % at for at in range(0, size, PAGE))
        right &= all(memory[at + 8 : at + 16] == wanted for at in range(0, part, PAGE))
        SAID.write_text(f"{times} {right}")


if __name__ == "__main__":
    main()
