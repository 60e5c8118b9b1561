"""The operator's commands on migrations that are there already: `status`, `recover`, `abort`. They give exit statuses.

Owns which hosts are asked, in which order, and what of their answers is shown. What may be done about a migration is
`recovery`'s to decide, how one is stopped `aborting`'s, and what an answer looks like `status_words`'s.
"""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable

from agent.protocol import Word
from migrator import aborting, errors, fencing, recovery, status, status_words
from migrator.output import Progress
from migrator.reaching import RealHosts

_NEWEST = 5
"""So many finished migrations are listed."""


async def recover(options: argparse.Namespace, show: Progress) -> int:
    """One migration, or every one that is not finished here; the worst exit status."""
    hosts = RealHosts(options.other, sudo=options.sudo, criu=options.criu)
    word, typed = fencing.said(options)
    if word is not Word.NONE:
        await fencing.typed_out(word, typed, options.id, asks=not options.json, warn=show.warn)
    if options.id:
        await _recover(options.id, hosts, show, word)
        return errors.EXIT_MIGRATED
    worst = errors.EXIT_MIGRATED
    found = await recovery.unfinished(hosts)
    for one in found:
        if one.at_work:
            show.note(f"migration {one.migration} is at work: left alone (migrate abort {one.migration} stops it)")
            continue
        try:
            await _recover(one.migration, hosts, show)
        except errors.MigrateError as error:
            error.message = f"migration {one.migration}: {error.message}"
            show.failed(error)
            worst = max(worst, error.exit_code)
    if not found:
        nothing = "nothing to do: no migration is unfinished here"
        show.recovered("", recovery.Outcome(recovery.Course.NOTHING, nothing, "", 0))
    return worst


async def _recover(migration: str, hosts: RealHosts, show: Progress, word: Word = Word.NONE) -> None:
    outcome = await recovery.recover_over(migration, hosts, show, word=word)
    show.recovered(migration, outcome)


async def abort(options: argparse.Namespace, show: Progress) -> int:
    """Undo a migration before COMMIT, whoever runs it."""
    outcome = await aborting.abort(options.id, RealHosts(options.other, sudo=options.sudo, criu=options.criu), show)
    show.recovered(options.id, outcome)
    return errors.EXIT_MIGRATED


async def look(options: argparse.Namespace, show: Progress) -> int:
    """What there is. A host that was named on the command line and can't be reached is an error, after all is told."""
    hosts = RealHosts(options.other, sudo=options.sudo, criu=options.criu, patience=status.SECONDS)
    if options.leftovers:
        return await _leftovers(options, hosts, show)
    if options.id:
        found = await status.story(options.id, hosts)
        show.told(status_words.story_text(found), status_words.story_events(found))
        failure = found.failure
    else:
        listed = await status.migrations(hosts, named=bool(options.other), newest=_NEWEST)
        show.told(status_words.list_text(listed), status_words.list_events(listed))
        failure = listed.failure
    if options.other and failure is not None:
        raise failure
    return errors.EXIT_MIGRATED


async def _leftovers(options: argparse.Namespace, hosts: RealHosts, show: Progress) -> int:
    left = 0
    for ask in (status.remains_here, status.remains_there)[: 2 if options.other else 1]:
        found = await ask(hosts)
        left += found.left
        show.told(status_words.remains_text(found), status_words.remains_events(found))
    return errors.EXIT_LEFTOVERS if left else errors.EXIT_MIGRATED


COMMANDS: dict[str, Callable[[argparse.Namespace, Progress], Awaitable[int]]] = {
    "recover": recover,
    "abort": abort,
    "status": look,
}
