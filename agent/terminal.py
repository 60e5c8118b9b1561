"""A tree's new terminal on the target, as the agent has it: its holder is started, told, and named to people.

Does nothing where a migration gives the tree none. What the holder is and does is `holder.py`'s.
"""

from __future__ import annotations

import shlex
import socket
from collections.abc import Callable, Sequence
from pathlib import Path

from agent import process, program, scope, ttyimages
from agent.bulk import header
from agent.journal import Journal, Record
from agent.settings import Settings

_PATIENCE = 20.0
"""Seconds for a holder to do what it is told."""


class Terminal:
    """The terminal of one migration to this host; `mode` and `ptys` are those of `protocol.Prepare`."""

    def __init__(self, migration: str, socket_path: Path, mode: str, ptys: Sequence[int]) -> None:
        self._migration = migration
        self._socket = socket_path
        self._mode = mode
        self._ptys = ptys

    @classmethod
    def of(cls, settings: Settings, journal: Journal) -> Terminal:
        """As the journal's first record has it."""
        facts = journal.facts(Record.PREPARED.value)
        path = settings.run / f"{journal.migration}.terminal"
        return cls(journal.migration, path, facts.get("terminal", ""), facts.get("ptys", ()))

    @property
    def path(self) -> str:
        """Where it is reached; "" for none."""
        return str(self._socket) if self._mode else ""

    @property
    def shown_by(self) -> str:
        """The command that shows it here; "" for none."""
        return shlex.join(program.for_people("terminal", self.path)) if self._mode else ""

    def around(self, wrapper: Sequence[str]) -> list[str]:
        """What starts a criu that restores: a new holder, in a scope that outlives our session, and `wrapper`."""
        if not self._mode:
            return list(wrapper)
        own = scope.own(f"terminal-{self._migration}")
        ptys = ",".join(map(str, self._ptys))
        return [*own, *program.command("holder", self.path, self._mode, ptys), *wrapper]

    def fit(self, directory: Path) -> None:
        """Make the images of the last round fit for it. Raises ImageError."""
        if self._mode:
            ttyimages.fit(directory)

    def foreground(self, directory: Path, root: int, pids: Sequence[int]) -> None:
        """Before the tree runs: the group in its foreground is what it was, or the root's. Raises OSError."""
        if self._mode:
            group = ttyimages.fit(directory)
            groups = {process.read_stat(pid).pgid for pid in pids}
            self._say(f"foreground-{group if group in groups else process.read_stat(root).pgid}")

    def runs(self, pid: int, tell: Callable[[str], None]) -> None:
        """The tree runs as `pid`."""
        if self._mode:
            try:
                self._say(f"runs-{pid}")
            except OSError as error:
                tell(f"the holder of its terminal has gone: {error}")

    def _say(self, words: str) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(_PATIENCE)
            connection.connect(self.path)
            connection.sendall(header(words))
            if wrong := connection.recv(1 << 10):
                raise OSError(wrong.decode(errors="replace"))
