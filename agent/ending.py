"""What was told to end is waited for, but not for ever: a criu that hangs is named and left, not killed (DESIGN: 6).

Whatever needs its end is not done then, and not written down as done: `migrate recover` does it once it has ended.
"""

from __future__ import annotations

import asyncio

from agent import criu, deposing
from agent.deposing import until
from agent.journal import JournalError
from agent.tasks import NotRunning, Tasks


async def ended(running: criu.Running) -> int:
    """The exit status of a criu that was let go, or has lost its stream. Raises NotRunning after PATIENCE seconds."""
    try:
        return await asyncio.wait_for(running.process.wait(), deposing.PATIENCE)
    except asyncio.TimeoutError:
        raise NotRunning(f"criu (PID {running.process.pid}) does not end; see {running.log}") from None


async def stays(running: criu.Running, tasks: Tasks) -> str:
    """Who is still here of a tree that was killed, and of its criu, in words; "" once all are gone."""
    try:
        await until(lambda: not running.alive, f"criu (PID {running.process.pid})")
        await until(lambda: tasks.ended, "a killed process of the tree")
    except JournalError as error:
        return str(error)
    return ""
