"""agent/repair.py: sockets of another process, out of repair mode."""

from __future__ import annotations

import os
import socket

from agent import repair


def test_sockets_that_are_in_no_repair_mode_and_processes_that_have_gone_are_left_alone() -> None:
    """A connection works as before; what is no TCP socket does not matter. With repair mode: the live tests."""
    listening = socket.create_server(("127.0.0.1", 0))
    near = socket.create_connection(listening.getsockname())
    far, _ = listening.accept()
    one, other = socket.socketpair()
    try:
        assert repair.end([os.getpid(), 2**22 + 1]) == 0
        near.sendall(b"x")
        assert far.recv(1) == b"x"
    finally:
        for each in (listening, near, far, one, other):
            each.close()
