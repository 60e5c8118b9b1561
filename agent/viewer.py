"""`python3 agent.pyz terminal SOCKET`: shows the terminal of a tree that a holder keeps on this host (holder.py).

For a tree that was moved with --detach: by hand over `ssh -t`, or inside of tmux or dtach (multiplexer.py). It ends
with the tree, and may be ended at any time; the tree goes on.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import struct
import sys
import termios
import tty

from agent.bulk import header
from agent.protocol import TERMINAL_HEAD, TERMINAL_STREAM, TERMINAL_TYPED, TERMINAL_WINDOW

_PIECE = 1 << 14
"""Bytes of a frame at most; it counts them in 16 bits."""


def main(path: str) -> int:
    """Show the terminal at `path` on standard input and output; the exit code."""
    if not (os.isatty(0) and os.isatty(1)):
        sys.stderr.write("migrate: to show a terminal takes a terminal: `ssh -t`\n")
        return 2
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as holder:
        try:
            holder.connect(path)
        except OSError as error:
            sys.stderr.write(f"migrate: there is no terminal at {path}: {error.strerror}\n")
            return 1
        before = termios.tcgetattr(0)
        try:
            tty.setraw(0, termios.TCSADRAIN)
            _show(holder)
        except OSError:
            pass  # one of the ends has gone, and that is its end
        finally:
            termios.tcsetattr(0, termios.TCSADRAIN, before)
    sys.stderr.write("\nmigrate: the terminal has ended\n")
    return 0


def _show(holder: socket.socket) -> None:
    resized, wake = os.pipe()
    os.set_blocking(wake, False)
    signal.signal(signal.SIGWINCH, lambda *_: None)  # a handler, so that the wake-up descriptor is written
    signal.set_wakeup_fd(wake)
    holder.sendall(header(TERMINAL_STREAM) + _window())
    while True:
        ready, _, _ = select.select([0, holder.fileno(), resized], [], [])
        if resized in ready:
            os.read(resized, _PIECE)
            holder.sendall(_window())
        if 0 in ready:
            data = os.read(0, _PIECE)
            if not data:
                return
            holder.sendall(struct.pack(TERMINAL_HEAD, TERMINAL_TYPED, len(data), 0) + data)
        if holder.fileno() in ready:
            data = holder.recv(_PIECE)
            if not data:
                return
            while data:
                data = data[os.write(1, data) :]


def _window() -> bytes:
    size = os.get_terminal_size(0)
    if not (size.lines and size.columns):  # dtach's, while nobody is attached
        return b""
    return struct.pack(TERMINAL_HEAD, TERMINAL_WINDOW, size.lines, size.columns)
