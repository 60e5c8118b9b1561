"""Two journals, one verdict; and a source that rebooted in the freeze, so that the target holds the only copy."""

from __future__ import annotations

import json

import pytest

from agent import protocol
from agent.protocol import JournalState
from migrator import errors, recovery
from migrator.peer import Peer
from migrator.phases import Phase
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
