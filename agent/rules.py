"""The commit's rules as functions of what a journal says (DESIGN: the commit, exactly). Nothing here looks at the host.

`target` and `settle` ask here before they act, and so does the model in tests/model, which goes through every order of
events that these rules allow.
"""

from __future__ import annotations

import dataclasses
import enum
from typing import Optional

from agent.journal import MAY_FOLLOW, JournalError, Record
from agent.protocol import Verdict, Word


@dataclasses.dataclass(frozen=True)
class Known:
    """What an agent that takes a migration over finds on its host."""

    role: str
    records: tuple[Record, ...]
    same_boot: bool
    images: bool
    """The images are still here."""
    durable: bool = False
    """All that a restore needs was on disk before HELD."""
    resuming_here: bool = True
    """RESUMING, where it is written, was since this host last booted."""
    ice: bool = False
    """The tree goes onto ice, or comes from there: no other host has to be told, and the images are not ours alone."""
    word: Word = Word.NONE
    """What the operator has said of his own, and answers for."""

    def has(self, record: Record) -> bool:
        """Whether this was ever decided."""
        return record in self.records

    def may(self, record: Record) -> bool:
        """Whether the order of decisions allows this one now."""
        return record in MAY_FOLLOW[self.role][self.records[-1]]


def to_write(verdict: Verdict, known: Known) -> Optional[Record]:
    """The record that makes a verdict this host's decision; None where it is one already.

    Raises JournalError where the journal forbids the verdict.
    """
    if verdict is Verdict.ABORT:
        return _abort(known)
    if verdict is Verdict.KILL and known.role == "source":
        return _kill(known)
    if verdict is Verdict.DEPOSE and known.role == "source":
        return _depose(known)
    if verdict is Verdict.RESUME and known.role == "target":
        return _resume(known)
    if verdict is Verdict.CLEAN:
        if known.ice and known.records[-1] is Record.RESUMING and not known.resuming_here:
            return Record.RESUMED  # whether it ran or not, it has ended with the host, and may be restored again
        if not (known.has(Record.DONE) or known.may(Record.DONE)):
            raise JournalError("the migration is not over")
        return None
    raise JournalError(f"{verdict.value} is not for a {known.role}")


def _abort(known: Known) -> Optional[Record]:
    if known.has(Record.COMMIT) or known.has(Record.RESUMING) or known.has(Record.DEPOSED):
        raise JournalError("past the point of no return: it can only go forward")
    # on the target this record comes only with the source's ABORT in hand, or an operator's word
    return None if known.has(Record.ABORT) else Record.ABORT


def _kill(known: Known) -> Optional[Record]:
    if known.has(Record.COMMIT):
        return None
    # a reboot has killed the tree without ABORT: what the target holds is the only copy (rule 4)
    if known.same_boot or not known.may(Record.COMMIT):
        raise JournalError("there is no COMMIT: the tree belongs to this host")
    return Record.COMMIT


def _depose(known: Known) -> Optional[Record]:
    if known.has(Record.COMMIT) or known.has(Record.DEPOSED):
        return None
    for record in (Record.COMMIT, Record.DEPOSED):
        if known.has(Record.FROZEN) and known.may(record):
            return record
    raise JournalError("the target was told that it was undone here, or never held it")


def _resume(known: Known) -> Optional[Record]:
    if known.word is not Word.NONE and (refusal := why_not(known)):
        raise JournalError(refusal)
    if known.has(Record.RESUMING):
        if not known.resuming_here and not known.has(Record.RESUMED) and known.word is not Word.RESTORE_ANYWAY:
            raise JournalError(
                "this host rebooted while the tree was resumed: whether it ran nobody can tell. Here `migrate recover "
                "--restore-anyway` restores it all the same, and says what that risks"
            )
        return None
    if not known.has(Record.HELD):
        raise JournalError("there is no HELD: the images are not known to be whole")
    if known.has(Record.ABORT):
        raise JournalError("it was undone: the tree belongs to the source")
    if not known.images:
        raise JournalError("the images are gone: this host has rebooted")
    if torn(known) and known.word is not Word.RESTORE_ANYWAY:
        raise JournalError(
            "this host has rebooted, and without --durable its disk may have half of the images. Here `migrate recover "
            "--restore-anyway` uses them all the same, and says what that risks"
        )
    return Record.RESUMING


def torn(known: Known) -> bool:
    """Whether images are here of which the kernel may not have written all before this host went down."""
    return known.images and not known.same_boot and not known.durable and not known.has(Record.RESUMING)


def why_not(known: Known) -> str:
    """Why the operator's word is not taken; "" where it is.

    No word is needed where the journals decide, and none helps where nothing is left to run.
    """
    if known.role != "target":
        return "this host is the source: where the process was to go that word is asked for"
    if known.has(Record.RESUMED) or known.has(Record.ABORT) or not known.has(Record.HELD):
        return f"the journal here ends in {known.records[-1].value}: that needs nobody's word, or nothing is held here"
    if known.word is Word.SOURCE_IS_DEAD and known.has(Record.RESUMING):
        return "the journal here has RESUMING, the source's proof of death with it: it goes forward without a word"
    if known.word is Word.RESTORE_ANYWAY and not (known.has(Record.RESUMING) or torn(known)):
        return "nothing here has to be restored in doubt"
    if not known.images and (known.word is Word.RESTORE_ANYWAY or not known.same_boot):
        return "its images are gone: nothing can be restored"
    return ""


def must_tell(known: Known) -> bool:
    """Whether a host that has undone its part leaves its journal open all the same (without DONE), until the other one
    was told: a target that may hold the tree waits for the source's word, and `recover` must find that it is owed."""
    return known.role == "source" and known.has(Record.FROZEN) and not known.ice


def must_restore(*, same_boot: bool, finished: bool, passed_hold: bool, word: Word = Word.NONE) -> bool:
    """RESUMING is written and no criu lives: whether the tree is to be restored from its images; if not, it runs.

    `same_boot`: this host has not rebooted since RESUMING. `finished` and `passed_hold` are what the log of the restore
    says. Raises JournalError where nobody can tell, and the operator has not said to do it anyway.
    """
    if same_boot and finished:
        return False
    if same_boot and passed_hold and word is not Word.RESTORE_ANYWAY:
        raise JournalError("criu failed after it had let the tree go, so it may have run; see restore.log")
    return True


def may_discard(last: Optional[Record], *, source_aborted: bool) -> bool:
    """Whether a target may give up what it has: a tree that it holds only by the source's recorded ABORT (rule 3)."""
    return last is not Record.HELD or source_aborted


class Alone(enum.Enum):
    """What a target does when nobody speaks to it any more."""

    DISCARD = "discard"
    WAIT = "wait"  # for the lease; then the tree goes, and the images stay
    FINISH = "finish"
    NOTHING = "nothing"  # what is under way ends by itself


def alone(last: Optional[Record]) -> Alone:
    """What the end of input means to a target (rule 3)."""
    if last is Record.PREPARED:
        return Alone.DISCARD
    if last is Record.HELD:
        return Alone.WAIT
    return Alone.FINISH if last is Record.RESUMED else Alone.NOTHING
