"""A terminal of a lab host with a program in it, as somebody who sits at it has it: a real SSH session's."""

from __future__ import annotations

import re
import time
from collections.abc import Callable

from tests.live.lab_host import LabHost, until


class Screen:
    """A terminal of 40 rows and 120 columns on a host, with a program in it."""

    def __init__(self, host: LabHost, command: str) -> None:
        self._channel = host.start(command, pty=True)
        self._slow = host.slow
        self.text = ""
        self._seen = 0

    def type(self, keys: str) -> None:
        """Press these."""
        self._channel.sendall(keys.encode())

    def expect(self, pattern: str, seconds: float = 60) -> re.Match[str]:
        """Wait until this comes, after what was expected before."""
        deadline = time.monotonic() + seconds * self._slow
        while True:
            found = re.compile(pattern).search(self.text, self._seen)
            if found:
                self._seen = found.end()
                return found
            self._take()
            assert time.monotonic() < deadline, f"{pattern!r} does not come after {self.text[self._seen :]!r}"
            time.sleep(0.02)

    def resize(self, rows: int, columns: int) -> None:
        """Pull at the window."""
        self._channel.resize_pty(width=columns, height=rows)

    def close(self) -> None:
        """Close the window."""
        self._channel.close()

    @property
    def status(self) -> int:
        """Wait for its program's end: the exit status. What it still says is taken, or it would wait for us."""
        deadline = time.monotonic() + 60 * self._slow
        while not self._channel.exit_status_ready():
            self._take()
            assert time.monotonic() < deadline, f"it does not end after {self.text[-2000:]!r}"
            time.sleep(0.02)
        return self._channel.recv_exit_status()

    def _take(self) -> None:
        while self._channel.recv_ready():
            self.text += self._channel.recv(1 << 16).decode(errors="replace")


def shell(screen: Callable[[LabHost, str], Screen], host: LabHost) -> tuple[Screen, int]:
    """An interactive shell that leads its session, and its PID."""
    old = screen(host, "exec env PS1='ready> ' bash --norc --noprofile -i")
    old.expect("ready> ")
    old.type("echo pid $$\r")
    return old, int(old.expect(r"pid (\d+)")[1])


def child(host: LabHost, parent: int) -> int:
    """The one process below a shell, once it is there."""
    until(lambda: host.run(f"pgrep -P {parent}", check=False).status == 0, "no child")
    return int(host.run(f"pgrep -P {parent}").out)


def running(now: Screen, pid: int) -> None:
    """`migrate` says that it has arrived."""
    now.expect(rf"running on beta as pid {pid}: down .*\n")
