"""The one decision of a migration: COMMIT on the source, or everything undone. Its outcome is always found out."""

from __future__ import annotations

from agent import protocol
from migrator import errors
from migrator.hosts import Ends
from migrator.peer import PeerFault, PeerLost
from migrator.undoing import Undoing

_LOST = (PeerFault, PeerLost, errors.MigrateError)


async def decide(migration: str, ends: Ends, undoing: Undoing, tasks: int) -> protocol.Killed:
    """COMMIT and proof of death of a tree of so many tasks. On return there is no way back.

    Raises PeerFault or PeerLost where there is no COMMIT, and then the source has aborted; InDoubt where that can't be
    found out.
    """
    try:
        return await ends.source.commit()
    except (PeerFault, PeerLost) as error:
        # the journal is beside us: ask it, and let it decide
        try:
            await ends.replace_source()
            state = await ends.source.journal(protocol.ReadJournal(migration))
            if "COMMIT" not in state.records:
                await ends.source.settle(protocol.Settle(migration, protocol.Verdict.ABORT))
                undoing.source_aborted = True
                raise
            await ends.source.settle(protocol.Settle(migration, protocol.Verdict.KILL))
        except _LOST as worse:
            if worse is error:
                raise
            hint = f"migrate recover {migration}"
            raise errors.InDoubt(f"at COMMIT: {error}; then: {worse}", hint=hint) from worse
        return protocol.Killed(tasks, 0.0)
