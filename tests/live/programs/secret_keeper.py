#!/usr/bin/env python3
"""Keeps a secret in its memory, in its environment and in a pipe, and works on it. It is given as a file, read once."""

import os
import sys
import time

with open(sys.argv[1]) as file:
    parts = file.read().split()
os.unlink(sys.argv[1])
# never whole on a command line or on a disk; from here on it is in memory, many times
secret = "-".join(parts).encode()
pages = bytearray(16 << 20)
for place in range(0, len(pages), 65536):
    pages[place : place + len(secret)] = secret
reading, writing = os.pipe()
os.write(writing, secret)
while True:
    pages[: len(secret)] = secret
    assert pages.count(secret) == len(pages) // 65536
    time.sleep(0.05)
