"""`migrate abort ID`: whoever runs a migration undoes it, from another shell; where nobody runs it any more, we do.

A `migrate` that lives is sent what Ctrl-C's sister is, SIGTERM: it undoes on both hosts, says so on its own terminal
and exits with its own status. Nothing is taken out of its hands, so nothing can be decided twice.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence

from agent import protocol
from migrator import errors
from migrator.peer import Peer, PeerFault, PeerLost
from migrator.phases import Observer
from migrator.recovery import Course, Hosts, Outcome, agent_at, recover_over

PAUSE = 0.3
"""Seconds between looks at how far the undoing has come."""

PATIENCE = 60.0
"""Seconds in which nothing of it comes any further: then whoever was asked hangs."""


async def abort(migration: str, hosts: Hosts, observer: Observer) -> Outcome:
    """Undo a migration that is before COMMIT, from either of its hosts. On return its journals say so.

    Raises PreflightError when there is none of that name, TooLate after COMMIT, ConnectError when its source can't be
    reached, InDoubt when who runs it hangs, and what `recovery.recover_over` raises where nobody runs it any more.
    """
    try:
        async with agent_at(await hosts.here(), "source") as own:
            here = (await own.story(protocol.ReadJournal(migration))).state
            if not here.role:
                raise errors.PreflightError(
                    f"{own.host} has no journal of a migration {migration}", hint="`migrate status` lists them"
                )
            if here.role == "source":
                outcome = await _by_its_migrate(own, migration, observer)
            elif here.ice:
                outcome = None
            else:
                async with agent_at(await hosts.there(here.peer, here.address), "source") as source:
                    outcome = await _by_its_migrate(source, migration, observer)
    except PeerLost as lost:
        raise errors.ConnectError(str(lost)) from lost
    except PeerFault as fault:
        raise errors.PreflightError(f"{fault.host}: {fault.fault.message}") from fault
    return outcome or await recover_over(migration, hosts, observer, undo_only=True)


def _hangs(host: str, migration: str, whose: Sequence[protocol.Living]) -> errors.InDoubt:
    """For one that was to be undone, and gets no further: it can be taken out of the hands of those that have it."""
    names = " and ".join(f"{one.kind} (pid {one.pid})" for one in whose)
    kill = f"kill -KILL {' '.join(str(one.pid) for one in whose)}"
    return errors.InDoubt(
        f"{host}: {names or 'whoever has it'} does not undo it, and got no further for {PATIENCE:.0f} s",
        hint=f"{f'on {host}: {kill}, then ' if whose else ''}migrate recover {migration}",
    )


async def _by_its_migrate(source: Peer, migration: str, observer: Observer) -> Outcome | None:
    """What has become of it once its `migrate` has undone it; None where that is gone, or leaves something to do."""
    asked = await source.interrupt(protocol.Interrupt(migration))
    if asked.pid:
        observer.note(f"{source.host}: SIGTERM to migrate, pid {asked.pid}: it undoes")
    stood, since = object(), time.monotonic()
    while True:
        story = await source.story(protocol.ReadJournal(migration))
        records = story.state.records
        if "COMMIT" in records:
            raise errors.TooLate(f"migration {migration} is past COMMIT", hint=f"migrate status {migration}")
        running = [one for one in story.living if one.kind == "migrate"]
        # its agent, spoken to no more, undoes by itself: also that has to end first
        if not running and not (story.state.agent_alive and "DONE" not in records):
            break
        if stood != (stands := (records, [(one.kind, one.pid) for one in story.living])):
            stood, since = stands, time.monotonic()
        elif time.monotonic() - since > PATIENCE:
            raise _hangs(source.host, migration, running or [one for one in story.living if one.kind == "agent"])
        await asyncio.sleep(PAUSE)
    if not asked.pid or "DONE" not in records:
        return None
    pid = story.state.root
    return Outcome(Course.UNDO, f"undone: the process runs on {source.host}", source.host, pid)
