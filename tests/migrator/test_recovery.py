"""Two journals, one verdict; and a source that rebooted in the freeze, so that the target holds the only copy."""

from __future__ import annotations

import dataclasses
import json

import pytest

from agent import images, process, protocol
from agent.protocol import JournalState
from migrator import errors, recovery
from migrator.peer import Peer
from migrator.phases import Phase
from migrator.reaching import RealHosts
from migrator.recovery import Course
from tests.fake_hosts import Pair, eventually
from tests.migrator.test_migration import Attempt, Lab

FROZEN = ["BEGIN", "FROZEN"]
KILLED = [*FROZEN, "COMMIT", "KILLED"]
HELD = ["PREPARED", "HELD"]
RUNS = [*HELD, "RESUMING", "RESUMED"]


def state(role: str, records: list[str], *, same_boot: bool = True, agent_alive: bool = False) -> JournalState:
    return JournalState("m", role, tuple(records), "other", 1, same_boot, agent_alive, False, 0, True)


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (["BEGIN"], ["PREPARED"], Course.UNDO),
        (FROZEN, HELD, Course.UNDO),
        ([*FROZEN, "ABORT"], HELD, Course.UNDO),
        ([*FROZEN, "ABORT"], [*HELD, "ABORT", "DONE"], Course.UNDO),
        ([*FROZEN, "ABORT", "DONE"], HELD, Course.UNDO),
        ([*FROZEN, "ABORT", "DONE"], [*HELD, "ABORT", "DONE"], Course.NOTHING),
        ([*FROZEN, "ABORT", "DONE"], [], Course.NOTHING),
        ([*FROZEN, "COMMIT"], HELD, Course.FORWARD),
        (KILLED, HELD, Course.FORWARD),
        (KILLED, [*HELD, "RESUMING"], Course.FORWARD),
        (KILLED, RUNS, Course.CLEAN),
        ([*KILLED, "DONE"], [*RUNS, "DONE"], Course.NOTHING),
    ],
)
def test_the_course(source: list[str], target: list[str], expected: Course) -> None:
    there = state("target" if target else "", target)
    assert recovery.course(state("source", source), there) is expected
    assert recovery.course(state("source", source, agent_alive=True), there) is Course.BUSY


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        (FROZEN, HELD, Course.FORWARD),
        (FROZEN, ["PREPARED"], Course.UNDO),
        (FROZEN, [*HELD, "ABORT"], Course.UNDO),
        ([*FROZEN, "ABORT"], HELD, Course.UNDO),
        (["BEGIN"], ["PREPARED"], Course.UNDO),
    ],
)
def test_the_course_when_the_source_has_rebooted(source: list[str], target: list[str], expected: Course) -> None:
    assert recovery.course(state("source", source, same_boot=False), state("target", target)) is expected


BY_WORD = [*HELD, "RESUMING", "RESUMED", "DONE"]


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ([*FROZEN, "ABORT"], BY_WORD, Course.DEPOSE),
        (FROZEN, BY_WORD, Course.DEPOSE),
        ([*FROZEN, "ABORT", "DEPOSED"], BY_WORD, Course.DEPOSE),
        ([*FROZEN, "COMMIT"], BY_WORD, Course.DEPOSE),
        ([*FROZEN, "ABORT", "DEPOSED", "KILLED"], BY_WORD, Course.CLEAN),
        (KILLED, BY_WORD, Course.CLEAN),
        ([*FROZEN, "ABORT", "DEPOSED", "KILLED", "DONE"], BY_WORD, Course.NOTHING),
        ([*KILLED, "DONE"], BY_WORD, Course.NOTHING),
    ],
)
def test_the_course_where_an_operator_gave_it_away(source: list[str], target: list[str], expected: Course) -> None:
    there = dataclasses.replace(state("target", target), word=protocol.Word.SOURCE_IS_DEAD)
    assert recovery.course(state("source", source), there) is expected


@pytest.mark.parametrize(
    ("source", "target", "same_boot", "images", "expected"),
    [
        (KILLED, HELD, False, False, True),
        ([*FROZEN, "COMMIT"], HELD, False, False, True),
        (KILLED, [*HELD, "ABORT"], False, False, True),
        ([*KILLED, "DONE"], [*HELD, "ABORT", "DONE"], False, False, True),
        (KILLED, HELD, False, True, False),
        (KILLED, HELD, True, False, False),
        (KILLED, RUNS, False, False, False),
        (KILLED, [*HELD, "RESUMING"], False, False, False),
        ([*FROZEN, "ABORT"], HELD, False, False, False),
        ([*FROZEN, "ABORT", "DONE"], [*HELD, "ABORT", "DONE"], False, False, False),
        (FROZEN, HELD, False, False, False),
        (["BEGIN"], ["PREPARED"], False, False, False),
    ],
)
def test_what_is_lost(source: list[str], target: list[str], same_boot: bool, images: bool, expected: bool) -> None:
    there = dataclasses.replace(state("target", target, same_boot=same_boot), images=images)
    assert recovery.lost(state("source", source), there) is expected
    assert recovery.lost(state("source", FROZEN, same_boot=False), there) is ("HELD" in target and gone(there))


def gone(there: JournalState) -> bool:
    """Of a target, as far as its own journal tells."""
    return "RESUMING" not in there.records and ("ABORT" in there.records or not (there.same_boot or there.images))


@pytest.fixture
def lab(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(pair, monkeypatch)


async def rebooted_in_the_freeze(lab: Lab) -> Attempt:
    """The tree is held there, the source undecided; then the source's power fails."""

    def power_fails() -> None:
        lab.source.kill_agent()
        lab.all_is_lost()

    attempt = await lab.migrate({Phase.COMMIT: power_fails}, children=1)
    attempt.failed(Phase.COMMIT, errors.InDoubt, 71)
    eventually(lambda: not any(call.alive for call in lab.source.calls()), "criu leaves")
    attempt.victim.close()
    path = lab.source.state / attempt.id / "journal"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    # the hook outlived its agent, and wrote what none writes who loses power together with it
    assert lines.pop()["record"] == "ABORT"
    assert [line["record"] for line in lines if line["record"].isupper()] == FROZEN
    lines[0]["boot"] = "another"
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    lab.all_is_well()
    return attempt


async def test_a_source_that_rebooted_lets_the_target_go_forward(lab: Lab) -> None:
    attempt = await rebooted_in_the_freeze(lab)
    outcome = await lab.recover(attempt)
    assert (outcome.course, outcome.host) == (Course.FORWARD, "beta")
    assert outcome.pid in lab.target.restored()
    attempt.lives_on_target()


async def test_nothing_is_given_up_while_the_only_copy_is_out_of_reach(lab: Lab) -> None:
    attempt = await rebooted_in_the_freeze(lab)
    lab.links.unreachable.add("target")
    with pytest.raises(errors.InDoubt, match="may hold the process"):
        await lab.recover(attempt)
    lab.links.unreachable.clear()
    assert (await lab.recover(attempt)).course is Course.FORWARD
    attempt.lives_on_target()


# --- what is owed to the target --------------------------------------------------------------------------------------


async def undone_and_not_told(lab: Lab) -> Attempt:
    """`migrate` dies between the source's ABORT and the target's: that one holds the tree, and waits."""
    abort = Peer.abort

    async def die_before_the_target_is_told(peer: Peer, request: protocol.Abort) -> protocol.Leftovers:
        if peer.host == lab.target.name:
            lab.all_is_lost()
        return await abort(peer, request)

    with lab.monkeypatch.context() as patch:
        patch.setattr(Peer, "abort", die_before_the_target_is_told)
        attempt = await lab.migrate({Phase.COMMIT: lab.signal})
    lab.all_is_well()
    assert lab.source.journal(attempt.id) == [*FROZEN, "ABORT"]
    assert lab.target.journal(attempt.id) == HELD
    assert attempt.victim.runs
    return attempt


async def test_recover_finds_by_itself_what_the_target_was_not_told(lab: Lab) -> None:
    attempt = await undone_and_not_told(lab)
    outcome = await recovery.recover_over("", lab.links, attempt.watcher)
    assert (outcome.course, outcome.host) == (Course.UNDO, "alpha")
    attempt.lives_on_source()


async def test_what_the_target_can_not_be_told_stays_to_be_told(lab: Lab) -> None:
    attempt = await undone_and_not_told(lab)
    lab.links.unreachable.add("target")
    assert "could not be told" in (await recovery.recover_over("", lab.links, attempt.watcher)).text
    lab.links.unreachable.clear()
    assert (await recovery.recover_over("", lab.links, attempt.watcher)).course is Course.UNDO
    attempt.lives_on_source()
    with pytest.raises(errors.PreflightError):  # nothing is unfinished any more
        await recovery.recover_over("", lab.links, attempt.watcher)


async def test_the_target_decides_the_same(lab: Lab) -> None:
    """Run there, it asks the source; without it nothing is done to what is held."""
    attempt = await rebooted_in_the_freeze(lab)
    lab.links.at = "target"
    lab.links.unreachable.add("source")
    with pytest.raises(errors.InDoubt, match="holds the process"):
        await lab.recover(attempt)
    lab.links.unreachable.clear()
    outcome = await lab.recover(attempt)
    assert outcome.course is Course.FORWARD
    assert outcome.pid in lab.target.restored()
    attempt.lives_on_target()


async def test_undo_only_goes_nowhere_after_commit(lab: Lab) -> None:
    attempt = await rebooted_in_the_freeze(lab)
    with pytest.raises(errors.TooLate):
        await recovery.recover_over(attempt.id, lab.links, attempt.watcher, undo_only=True)
    assert (await lab.recover(attempt)).course is Course.FORWARD
    attempt.lives_on_target()


# --- an operator's word, and a target that lost power ----------------------------------------------------------------

DEAD, ANYWAY = protocol.Word.SOURCE_IS_DEAD, protocol.Word.RESTORE_ANYWAY


async def test_a_source_that_is_said_to_be_dead_and_comes_back(lab: Lab) -> None:
    """It had undone it, so two of it run: what runs on the source ends with the first recover."""
    attempt = await undone_and_not_told(lab)
    victim = (attempt.victim.pid, process.start_time(attempt.victim.pid))
    lab.links.at = "target"
    with pytest.raises(errors.PreflightError, match="is not dead"):
        await recovery.recover_over(attempt.id, lab.links, attempt.watcher, word=DEAD)
    assert lab.target.journal(attempt.id) == HELD
    lab.links.unreachable.add("source")
    outcome = await recovery.recover_over(attempt.id, lab.links, attempt.watcher, word=DEAD)
    assert (outcome.course, outcome.host) == (Course.FORWARD, "beta")
    assert outcome.pid in lab.target.running()
    assert attempt.victim.runs
    lab.links.unreachable.clear()
    lab.links.at = "source"
    deposed = await recovery.recover_over("", lab.links, attempt.watcher)
    assert (deposed.course, deposed.host) == (Course.DEPOSE, "beta")
    assert "was killed" in deposed.text
    assert not process.alive(*victim)
    assert outcome.pid in lab.target.running()
    assert lab.source.journal(attempt.id) == [*FROZEN, "ABORT", "DEPOSED", "KILLED", "DONE"]
    assert (await recovery.recover_over(attempt.id, lab.links, attempt.watcher)).host == "beta"


@pytest.mark.parametrize("word", [DEAD, ANYWAY])
async def test_a_word_is_not_taken_on_the_source_nor_where_the_journals_decide(lab: Lab, word: protocol.Word) -> None:
    attempt = await undone_and_not_told(lab)
    with pytest.raises(errors.PreflightError, match="is the source"):
        await recovery.recover_over(attempt.id, lab.links, attempt.watcher, word=word)
    lab.links.at = "target"
    with pytest.raises(errors.PreflightError, match="is not"):
        await recovery.recover_over(attempt.id, lab.links, attempt.watcher, word=word)
    assert lab.target.journal(attempt.id) == HELD
    assert attempt.victim.runs


async def test_a_target_that_lost_power_with_the_only_copy(lab: Lab) -> None:
    attempt = await rebooted_in_the_freeze(lab)
    path = lab.target.state / attempt.id / "journal"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["boot"] = "another"
    path.write_text("".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines))
    lab.target.kill_agent()
    eventually(lambda: not any(call.alive for call in lab.target.calls()), "criu leaves")
    for place in (*lab.target.run.glob(attempt.id), *lab.target.state.glob(f"{attempt.id}/images")):
        eventually(lambda place=place: images.remove_place(place) == (), "nobody uses it")  # type: ignore[misc]
    for _ in range(2):
        with pytest.raises(errors.Lost, match="only copy"):
            await recovery.recover_over(attempt.id, lab.links, attempt.watcher)
    assert lab.source.journal(attempt.id) == [*KILLED, "DONE"]
    assert lab.target.journal(attempt.id) == [*HELD, "ABORT", "DONE"]


@pytest.mark.parametrize("peer", ["other", ""])
@pytest.mark.parametrize(
    ("command", "shown"),
    [("python3 -IS /x terminal /run/y", True), ("x; reboot", False), ("x $(reboot)", False), ("x\x1b[2J", False)],
)
def test_only_words_for_the_other_host_are_there_to_be_pasted(peer: str, command: str, shown: bool) -> None:
    there = dataclasses.replace(state("target", RUNS), terminal=command, hangs_up=True)
    done = recovery.Outcome(Course.CLEAN, "it runs", "other", 4).shown(there, peer, RealHosts(""))
    assert done.terminal == (command if not peer else f"ssh -t other {command}") * shown
    assert bool(done.hangs_up_seconds) is shown
