"""Puts this host's time before every line of its input, the moment it comes."""

import sys
import time

for line in sys.stdin:
    print(time.time(), line, end="", flush=True)
