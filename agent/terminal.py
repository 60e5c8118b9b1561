"""A tree's new terminal on the target, as the agent has it: its holder is started, told, and named to people.

Does nothing where a migration gives the tree none. What the holder is and does is `holder.py`'s.
"""

from __future__ import annotations

import contextlib
import shlex
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Optional

from agent import inside, process, program, scope, ttyimages
from agent.bulk import header
from agent.journal import Journal, Record
from agent.settings import Settings

_PATIENCE = 20.0
"""Seconds for a holder to do what it is told."""


class Terminal:
    """The terminal of one migration to this host; `mode`, `ptys` and `root` are those of `protocol.Prepare`."""

    def __init__(self, migration: str, socket_path: Path, mode: str, ptys: Sequence[int], root: int) -> None:
        self._migration = migration
        self._socket = socket_path
        self._mode = mode
        self._ptys = ptys
        self._root = root
        self._contact: Optional[socket.socket] = None

    @classmethod
    def of(cls, settings: Settings, journal: Journal) -> Terminal:
        """As the journal's first record has it."""
        facts = journal.facts(Record.PREPARED.value)
        path = settings.run / f"{journal.migration}.terminal"
        return cls(journal.migration, path, facts.get("terminal", ""), facts.get("ptys", ()), facts["root"])

    @property
    def path(self) -> str:
        """Where it is reached; "" for none."""
        return str(self._socket) if self._mode else ""

    @property
    def hangs_up(self) -> bool:
        """Whether the tree is hung up when nobody shows it."""
        return self._mode == "attach"

    def shown_by(self) -> str:
        """The command that shows it here, by asking its holder; "" where it has none, or none any more."""
        if not self._mode:
            return ""
        try:
            session = self._ask("shown")
        except (FileNotFoundError, ConnectionRefusedError):
            return ""
        except OSError:  # it does not answer in time, but is there
            session = ""
        return session or shlex.join(program.for_people("terminal", self.path))

    def around(self, place: Sequence[str], maker: Sequence[str]) -> list[str]:
        """What starts a criu that restores: a new holder, in a scope that outlives our session.

        `place` is what gives criu and the tree a scope of theirs, `maker` what makes their PID namespace. The holder
        has to be inside of that: the tree's session is its, and so is to have a number there.
        """
        if not self._mode:
            return [*place, *maker]
        self._socket.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # it goes with a reboot
        ptys = ",".join(map(str, self._ptys))
        holder = program.command("holder", self.path, self._mode, ptys)
        if maker:
            return [*place, *maker, *holder]
        return [*scope.own(f"terminal-{self._migration}"), *holder, *place]

    def fit(self, directory: Path) -> None:
        """Make the images of the last round fit for it. Raises ImageError."""
        if self._mode:
            ttyimages.fit(directory)

    def foreground(self, directory: Path, root: int, pids: Sequence[int]) -> None:
        """Before the tree runs: the group in its foreground is what it was, or the root's. Raises OSError."""
        if self._mode:
            group = ttyimages.fit(directory)
            # as the holder has them, which is where the tree is
            groups = {pid: inside.numbers(process.task_facts(pid)).pgid for pid in pids}
            self._say(f"foreground-{group if group in groups.values() else groups[root]}")

    def runs(self, tell: Callable[[str], None]) -> None:
        """The tree runs."""
        if self._mode:
            try:
                if self.hangs_up:
                    self._contact = self._connect("agent")
                self._say(f"runs-{self._root}")
            except OSError as error:
                tell(f"the holder of its terminal has gone: {error}")

    def contact_lost(self) -> None:
        """Nobody is heard of any more: who seems to show it may be as dead. It is hung up, if it is that kind."""
        if self._contact is not None:
            with self._contact, contextlib.suppress(OSError):
                self._contact.sendall(b"!")
            self._contact = None

    def _say(self, words: str) -> None:
        if wrong := self._ask(words):
            raise OSError(wrong)

    def _ask(self, words: str) -> str:
        with self._connect(words) as connection:
            said = bytearray()
            while piece := connection.recv(1 << 10):
                said += piece
            return said.decode(errors="replace")

    def _connect(self, words: str) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        connection.settimeout(_PATIENCE)
        try:
            connection.connect(self.path)
            connection.sendall(header(words))
        except BaseException:
            connection.close()
            raise
        return connection
