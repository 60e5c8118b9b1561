"""Memory of a known kind, at rest. Standard library only; runs on the lab's hosts.

    heap.py random|objects MIB READY

`random` cannot be compressed; `objects` is what a Python program has: records of words, numbers and dates. The
file READY is there once it is as large as asked for.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

PAGE = 4096
WORDS = 20000


def resident() -> int:
    """Our own memory, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE >> 20


def objects(mib: int) -> list[dict[str, object]]:
    """Records until so much memory is taken."""
    chooser = random.Random(1)
    words = ["".join(chooser.choices("etaoinshrdlu", k=chooser.randint(2, 12))) for _ in range(WORDS)]
    records: list[dict[str, object]] = []
    while resident() < mib:
        for _ in range(1000):
            records.append(
                {
                    "id": len(records) * 1009,
                    "name": f"{chooser.choice(words)} {chooser.choice(words)}",
                    "price": chooser.random() * 100,
                    "tags": chooser.sample(words, 3),
                    "date": (2000 + chooser.randrange(30), chooser.randrange(12) + 1, chooser.randrange(28) + 1),
                }
            )
    return records


def main() -> None:
    kind, mib, ready = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    kept: object = objects(mib) if kind == "objects" else [os.urandom(1 << 20) for _ in range(mib)]
    ready.touch()
    while kept:
        time.sleep(3600)


if __name__ == "__main__":
    main()
