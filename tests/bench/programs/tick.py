"""As small as a process can be that knows how long it stood still. Standard library only; runs on the lab's hosts.

    tick.py FILE

Looks at the clock a thousand times a second, and holds no file open. On SIGUSR1 it writes its longest pause in seconds
into FILE, and forgets it.
"""

import signal
import sys
import time


def main() -> None:
    longest = 0.0

    def tell(*_: object) -> None:
        nonlocal longest
        with open(sys.argv[1], "w") as file:
            file.write(f"{longest}\n")
        longest = 0.0

    signal.signal(signal.SIGUSR1, tell)
    last = time.time()
    while True:
        time.sleep(0.001)
        now = time.time()
        longest, last = max(longest, now - last), now


if __name__ == "__main__":
    main()
