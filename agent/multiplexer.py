"""A tmux or dtach session on this host in which a tree's terminal is shown, where one of the two programs is installed.

The session runs our viewer and no more: the terminal is the holder's (holder.py). So the tree lives on when somebody
ends the session or its server, the session ends with the tree, and nothing has to be undone before the tree runs, for
there is no session until then. It has a socket, and so for tmux a server, of its own, and nobody's configuration: that
could keep the server when the session has ended.
"""

from __future__ import annotations

import os
import shlex
import shutil
import socket
import subprocess
from typing import Optional

from agent import program
from agent.jobs import as_a_job

_PATIENCE = 1.0
"""Seconds for its socket to take a connection."""


class Multiplexer:
    """The session beside the holder's socket at `path`, once it was started."""

    def __init__(self, path: str) -> None:
        self._path = path
        self._socket = ""
        self._way: list[str] = []
        self._launcher: Optional[subprocess.Popen[bytes]] = None

    def start(self, root: int, rows: int, columns: int) -> None:
        """Start one of that size in the background, if there is a program for it; `root` is the tree's PID.

        The launcher is a child, whose end `launcher_ended` wants to hear of.
        """
        viewer = program.command("terminal", self._path)
        for name, command, way in (_tmux(self._path, root, rows, columns), _dtach(self._path)):
            if shutil.which(name):
                self._socket, self._way = f"{self._path}.{name}", way
                nothing = subprocess.DEVNULL
                self._launcher = subprocess.Popen(
                    [*command, *viewer], stdin=nothing, stdout=nothing, stderr=nothing, preexec_fn=as_a_job
                )
                return

    @property
    def launcher(self) -> int:
        """PID of who starts the session, and ends when it stands; 0 for nobody."""
        return self._launcher.pid if self._launcher is not None else 0

    def launcher_ended(self) -> None:
        """Take its exit status."""
        assert self._launcher is not None
        if self._launcher.wait() != 0:
            self._way = []
        self._launcher = None

    @property
    def way(self) -> str:
        """The command that shows the session, as somebody may type it; "" where there is none, or none any more."""
        if not self._way or self._launcher is not None:
            return ""
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_PATIENCE)
            try:
                connection.connect(self._socket)
            except OSError:
                return ""
        return shlex.join(self._way)

    def forget(self) -> None:
        """The tree's terminal ends, and its session with it: tmux leaves its socket behind."""
        if self._socket and os.path.exists(self._socket):
            os.unlink(self._socket)


def _tmux(path: str, root: int, rows: int, columns: int) -> tuple[str, list[str], list[str]]:
    """The program, the beginning of the command that starts a session, and the command that shows it.

    Without a status line the session has as many rows as whoever attaches.
    """
    tmux = ["tmux", "-S", f"{path}.tmux"]
    size = [*(["-x", str(columns)] if columns else []), *(["-y", str(rows)] if rows else [])]
    session = ["new-session", "-d", *size, "-s", f"migrated-{root}"]
    quiet = [*tmux, "-f", "/dev/null", "start-server", ";", "set-option", "-g", "status", "off", ";"]
    return "tmux", [*quiet, *session], [*tmux, "attach"]


def _dtach(path: str) -> tuple[str, list[str], list[str]]:
    """The same. It keeps no screen: who attaches is drawn for because the window's size is said anew."""
    return "dtach", ["dtach", "-n", f"{path}.dtach", "-r", "winch"], ["dtach", "-a", f"{path}.dtach", "-r", "winch"]
