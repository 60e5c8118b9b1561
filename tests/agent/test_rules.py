"""What a journal allows after a reboot, and by an operator's word."""

from __future__ import annotations

import pytest

from agent import rules
from agent.journal import JournalError, Record
from agent.protocol import Verdict, Word
from agent.rules import Known

HELD = (Record.PREPARED, Record.HELD)
RESUMING = (*HELD, Record.RESUMING)
DEAD, ANYWAY = Word.SOURCE_IS_DEAD, Word.RESTORE_ANYWAY


def target(records: tuple[Record, ...], **more: object) -> Known:
    """A target that has not rebooted and has its images."""
    facts: dict[str, object] = {"same_boot": True, "images": True, **more}
    return Known("target", records, **facts)  # type: ignore[arg-type]


def rebooted(records: tuple[Record, ...], **more: object) -> Known:
    """One that has."""
    return target(records, **{"same_boot": False, "resuming_here": False, **more})


@pytest.mark.parametrize(
    ("known", "writes"),
    [
        (target(HELD), Record.RESUMING),
        (target(RESUMING), None),
        (rebooted(HELD, durable=True), Record.RESUMING),
        (rebooted(RESUMING, durable=True, resuming_here=True), None),  # a recover after the reboot has written it
        (rebooted(HELD, word=ANYWAY), Record.RESUMING),  # torn, perhaps
        (rebooted(RESUMING, word=ANYWAY), None),
        (target(RESUMING, word=ANYWAY), None),
        (target(HELD, word=DEAD), Record.RESUMING),
        (rebooted(HELD, durable=True, word=DEAD), Record.RESUMING),
    ],
)
def test_what_is_resumed(known: Known, writes: Record | None) -> None:
    assert rules.to_write(Verdict.RESUME, known) is writes


@pytest.mark.parametrize(
    ("known", "why"),
    [
        (rebooted(HELD), "may have half of the images"),
        (rebooted(HELD, images=False, durable=True), "the images are gone"),
        (rebooted(RESUMING, durable=True), "whether it ran nobody can tell"),
        (rebooted(HELD, word=DEAD), "may have half of the images"),  # one word does not stand for the other
        (rebooted(HELD, images=False, word=DEAD), "its images are gone"),
        (rebooted(RESUMING, word=DEAD), "has RESUMING"),
        (target((Record.PREPARED,), word=DEAD), "ends in PREPARED"),
        (target((*HELD, Record.ABORT), word=DEAD), "ends in ABORT"),
        (target((*RESUMING, Record.RESUMED), word=ANYWAY), "ends in RESUMED"),
        (target(HELD, word=ANYWAY), "nothing here has to be restored in doubt"),
        (rebooted(HELD, durable=True, word=ANYWAY), "nothing here has to be restored in doubt"),
        (rebooted(RESUMING, images=False, word=ANYWAY), "its images are gone"),
    ],
)
def test_what_is_not(known: Known, why: str) -> None:
    with pytest.raises(JournalError, match=why):
        rules.to_write(Verdict.RESUME, known)


def test_a_word_is_for_the_target() -> None:
    known = Known("source", (Record.BEGIN, Record.FROZEN), same_boot=True, images=True, word=DEAD)
    assert "is the source" in rules.why_not(known)


def test_what_may_have_run_is_restored_by_a_word_alone() -> None:
    with pytest.raises(JournalError, match="may have run"):
        rules.must_restore(same_boot=True, finished=False, passed_hold=True)
    assert rules.must_restore(same_boot=True, finished=False, passed_hold=True, word=ANYWAY)
    assert not rules.must_restore(same_boot=True, finished=True, passed_hold=True, word=ANYWAY)
    assert rules.must_restore(same_boot=False, finished=True, passed_hold=True)
