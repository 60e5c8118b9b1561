"""What an operator may say of his own where two journals do not decide: its risk in words, and how it has to be typed.

Never chosen by itself. Owns what counts as an answer of a host that is said to be dead; which states of a journal allow
a word is `agent.rules`', and what is done then `recovery`'s.
"""

from __future__ import annotations

import asyncio
import errno
import os
import sys
from collections.abc import Callable
from typing import Any

from agent.protocol import Word
from migrator import errors

RISKS = {
    Word.SOURCE_IS_DEAD: (
        "The process will run here, as it was when it was frozen. If it still runs on the host that it came from, or "
        "runs on there, it runs twice: both write to the same files, databases and clients, and that can't be undone. "
        "Say this only when that host is off, and kept off, or cut from everything that the process uses. When it is "
        "back, `migrate recover` kills what runs of the process there."
    ),
    Word.RESTORE_ANYWAY: (
        "The process may have run here already, before this host rebooted: what it wrote and sent then it does once "
        "more, from an older state. Or its images were not all on disk when this host went down: then parts of its "
        "memory may be wrong, without a sign of it."
    ),
}
_SILENT = (errno.EHOSTUNREACH, errno.ENETUNREACH, errno.EHOSTDOWN, errno.ETIMEDOUT)


def option(word: Word) -> str:
    """As it is typed."""
    return f"--{word.value}"


def said(options: Any) -> tuple[Word, str]:
    """The word that the command line has, and what was typed behind it. Raises UsageError for two of them, for one
    without a migration, or with another one's id."""
    given = [(word, getattr(options, word.value.replace("-", "_"))) for word in RISKS]
    found = [(word, typed) for word, typed in given if typed is not None]
    if len(found) > 1:
        raise errors.UsageError(" and ".join(option(word) for word, _ in found) + ": one of them at a time")
    if not found:
        return Word.NONE, ""
    word, typed = found[0]
    if not (options.id or typed):
        raise errors.UsageError(f"{option(word)} is for one migration: name it")
    if options.id and typed and typed != options.id:
        raise errors.UsageError(f"{option(word)}={typed} is not for migration {options.id}")
    return word, typed


async def typed_out(word: Word, typed: str, migration: str, *, asks: bool, warn: Callable[[str], None]) -> None:
    """On return the operator has heard the risk and typed the migration's id. Raises UsageError where he has not.

    `asks`: he may be asked for it, where standard input is a terminal.
    """
    warn(f"{option(word)}: {RISKS[word]}")
    if typed == migration:
        return
    if not (asks and os.isatty(0)):
        raise errors.UsageError(
            f"{option(word)} has to be typed out", hint=f"if you mean it: {option(word)}={migration}"
        )
    sys.stderr.write("To go on, type the migration's id: ")
    sys.stderr.flush()
    if (await _line()).strip() != migration:
        raise errors.UsageError(f"that is not {migration}: nothing was done")


async def _line() -> str:
    """A line of the terminal; a signal meanwhile is heard."""
    loop = asyncio.get_running_loop()
    there = asyncio.Event()
    loop.add_reader(0, there.set)
    try:
        await there.wait()
    finally:
        loop.remove_reader(0)
    return os.read(0, 4096).decode(errors="replace")


def silent(error: errors.MigrateError) -> bool:
    """Whether a failure to connect says that nothing is there. A refused connection is an answer: of a host that is up.

    So is a key or login that is not accepted.
    """
    if isinstance(error, errors.UnknownHost):
        return True
    if not isinstance(error, errors.Refused):
        return False
    cause = error.__cause__
    if cause is None or isinstance(cause, TimeoutError):
        return True
    several = "refused" not in str(cause).lower()  # asyncio's, of a name with more than one address, has no number
    return isinstance(cause, OSError) and (cause.errno in _SILENT or (cause.errno is None and several))
