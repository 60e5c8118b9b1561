"""A client that numbers its messages, one every 20 ms, and writes down every answer: number, nanoseconds, what came.

It never connects a second time: an error on its one connection ends it, and its last line is `error …`. With `--new` a
new connection is made beside for every so many messages, each of which must be served as well; its lines begin with
`new`.
"""

from __future__ import annotations

import argparse
import os
import socket
import threading
import time


def main() -> None:
    """Send and write down until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", type=int, default=7000)
    parser.add_argument("--log", required=True)
    parser.add_argument("--new", type=int, default=0)
    parser.add_argument("--source", default="", help="the address to connect from")
    options = parser.parse_args()
    with open(options.log, "w", buffering=1, encoding="ascii") as log:
        where = (options.address, options.port)
        try:
            near = (options.source, 0) if options.source else None
            connection = socket.create_connection(where, timeout=60, source_address=near)
        except OSError as error:
            log.write(f"error {error}\n")
            return
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        threading.Thread(target=listen, args=(connection, log), daemon=True).start()
        number = 0
        while True:
            number += 1
            try:
                connection.sendall(f"{number}\n".encode())
            except OSError as error:
                log.write(f"error {error}\n")
                os._exit(1)
            if options.new and number % options.new == 0:
                threading.Thread(target=once, args=(where, number, log), daemon=True).start()
            time.sleep(0.02)


def listen(connection: socket.socket, log: object) -> None:
    """Write every answer down."""
    write = log.write  # type: ignore[attr-defined]
    try:
        for line in connection.makefile("r", encoding="ascii"):
            write(f"{line.strip()} {time.monotonic_ns()}\n")
        write("error end of stream\n")
    except OSError as error:
        write(f"error {error}\n")
    os._exit(1)


def once(where: tuple[str, int], number: int, log: object) -> None:
    """A new client: connect, send one line, get it back."""
    write = log.write  # type: ignore[attr-defined]
    try:
        with socket.create_connection(where, timeout=60) as connection:
            connection.sendall(f"{number}\n".encode())
            answer = connection.makefile("r", encoding="ascii").readline().strip()
        write(f"new {number} {'served' if answer == str(number) else 'not served'}\n")
    except OSError as error:
        write(f"new {number} failed: {error}\n")


if __name__ == "__main__":
    main()
