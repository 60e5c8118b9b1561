"""What `vagrant/lab demo` migrates: keeps its memory busy, and logs a line 20 times a second.

    busy.py LOG MEBIBYTES

A line is a sequence number, the time, and the process's number: a gap in the times is the downtime as the
program itself sees it, a gap in the sequence would be a lost line.
"""

import os
import sys
import time
from pathlib import Path


def main() -> None:
    """Runs until it is killed."""
    memory = bytearray(os.urandom(1 << 20) * int(sys.argv[2]))
    with Path(sys.argv[1]).open("a", buffering=1) as log:
        sequence = 0
        while True:
            sequence += 1
            for page in range(64):
                memory[(sequence * 64 + page) * 4096 % len(memory)] = sequence % 256
            log.write(f"{sequence} {time.time():.3f} {os.getpid()}\n")
            time.sleep(0.05)


if __name__ == "__main__":
    main()
