"""What `vagrant/lab demo` migrates: keeps its memory busy, and logs a line 20 times a second.

    busy.py LOG MEBIBYTES

A line is a sequence number, the time, and the process's number: a gap in the times is the downtime as the
program itself sees it, a gap in the sequence would be a lost line. Like most programs it writes much more often
to a small part of its memory than to the rest: this part is what a pre-copy cannot get ahead of.
"""

import os
import sys
import time
from pathlib import Path

PAGE = 4096
OFTEN_WRITTEN = 1 << 20
PAGES_A_TICK = 16


def main() -> None:
    """Runs until it is killed."""
    memory = bytearray(os.urandom(1 << 20) * int(sys.argv[2]))
    with Path(sys.argv[1]).open("a", buffering=1) as log:
        sequence = 0
        while True:
            sequence += 1
            for page in range(PAGES_A_TICK):
                memory[(sequence * PAGES_A_TICK + page) * PAGE % OFTEN_WRITTEN] = sequence % 256
            log.write(f"{sequence} {time.time():.3f} {os.getpid()}\n")
            time.sleep(0.05)


if __name__ == "__main__":
    main()
