"""A tree with many files open, at rest. Standard library only; runs on the lab's hosts.

holder.py make DIRECTORY FILES                   make them, and leave
holder.py hold DIRECTORY FILES PROCESSES READY   hold each of them in each process; READY is there when all do
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path


def main() -> None:
    act, directory, files = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
    paths = [directory / f"file-{number}" for number in range(files)]
    if act == "make":
        directory.mkdir(exist_ok=True)
        for path in paths:
            path.write_bytes(b"the same on both hosts")
        return
    held = [os.open(path, os.O_RDONLY) for path in paths]
    for _ in range(int(sys.argv[4]) - 1):
        if os.fork() == 0:
            break
    else:
        Path(sys.argv[5]).touch()
    while held:
        time.sleep(3600)


if __name__ == "__main__":
    main()
