"""Behind the point of no return: the tree is made to run on the target, its memory filled, both hosts tidied up."""

from __future__ import annotations

import contextlib
import shlex
import time

from agent import protocol
from migrator import errors
from migrator.hosts import Ends
from migrator.peer import PeerFault, PeerLost
from migrator.phases import Observer, Phase
from migrator.words import pid_text, seconds_text

_LOST = (PeerFault, PeerLost, errors.MigrateError)


def pasteable(command: str) -> str:
    """A command that the target gave, for the operator to paste behind `ssh HOST`: "" where a shell here, or his
    terminal, would make anything else of it than words for that host."""
    with contextlib.suppress(ValueError):
        if command.isprintable() and shlex.join(shlex.split(command)) == command and "'" not in command:
            return command
    return ""


class Forward:
    """The rest of one migration after COMMIT. Nothing here is ever undone."""

    def __init__(self, migration: str, ends: Ends, observer: Observer) -> None:
        self._id = migration
        self._ends = ends
        self._observer = observer
        self.pid = 0
        """The tree's PID on the target, once it runs."""
        self.inside_pid = 0
        """Its PID in the namespace of its own that it has there, if it has one."""
        self.downtime = 0.0
        """Seconds from the freeze's asking to the word that it runs."""
        self.filled = protocol.Filled(0, 0.0, 0, 0.0)
        self.memory_lost = False
        """Both that filled it were killed: the tree is stopped there."""
        self.terminal = ""
        """The command that shows the tree's new terminal on the target."""
        self.leftovers: list[str] = []
        """HOST: what could not be removed."""

    @property
    def _recover(self) -> str:
        return f"migrate recover {self._id}"

    async def run(
        self, killed: protocol.Killed, *, frozen_at: float, instant: bool, inside_pid: int = 0, terminal: bool = False
    ) -> None:
        """RESUME, FILL and CLEAN. `frozen_at` is time.monotonic() before the freeze was asked for, `inside_pid` is the
        tree's PID in its namespace there, 0 where it gets none. With `terminal` it gets one there.

        Raises NotResumed, InDoubt.
        """
        await self._observer.phase(Phase.RESUME)
        self.pid, self.inside_pid = await self._resume(killed), inside_pid
        self.downtime = time.monotonic() - frozen_at
        if instant:  # with much memory it is a while until the report
            where = f"{self._ends.target.host} as {pid_text(self.pid, inside_pid)}"
            self._observer.note(f"it runs on {where}, down {seconds_text(self.downtime)}")
            await self._observer.phase(Phase.FILL)
        if terminal:
            await self._find_terminal()
        await self._fill()
        await self._observer.phase(Phase.CLEAN)
        for end in ("target", "source"):
            await self._clean(end)

    async def _resume(self, killed: protocol.Killed) -> int:
        try:
            return (await self._ends.target.resume(protocol.Resume(killed.tasks))).pid
        except PeerFault as fault:
            log = f"{fault.fault.log} on {fault.host}" if fault.fault.log else ""
            message = f"{fault.host}: {fault.fault.message}"
            # only criu's own failure says that nothing runs there; a full disk at RESUMED says nothing of the kind
            kind = errors.NotResumed if fault.fault.code is protocol.FaultCode.CRIU else errors.InDoubt
            raise kind(message, hint=self._recover, log=log) from fault
        except PeerLost as lost:
            self._observer.note(f"{lost}; connecting again")
        try:
            await self._ends.replace_target()
            return (await self._ends.target.settle(protocol.Settle(self._id, protocol.Verdict.RESUME))).pid
        except _LOST as error:
            raise errors.InDoubt(f"at RESUME: {error}", hint=self._recover) from error

    async def _find_terminal(self) -> None:
        """It runs, and whoever holds its terminal says by what that is shown."""
        try:
            self.terminal = pasteable((await self._ends.target.journal(protocol.ReadJournal(self._id))).terminal)
        except (PeerFault, PeerLost) as error:
            self._observer.note(f"{error}: what shows its terminal is not known ({self._recover})")

    async def _fill(self) -> None:
        """Wait until memory is whole: the tree runs meanwhile. What fails here the target finishes by itself."""
        try:
            self.filled = await self._ends.target.fill()
        except (PeerFault, PeerLost) as error:
            alone = ": its memory goes on being filled there" if isinstance(error, PeerLost) else ""
            self._observer.note(f"{error}{alone}")

    async def _clean(self, end: str) -> None:
        """Remove what is left on a host. The tree runs: what fails here is a leftover, named, and no more."""
        peer = self._ends.target if end == "target" else self._ends.source
        try:
            try:
                done = await peer.finish()
                left, lost = done.items, done.memory_lost
            except (PeerFault, PeerLost) as error:
                known_by_journal = isinstance(error, PeerFault) and error.fault.code is protocol.FaultCode.BAD_REQUEST
                if not known_by_journal:  # it was replaced before
                    await (self._ends.replace_target() if end == "target" else self._ends.replace_source())
                    peer = self._ends.target if end == "target" else self._ends.source
                settled = await peer.settle(protocol.Settle(self._id, protocol.Verdict.CLEAN))
                left, lost = settled.leftovers, settled.memory_lost
            self.memory_lost |= lost
            self.leftovers += [f"{peer.host}: {item}" for item in left]
        except _LOST as error:
            self.leftovers.append(f"{peer.host}: not cleaned up: {error} ({self._recover})")
