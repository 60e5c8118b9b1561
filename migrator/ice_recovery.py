"""`migrate recover` of a save or a restore: there is one host, and its journal decides.

source has COMMIT                → the process is dead, or is made so; its images are sealed
source rebooted, all is on disk  → the process died with it: COMMIT is written now, and they are sealed
source else                      → the process runs on, or died with a reboot; what there is of images goes
target has RESUMING              → it is brought to run; after a reboot it has ended, whether it ran or not
target else                      → what is held is killed; the images are as they were
"""

from __future__ import annotations

import os

from agent import protocol
from migrator import errors
from migrator.peer import Peer
from migrator.recovery import Course, Outcome, died_undecided


async def settle(own: Peer, known: protocol.JournalState, *, undo_only: bool = False) -> Outcome:
    """Finish or undo it. Raises Locked while it is at work, TooLate where it may only go forward and must not."""
    name, verdict = known.migration, protocol.Verdict
    if known.agent_alive:
        raise errors.Locked(f"migration {name} is still at work", hint=f"wait for it: migrate status {name}")
    if "DONE" in known.records:
        return Outcome(Course.NOTHING, f"nothing to do: {_ended(own.host, known)}", own.host, 0)
    forward = "COMMIT" in known.records or (died_undecided(known) and known.on_ice)
    if known.role == "target":
        forward = "RESUMING" in known.records
    if forward and undo_only:
        raise errors.TooLate(f"migration {name} is past the point of no return", hint=f"migrate recover {name}")
    if not forward:
        settled = await own.settle(protocol.Settle(name, verdict.ABORT))
        return Outcome(Course.UNDO, f"undone: {_undone(own.host, known, settled)}", own.host, settled.pid)
    if known.role == "source":
        await own.settle(protocol.Settle(name, verdict.KILL))
        await own.settle(protocol.Settle(name, verdict.CLEAN))
        return Outcome(Course.FORWARD, f"the process is on ice: {again(known.ice)}", own.host, 0)
    if not known.same_boot:
        await own.settle(protocol.Settle(name, verdict.CLEAN))
        text = f"{own.host} has rebooted while the process was resumed, so it runs no more: {again(known.ice)}"
        return Outcome(Course.CLEAN, text, own.host, 0)
    resumed = await own.settle(protocol.Settle(name, verdict.RESUME))
    await own.settle(protocol.Settle(name, verdict.CLEAN))
    return Outcome(Course.FORWARD, f"the process runs on {own.host}", own.host, resumed.pid)


def _ended(host: str, known: protocol.JournalState) -> str:
    if "ABORT" in known.records:
        return "it was undone"
    return f"it runs on {host}, or has ended there" if known.role == "target" else f"it is on ice in {known.ice}"


def _undone(host: str, known: protocol.JournalState, settled: protocol.Settled) -> str:
    if known.role == "target":
        return f"nothing of it runs, and the images are as they were: {again(known.ice)}"
    if settled.pid:
        return f"the process runs on {host}"
    return f"the process ended when {host} rebooted, before all of it was on disk"


def again(place: str) -> str:
    """The command that restores it."""
    return f"migrate restore {os.path.dirname(place)} {os.path.basename(place)}"
