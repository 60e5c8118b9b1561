"""The commit, gone through in every order of events: one copy at most at every instant, and one in the end.

What is explored is the product's own where it can be: the order of records (`agent.journal`), the rules
(`agent.rules`), the hooks' script (`agent.hold`), and from `migrator` the decision, undoing, going forward and
`recover`. Agents, criu and kernel are models (`agents`, `world`), one act after the other as their code has it.

From the freeze on, or from COMMIT on, at any instant, so many times as a test says: an agent, `migrate`, `recover`, a
hook or criu is killed, an agent in the midst of writing a record as well; a host reboots, or both at once, and what was
not synced is lost or not, the images too with --durable; a link is cut, a question lost or late, an answer lost, nobody
waits for one; dump or restore fail; Ctrl-C; the target can't be reached; a `recover` begins in the midst of something,
beside `migrate` or another `recover`. Without counting: `recover` is run when all is quiet, again and again, and the
target's lease ends at any time. A host reboots once. SSH neither repeats nor reorders within a connection: what comes
twice comes over another one, from another agent.

An operator's words are outside of the invariant, since he answers for what they risk; what is explored of them is that
one which is refused does nothing.

At every instant two copies can't run, and the records of a journal stand in the order of the product's table. In the
end `recover` is run, without an ID and undisturbed, until it changes nothing. Then exactly one copy runs, and both
journals are done; or one of the exceptions has come about that DESIGN names, and it is counted by its name.

Here one fault is explored, a `recover` beside others being one, from the freeze on and from COMMIT on; and two faults
where no client runs beside another. More takes minutes: `python -m tests.model --help`.

Not covered: what comes before the freeze; more than one task, or tasks that differ from those that were journaled;
filling memory after the resume; files that come along, TCP, throttling; a disk that is full or fails; a SIGCONT from
elsewhere; agents that an operator stops or continues; more than two clients at once; a journal that was pruned; more
faults than are counted here.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from agent import hold, journal, protocol, rules
from agent.journal import Record
from migrator import deciding, recovery
from migrator.peer import PeerFault, PeerLost
from tests.model import agents, explore

Breach = Callable[[pytest.MonkeyPatch], None]


@pytest.fixture(autouse=True)
def whole() -> Iterator[None]:
    """No test leaves a rule broken."""
    yield
    agents.BROKEN.clear()


def test_nothing_goes_wrong() -> None:
    found = explore.explore(faults=0)
    assert set(found.settled) == {"it runs on the target"}


def test_whatever_goes_wrong_twice() -> None:
    """No `recover` begins beside another client here. What is new: images that nobody has word of but their host, and
    a source that reboots after its ABORT."""
    found = explore.explore(faults=2, beside=False)
    exceptions = {explore.RAN, explore.LET_GO, explore.UNHELD, explore.SEIZED, explore.IN_BETWEEN, explore.IN_MEMORY}
    exceptions.add(explore.UNDONE)
    expected = {f"it runs nowhere: {reason}" for reason in exceptions}
    expected |= {"it runs on the source", "it runs on the target", explore.LATER, explore.BY_ID}
    expected |= {f"it runs, not tidied up: {explore.LET_GO}"}
    assert set(found.settled) == expected


@pytest.mark.parametrize("durable", [False, True])
def test_whatever_goes_wrong_once(durable: bool) -> None:
    """The exceptions, by name: each has to come about, and no other."""
    found = explore.explore(faults=1, durable=durable)
    exceptions = {explore.RAN, explore.LET_GO, explore.UNHELD, explore.SEIZED, explore.IN_BETWEEN}
    if not durable:
        exceptions.add(explore.IN_MEMORY)
    expected = {f"it runs nowhere: {reason}" for reason in exceptions}
    expected |= {"it runs on the source", "it runs on the target", explore.LATER}
    assert set(found.settled) == expected | {f"it runs, not tidied up: {explore.LET_GO}"}
    assert found.states > 5_000  # it would be a few hundred, were the faults not tried at every instant


def test_a_power_cut_with_durable_leaves_one() -> None:
    """From COMMIT on, whichever hosts reboot at whatever instant: it is lost only with the host that it ran on already,
    or where the target rebooted between RESUMING and RESUMED and nobody can tell."""
    found = explore.explore(faults=1, durable=True, start=explore.committed)
    expected = {f"it runs nowhere: {reason}" for reason in (explore.RAN, explore.LET_GO, explore.IN_BETWEEN)}
    expected |= {"it runs on the target", explore.LATER, f"it runs, not tidied up: {explore.LET_GO}"}
    assert set(found.settled) == expected


@pytest.mark.parametrize("durable", [False, True])
def test_a_source_that_answers_is_not_taken_for_dead(durable: bool) -> None:
    """An operator says it all the time, and is refused: nothing comes of it that did not come about without."""
    words = (protocol.Word.SOURCE_IS_DEAD.value,)
    found = explore.explore(faults=1, durable=durable, beside=False, words=words)
    assert set(found.settled) == set(explore.explore(faults=1, durable=durable, beside=False).settled)


def test_to_restore_anyway_is_outside_the_invariant() -> None:
    """The operator answers for it: it may have run before the target rebooted."""
    words = (protocol.Word.RESTORE_ANYWAY.value,)
    with pytest.raises(explore.Broken) as found:
        explore.explore(faults=1, durable=True, start=explore.committed, words=words)
    assert found.value.problem == AGAIN
    assert "an operator says restore-anyway" in found.value.steps


@pytest.mark.parametrize(("target_is_dead", "faults"), [(False, 1), (True, 1), (True, 2)])
def test_whatever_goes_wrong_after_commit(target_is_dead: bool, faults: int) -> None:
    """The target waits for its lease, or only images are left: two recover at once; or a restore from the images is
    killed together with its agent; and all that was said above."""
    start = functools.partial(explore.committed, target_is_dead=target_is_dead)
    found = explore.explore(faults=faults, start=start, beside=faults == 1)
    exceptions = {explore.RAN, explore.LET_GO, explore.IN_BETWEEN, explore.IN_MEMORY}
    expected = {f"it runs nowhere: {reason}" for reason in exceptions}
    expected |= {"it runs on the target", explore.LATER, f"it runs, not tidied up: {explore.LET_GO}"}
    assert set(found.settled) == expected


# --- rules that are broken on purpose --------------------------------------------------------------------------------


def broken(name: str) -> Breach:
    """A rule that only the model's agents keep."""
    return lambda patch: agents.BROKEN.update(name.split(" and "))


def resume_without_proof(patch: pytest.MonkeyPatch) -> None:
    async def hasty(migration: str, ends: Any, undoing: Any, tasks: int) -> protocol.Killed:
        try:
            return await ends.source.commit()  # type: ignore[no-any-return]
        except (PeerFault, PeerLost):
            return protocol.Killed(tasks, 0.0)

    patch.setattr(deciding, "decide", hasty)


def abort_after_commit(patch: pytest.MonkeyPatch) -> None:
    real = rules.to_write

    def lax(verdict: protocol.Verdict, known: rules.Known) -> Record | None:
        if verdict is not protocol.Verdict.ABORT:
            return real(verdict, known)
        return None if known.has(Record.ABORT) else Record.ABORT

    patch.setattr(rules, "to_write", lax)
    patch.setitem(journal.MAY_FOLLOW["source"], Record.COMMIT, {Record.KILLED, Record.ABORT})


def kill_without_commit(patch: pytest.MonkeyPatch) -> None:
    real = rules.to_write
    patch.setattr(recovery, "course", lambda source, target: recovery.Course.FORWARD)
    patch.setattr(
        rules, "to_write", lambda asked, known: None if asked is protocol.Verdict.KILL else real(asked, known)
    )
    for last in (Record.FROZEN, Record.ABORT):
        patch.setitem(journal.MAY_FOLLOW["source"], last, {Record.KILLED, *journal.MAY_FOLLOW["source"][last]})


def discard_when_alone(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rules, "may_discard", lambda last, source_aborted: True)
    alone = rules.alone
    patch.setattr(rules, "alone", lambda last: rules.Alone.DISCARD if last is Record.HELD else alone(last))


def discard_unasked(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rules, "may_discard", lambda last, source_aborted: True)


def one_journal_only(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(recovery, "died_undecided", lambda source: False)


def restore_what_may_have_run(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rules, "must_restore", lambda **found: True)


def script(old: str, new: str) -> Breach:
    """The hooks' script with a rule less."""

    def breach(patch: pytest.MonkeyPatch) -> None:
        real = hold.script_text
        assert old in real(Path("x"), "post-dump", "COMMIT")
        patch.setattr(hold, "script_text", lambda *arguments: real(*arguments).replace(old, new))

    return breach


TWO, STALE, AGAIN, NOWHERE = (
    "two copies can run",
    "the target runs what is out of date",
    "the target started it a second time",
    "it runs nowhere",
)
UNTIDY, UNFOUND, DISORDER = (
    "it runs, but what is left can't be tidied up",
    "recover does not find by itself what is left to do",
    "a journal is out of order",
)
BREACHES: dict[str, tuple[Breach, int, bool, str]] = {
    # what is broken: how, the faults that it takes, whether the images are on disk (--durable), what comes of it
    "DONE is written before the target was told": (broken("DONE before the target was told"), 1, False, UNFOUND),
    "the target resumes without proof of death": (resume_without_proof, 1, False, TWO),
    "KILLED is written before the kill": (broken("KILLED before the kill"), 0, False, TWO),
    "ABORT after COMMIT": (abort_after_commit, 1, False, NOWHERE),
    "recover goes forward without COMMIT": (kill_without_commit, 1, False, NOWHERE),
    "recover decides by the source's journal only": (one_journal_only, 1, False, NOWHERE),
    "the end of input discards a held tree": (discard_when_alone, 1, False, NOWHERE),
    "a held tree is discarded without the source's ABORT": (discard_unasked, 1, False, NOWHERE),
    "what may have run is restored again": (restore_what_may_have_run, 1, False, AGAIN),
    "RESUMING is written after the release": (broken("RESUMING after the release"), 1, True, AGAIN),
    "RESUMING is not synced": (broken("RESUMING is not synced"), 1, True, AGAIN),
    "HELD is not synced": (broken("HELD is not synced"), 1, True, NOWHERE),
    "HELD before the images are on disk": (broken("HELD before the images are on disk"), 1, True, NOWHERE),
    "FROZEN is not synced": (broken("FROZEN is not synced"), 1, False, NOWHERE),
    "ABORT is not synced": (broken("ABORT is not synced"), 2, False, STALE),
    "COMMIT by an agent that does not look at its criu": (
        broken("commit without a hold and no SIGSTOP is queued"), 1, False, STALE,
    ),
    "the hook's veto is not recorded": (script('"$answer$aborted" = veto', '"" = veto'), 2, False, STALE),
    "the hook leaves a torn line to others": (
        script('"$answer$aborted" = veto', '"$answer$aborted$line" = veto'), 2, False, STALE,
    ),
    "the hook does not sync what it acts on": (script("sync journal", ": journal"), 2, True, STALE),
    "the hook lets go without a record": (script("answer=veto aborted", "answer=go aborted"), 1, False, TWO),
}  # fmt: skip


def test_who_takes_over_without_waiting_for_his_turn_is_found() -> None:
    """It takes two recovers, and a former agent that lives."""
    agents.BROKEN.add("nobody waits for his turn")
    with pytest.raises(explore.Broken) as found:
        explore.explore(faults=1, start=explore.committed)
    assert found.value.problem == DISORDER


def test_strays_that_nobody_looks_for_are_found() -> None:
    """A restore from the images is killed half-way, together with its agent."""
    agents.BROKEN.add("strays are not looked for")
    with pytest.raises(explore.Broken) as found:
        explore.explore(faults=2, start=functools.partial(explore.committed, target_is_dead=True), beside=False)
    assert found.value.problem == NOWHERE


@pytest.mark.parametrize("name", BREACHES)
def test_a_broken_rule_is_found(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    breach, faults, durable, problem = BREACHES[name]
    breach(monkeypatch)
    with pytest.raises(explore.Broken) as found:
        explore.explore(faults=faults, durable=durable)
    assert found.value.problem == problem
    assert len(found.value.steps.splitlines()) > faults, "the way that led to it is told"
