"""A process that tells somebody outside both hosts that it lives: a number over UDP every few milliseconds.

    beacon.py ADDRESS PORT TOKEN [--mib N]

A datagram is `TOKEN SEQUENCE SWEEPS BAD_PAGES CHILD_ANSWERS_WRONG`: the memory is the witness's (see there), verified
round after round, and a child is asked over pipes. The socket is bound to nothing, so each host sends from its own
address. Nothing is written to a file. Standard library only; runs on the lab's hosts.
"""

from __future__ import annotations

import argparse
import importlib
import os
import socket
import struct
import threading
import time


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("port", type=int)
    parser.add_argument("token")
    parser.add_argument("--mib", type=int, default=8)
    parser.add_argument("--interval", type=float, default=0.005)
    parser.add_argument("--rest", type=float, default=0.25, help="seconds between two looks at all of memory")
    options = parser.parse_args()
    witness = importlib.import_module("witness")  # beside us; known by this name on the hosts only

    to_child, to_parent = os.pipe(), os.pipe()
    if os.fork() == 0:
        os.close(to_child[1])
        os.close(to_parent[0])
        witness.answer(to_child[0], to_parent[1])
        os._exit(0)
    os.close(to_child[0])
    os.close(to_parent[1])

    # so much noise that no compressor finds a page twice
    memory = witness.Memory(options.mib, seed=7, noise=4 << 20)
    threading.Thread(target=witness.dirty, args=(memory, 200, 512), daemon=True).start()

    def sweep() -> None:
        while True:
            memory.verify()
            time.sleep(options.rest)

    threading.Thread(target=sweep, daemon=True).start()
    sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    sequence = wrong = 0
    while True:
        os.write(to_child[1], struct.pack("<Q", sequence))
        wrong += struct.unpack("<Q", os.read(to_parent[0], 8))[0] != sequence * 3 + 1
        words = f"{options.token} {sequence} {memory.sweeps} {memory.bad} {wrong}"
        sender.sendto(words.encode(), (options.address, options.port))
        sequence += 1
        time.sleep(options.interval)


if __name__ == "__main__":
    main()
