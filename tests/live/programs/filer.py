"""Writes files in ways that a copy can get wrong, and can tell whether it did. Standard library; on the lab's hosts.

filer.py log PATH              a line a millisecond: its number, and the time in ns
filer.py make PATH BLOCKS      a file of blocks, each with its number, its version and a checksum
filer.py rewrite PATH RATE     rewrites so many of them a second, one after the other in no order
filer.py verify PATH           prints {"blocks", "bad", "versions"}: a block is bad when it is torn, or not its own
filer.py hold PATH…            holds files open: for reading, and with a + before its path for writing
"""

from __future__ import annotations

import json
import os
import random
import struct
import sys
import time
import zlib

BLOCK = 64 * 1024
_HEAD = struct.Struct("<QQ")


def content(number: int, version: int) -> bytes:
    """What a block must hold; compressible, as files are."""
    body = _HEAD.pack(number, version) * (BLOCK // _HEAD.size)
    body = body[: BLOCK - 4]
    return body + struct.pack("<I", zlib.crc32(body))


def log(path: str) -> None:
    """A thousand lines a second; what was missed while it could not run is caught up with."""
    with open(path, "ab", buffering=0) as file:
        number, started = 0, time.monotonic()
        while True:
            file.write(b"%d %d\n" % (number, time.time_ns()))
            number += 1
            ahead = started + number / 1000 - time.monotonic()
            if ahead > 0:
                time.sleep(ahead)
            elif ahead < -0.05:
                started -= ahead  # it was held: no hurry


def make(path: str, blocks: int) -> None:
    """All at version 0."""
    with open(path, "wb") as file:
        for number in range(blocks):
            file.write(content(number, 0))


def rewrite(path: str, rate: float) -> None:
    """In place; each block with one write."""
    descriptor = os.open(path, os.O_RDWR)
    versions = [0] * (os.fstat(descriptor).st_size // BLOCK)
    choice = random.Random(1)
    while True:
        number = choice.randrange(len(versions))
        versions[number] += 1
        os.pwrite(descriptor, content(number, versions[number]), number * BLOCK)
        time.sleep(1 / rate)


def verify(path: str) -> None:
    """Of a file that nobody writes to meanwhile."""
    bad = total = number = 0
    with open(path, "rb") as file:
        while block := file.read(BLOCK):
            found, version = _HEAD.unpack_from(block)
            bad += found != number or block != content(number, version)
            total += version
            number += 1
    print(json.dumps({"blocks": number, "bad": bad, "versions": total}))


def hold(*paths: str) -> None:
    """Until it is killed."""
    held = [os.open(path.lstrip("+"), os.O_RDWR if path.startswith("+") else os.O_RDONLY) for path in paths]
    while held:
        time.sleep(0.05)


def main(what: str, *words: str) -> None:
    """By the first argument."""
    if what == "make":
        make(words[0], int(words[1]))
    elif what == "rewrite":
        rewrite(words[0], float(words[1]))
    elif what == "log":
        log(words[0])
    elif what == "verify":
        verify(words[0])
    else:
        hold(*words)


if __name__ == "__main__":
    main(*sys.argv[1:])
