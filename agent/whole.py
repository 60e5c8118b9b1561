"""Whether all that a restore holds still lives. It was held alive: what has died since, somebody else has killed.

criu waits for every task of its tree once its hook has succeeded, and hears no more of children that die
(criu/cr-restore.c, ignore_kids and restore_switch_stage): let go with one of them missing it would wait for ever, and
the others stay blocked. A hook that fails ends it, with the tree, which never ran: the images can be restored anew.
"""

from __future__ import annotations

import signal
from typing import Any

from agent import ours, process
from agent.boot import lines_of_this_boot
from agent.deposing import send
from agent.hold import Hold
from agent.journal import Journal
from agent.tasks import Tasks

_WORD = "hook"


def note_living(journal: Journal, criu: int, tasks: Tasks) -> None:
    """Leave word of the hook that this criu, a PID, is in, and of who lives in it: zombies are restored so."""
    hook = ours.hook_below(criu, str(journal.directory / "hold"))
    living = tasks.living
    journal.jot(_WORD, **hook, living=[task for task in tasks.identities if task[0] in living])


def missing(journal: Journal) -> bool:
    """Whether a task has died that lived in the newest hold."""
    return any(not process.alive(pid, start) for pid, start in _noted(journal).get("living", ()))


def let_go(hold: Hold, journal: Journal) -> None:
    """Let the held tree go, or have it killed where it is not whole any more."""
    if missing(journal):
        hold.veto()
    else:
        hold.go()


def fail_hook(journal: Journal) -> None:
    """The same for a hook that would go by the journal next, its agent being about to be killed."""
    if missing(journal):
        noted = _noted(journal)
        send((noted["pid"], noted["start"]), signal.SIGKILL)


def _noted(journal: Journal) -> dict[str, Any]:
    lines = [line for line in lines_of_this_boot(journal) if line["record"] == _WORD]
    return lines[-1] if lines else {}
