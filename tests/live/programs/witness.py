"""A process that can tell whether it was moved well. Standard library only; runs on the lab's hosts.

Its memory is a map of pages, each filled with its own number and version; one thread dirties pages at a given rate, one
verifies all of them round after round, the main thread asks a child over pipes and appends to a log:

    SEQUENCE REALTIME_NS SWEEPS BAD_PAGES CHILD_ANSWERS_WRONG

A gap in the times is the downtime as a program sees it. SIGTERM ends it in order.
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import signal
import struct
import threading
import time

PAGE = 4096


class Memory:
    """Pages that know what they should hold."""

    def __init__(self, mib: int, seed: int, noise: int = PAGE) -> None:
        self.count = mib * 256
        self.map = mmap.mmap(-1, self.count * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.versions = [0] * self.count
        self.locks = [threading.Lock() for _ in range(64)]
        self.salt = random.Random(seed).randbytes(noise - 16)
        self.bad = 0
        self.sweeps = 0
        for index in range(self.count):
            self.write(index)

    def content(self, index: int) -> bytes:
        """What the page must hold now: each page is different, and by itself incompressible.

        Two near each other have nothing in common where there is much more noise than a compressor looks back.
        """
        body = PAGE - 16
        shift = index % body if len(self.salt) == body else index * body % (len(self.salt) - body)
        piece = self.salt[shift : shift + body]
        return struct.pack("<QQ", index, self.versions[index]) + piece + self.salt[: body - len(piece)]

    def write(self, index: int) -> None:
        """A new version of a page."""
        with self.locks[index % 64]:
            self.versions[index] += 1
            self.map[index * PAGE : (index + 1) * PAGE] = self.content(index)

    def verify(self) -> None:
        """Look at every page once."""
        for index in range(self.count):
            with self.locks[index % 64]:
                if self.map[index * PAGE : (index + 1) * PAGE] != self.content(index):
                    self.bad += 1
            if index % 64 == 0:
                time.sleep(0)
        self.sweeps += 1


def dirty(memory: Memory, pages_a_second: int, hot: int) -> None:
    """Write pages of the hot set at a steady rate."""
    chooser = random.Random(1)
    tick = 0.01
    owed = 0.0
    while True:
        owed += pages_a_second * tick
        for _ in range(int(owed)):
            memory.write(chooser.randrange(min(hot, memory.count)))
        owed -= int(owed)
        time.sleep(tick)


def answer(questions: int, answers: int) -> None:
    """The child: one number in, one out."""
    while data := os.read(questions, 8):
        os.write(answers, struct.pack("<Q", struct.unpack("<Q", data)[0] * 3 + 1))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--mib", type=int, default=16)
    parser.add_argument("--log", required=True)
    parser.add_argument("--rate", type=int, default=500, help="pages dirtied a second")
    parser.add_argument("--hot", type=int, default=1 << 40, help="pages that are dirtied again and again")
    parser.add_argument("--rest", type=float, default=0.05, help="seconds between two looks at all of memory")
    parser.add_argument("--noise", type=int, default=PAGE, help="bytes of noise that pages are made of")
    parser.add_argument("--interval", type=float, default=0.002, help="seconds between lines of the log")
    options = parser.parse_args()

    to_child, to_parent = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(to_child[1])
        os.close(to_parent[0])
        answer(to_child[0], to_parent[1])
        os._exit(0)
    os.close(to_child[0])
    os.close(to_parent[1])

    log = os.open(options.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    memory = Memory(options.mib, seed=7, noise=options.noise)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    threading.Thread(target=dirty, args=(memory, options.rate, options.hot), daemon=True).start()

    def sweep() -> None:
        while True:
            memory.verify()
            time.sleep(options.rest)

    threading.Thread(target=sweep, daemon=True).start()
    sequence = wrong = 0
    while not stop.is_set():
        os.write(to_child[1], struct.pack("<Q", sequence))
        wrong += struct.unpack("<Q", os.read(to_parent[0], 8))[0] != sequence * 3 + 1
        os.write(log, b"%d %d %d %d %d\n" % (sequence, time.time_ns(), memory.sweeps, memory.bad, wrong))
        sequence += 1
        time.sleep(options.interval)
    os._exit(0)


if __name__ == "__main__":
    main()
