"""A server on an address of its own: sends back every line that it gets, to any number of clients, in one thread."""

from __future__ import annotations

import argparse
import selectors
import socket


def main() -> None:
    """Listen and echo until killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--address", required=True)
    parser.add_argument("--port", type=int, default=7000)
    parser.add_argument("--mib", type=int, default=1)
    options = parser.parse_args()
    ballast = bytearray(b"\x5a" * (options.mib << 20))
    family = socket.AF_INET6 if ":" in options.address else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listening.bind((options.address, options.port))
    listening.listen(128)
    ready = selectors.DefaultSelector()
    ready.register(listening, selectors.EVENT_READ)
    while ballast:
        for key, _ in ready.select():
            one = key.fileobj
            assert isinstance(one, socket.socket)
            if one is listening:
                accepted, _ = listening.accept()
                ready.register(accepted, selectors.EVENT_READ)
                continue
            data = one.recv(65536)
            if data:
                one.sendall(data)
            else:
                ready.unregister(one)
                one.close()


if __name__ == "__main__":
    main()
