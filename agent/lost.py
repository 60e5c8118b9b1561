"""The one loss that nothing prevents: pager and warden killed at the same instant, before memory was whole.

The kernel then forgets that anybody watched, and what was not filled in reads as zeros. Whoever finds out stops the
tree, so that it does no harm with them, and the journal keeps it: the operator is told, however he asks.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path

from agent import process
from agent.journal import Journal, Record
from agent.warden import UNFILLED

MEMORY_LOST = "memory-lost"
"""The journal's note of it."""


def stop_tree(journal: Journal) -> None:
    """Stop the tree of a target's journal, which reads zeros where its memory was, with children that are just born."""
    stop_all((pid, start) for pid, start in journal.facts(Record.HELD.value)["tasks"])


def stop_all(tasks: Iterable[tuple[int, int]]) -> list[int]:
    """Stop these, (PID, start time), with their descendants, also those that are just born: the PIDs of all."""
    known = list(tasks)
    stopped: set[int] = set()
    while found := set[int]().union(*(_tree(pid, start) for pid, start in known)) - stopped:
        for pid in found:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
        stopped |= found
    return sorted(stopped)


def _tree(root: int, start: int) -> list[int]:
    try:
        return process.tree_pids(root) if process.alive(root, start) else []
    except process.NoSuchProcess:
        return []


def memory_lost(journal: Journal) -> bool:
    """Whether a tree that runs here lost memory, now that nobody fills it any more: then it is stopped and noted."""
    if not (journal.directory / UNFILLED).exists():
        return bool(journal.facts(MEMORY_LOST))
    stop_tree(journal)
    journal.note(MEMORY_LOST, lost=True)
    return True


def forget(directory: Path) -> None:
    """The tree is gone, or this is settled: nothing is to be found out any more."""
    (directory / UNFILLED).unlink(missing_ok=True)
