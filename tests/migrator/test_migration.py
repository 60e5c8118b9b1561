"""The grid: every way to break a migration at every phase. Exactly one copy of the process, and nothing behind.

Each test says the phases that are seen, the error and its exit code, and where the process lives then. The hosts are
fake (`tests.fake_hosts`), the agents are real.
"""

from __future__ import annotations

import asyncio
import dataclasses
import os
import re
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from agent import process
from agent.lock import TaskLocks
from agent.protocol import CriuOptions, HostFacts, Incoming, Place, TargetCheck, TreeFacts
from migrator import errors, hosts, migration, plan, precopy, recovery, transport
from migrator.history import History
from migrator.peer import Peer
from migrator.phases import Phase, Report, Round
from tests.fake_hosts import Pair, Victim, eventually, soon

PHASES: list[Phase] = [phase for phase in Phase if phase not in (Phase.FILL, Phase.ROLLBACK)]
"""Those of an eager migration: when it resumes there is nothing left to fill in, and nothing is only rehearsed."""
Cue = Callable[[], Awaitable[None] | None]


def up_to(phase: Phase) -> list[Phase]:
    """What an observer has seen of a migration that ended in this phase."""
    return PHASES[: PHASES.index(phase) + 1]


class Watcher:
    """An observer that breaks things on cue."""

    def __init__(self, cues: dict[Phase, Cue]) -> None:
        self._cues = cues
        self.phases: list[Phase] = []
        self.notes: list[str] = []
        self.rounds: list[Round] = []
        self.reported: Report | None = None
        self.ids: list[str] = []

    def started(self, migration: str) -> None:
        self.ids.append(migration)

    async def phase(self, phase: Phase) -> None:
        """Written down, then the cue."""
        self.phases.append(phase)
        if phase in self._cues:
            waiting = self._cues[phase]()
            if waiting is not None:
                await waiting

    def note(self, text: str) -> None:
        self.notes.append(text)

    def detail(self, text: str) -> None:
        pass

    def round_started(self, number: int, expected_bytes: int, final: bool) -> None:
        pass

    def transferred(self, sent_bytes: int) -> None:
        pass

    def round_done(self, number: int, result: Round, final: bool) -> None:
        self.rounds.append(result)

    def report(self, report: Report) -> None:
        self.reported = report


@dataclasses.dataclass
class Attempt:
    """One migration that was tried, and how it ended."""

    pair: Pair
    victim: Victim
    watcher: Watcher
    id: str
    report: Report | None
    error: BaseException | None

    def failed(self, phase: Phase, kind: type[BaseException], exit_code: int | None = None) -> None:
        """It ended in this phase, with exactly this class of error."""
        assert self.watcher.phases == up_to(phase)
        assert type(self.error) is kind, repr(self.error)
        if exit_code is not None:
            assert isinstance(self.error, errors.MigrateError)
            assert self.error.exit_code == exit_code

    def succeeded(self) -> Report:
        """It went through all phases and reported."""
        assert self.error is None, repr(self.error)
        assert self.watcher.phases == PHASES
        assert self.report is not None
        assert self.report == self.watcher.reported
        assert self.report.outcome == "migrated"
        return self.report

    def lives_on_source(self) -> None:
        """One copy: the original, running. No trace of the attempt on either host but finished journals."""
        assert self.victim.living == self.victim.pids
        assert self.victim.runs, "the original is alive but does not run"
        assert self.pair.target.restored() == []
        assert self.pair.target.ever_ran() == set(), "two copies ran"
        self._nothing_behind()
        assert self.pair.source.journal(self.id)[-2:] in ([], ["ABORT", "DONE"])
        assert self.pair.target.journal(self.id)[-2:] in ([], ["ABORT", "DONE"])

    def lives_on_target(self) -> None:
        """One copy: the restored one, running. No trace of the migration on either host but finished journals."""
        self.only_copy_runs_on_target()
        self._nothing_behind()
        assert self.pair.source.journal(self.id) == ["BEGIN", "FROZEN", "COMMIT", "KILLED", "DONE"]
        assert self.pair.target.journal(self.id)[-3:] == ["RESUMING", "RESUMED", "DONE"]

    def only_copy_runs_on_target(self) -> None:
        """The original is dead, and each of its tasks has one successor, which runs."""
        assert self.victim.living == []
        assert len(self.pair.target.restored()) == len(self.victim.pids)
        assert self.pair.target.running() == self.pair.target.restored()

    def lives_nowhere(self) -> None:
        """The original is dead, nothing of it ever ran elsewhere: its images are all that is left, on the target."""
        assert self.victim.living == []
        assert self.pair.target.running() == []
        assert self.pair.target.ever_ran() == set()
        assert list(self.pair.directory.glob(f"beta/*/{self.id}/**/pages-1.img")), "the images are gone"

    def _nothing_behind(self) -> None:
        assert self.pair.source.settle_down() == []
        assert self.pair.target.settle_down() == []
        assert (self.pair.directory / "extra").read_text() == "comes along"
        assert list(self.pair.directory.glob(".migrate-*")) == []


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosts, "RECONNECT_PAUSE", 0.01)


class Lab:
    """What a test tries migrations with."""

    def __init__(self, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
        self.pair = pair
        self.source, self.target, self.links = pair.source, pair.target, pair.links
        self.monkeypatch = monkeypatch
        self.precopy = True
        self.rounds = 0
        """Pre-copy rounds before the freeze."""
        self.history = History(pair.directory / "kept" / "history.json")
        self.rehearsal = False
        self.wishes = plan.Wishes(copy_files=True)
        self.place = Place()
        self.give_up = False
        """Whether the controller gives up in the place of a freeze."""
        self._extra = pair.directory / "extra"
        self._extra.write_text("comes along")

    def _plan(self, tree: TreeFacts) -> plan.Plan:
        # both hosts are this one: what is to be replaced is what is to come
        status = self._extra.stat()
        extra = Incoming(str(self._extra), True, status.st_size, status.st_mtime_ns)
        copies = (extra,) if self.wishes.copy_files else ()
        on_disk = os.geteuid() != 0  # a tmpfs of one's own takes root
        return plan.Plan(tree, self.precopy, CriuOptions(), copies, on_disk, 16 << 20, (), place=self.place)

    async def migrate(self, cues: dict[Phase, Cue] | None = None, children: int = 0) -> Attempt:
        """Try it, with these things happening when a phase is about to begin."""
        victim = self.pair.victim(children)
        watcher = Watcher(cues or {})
        target, limits = transport.Target("beta"), precopy.Limits()
        order = hosts.Order(victim.pid, target, self.wishes, limits, rehearsal=self.rehearsal)
        trial = migration.Migration(order, watcher, self.links, self.history)

        def make_plan(
            source: HostFacts, target: HostFacts, tree: TreeFacts, check: TargetCheck, wishes: plan.Wishes
        ) -> tuple[plan.Plan, tuple[plan.Obstacle, ...]]:
            # both hosts have the same PIDs, so the real plan would find all of them taken
            return self._plan(tree), ()

        def decide(rounds: Sequence[Round], *rest: object) -> precopy.Decision:
            end = precopy.Action.FAIL if self.give_up else precopy.Action.FREEZE
            action = end if len(rounds) == self.rounds else precopy.Action.AGAIN
            return precopy.Decision(action, "so many will do", 0.1, 12288, True)

        self.monkeypatch.setattr(plan, "make_plan", make_plan)
        self.monkeypatch.setattr(precopy, "decide", decide)
        attempt = Attempt(self.pair, victim, watcher, trial.id, None, None)
        self.task = asyncio.ensure_future(trial.run())
        try:
            attempt.report = await self.task
        except (errors.MigrateError, asyncio.CancelledError, ZeroDivisionError) as error:
            attempt.error = error
        return attempt

    # --- recovering ---

    async def recover(self, attempt: Attempt) -> recovery.Outcome:
        """`migrate recover`, once the former agent has gone."""
        await soon(lambda: not any(process.alive(*agent) for agent in self.source.agents), "the agent leaves")
        return await recovery.recover_over(attempt.id, self.links, attempt.watcher)

    # --- ways to break it ---

    def all_is_lost(self) -> None:
        """What the hosts see when `migrate` itself is killed, or its host's network goes: nobody speaks any more."""
        self.links.lose_all()
        self.source.starts_no_agent = True

    def all_is_well(self) -> None:
        self.links.unreachable.clear()
        self.source.starts_no_agent = False

    def source_agent_dies(self) -> None:
        self.source.kill_agent()

    def target_agent_dies(self) -> None:
        self.target.kill_agent()

    def target_agent_is_ended(self) -> None:
        """SIGTERM: to the agent this is the end of its input, and nobody else sees an end of anything."""
        os.kill(self.target.agents[-1][0], signal.SIGTERM)

    def link_drops(self) -> None:
        self.links.cut("target")

    def signal(self) -> None:
        self.task.cancel()

    def when_criu(self, host: str, command: str, act: Callable[[], None]) -> Cue:
        """A cue that waits, in the background, until this criu is at work, and then breaks something."""

        async def wait() -> None:
            fake = getattr(self, host)
            await soon(lambda: any(call.alive for call in fake.calls(command)), f"criu {command} is at work")
            await asyncio.sleep(0.03)
            act()

        def start() -> None:
            self.background = asyncio.ensure_future(wait())

        return start


@pytest.fixture
def lab(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> Lab:
    return Lab(pair, monkeypatch)


BEFORE_COMMIT = [Phase.PREFLIGHT, Phase.PRECOPY, Phase.FREEZE, Phase.RESTORE, Phase.COMMIT]
FROM_COMMIT = [Phase.COMMIT, Phase.RESUME, Phase.CLEAN]


# --- it works --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("children", [0, 2])
async def test_a_migration(lab: Lab, children: int) -> None:
    lab.rounds = 2
    attempt = await lab.migrate(children=children)
    report = attempt.succeeded()
    assert report.leftovers == ()
    assert report.target_pid in lab.target.restored()
    assert [done.pages for done in report.rounds] == [3, 3, 2]
    assert 0 < report.freeze_seconds < report.downtime_seconds < report.total_seconds
    assert report.predicted_downtime_seconds == 0.1
    learnt = lab.history.costs("beta")
    assert 0 < learnt.fixed_seconds < report.downtime_seconds + precopy.TYPICAL_FIXED_SECONDS
    assert learnt != precopy.Costs()
    attempt.lives_on_target()
    assert lab.target.journal(attempt.id) == ["PREPARED", "HELD", "RESUMING", "RESUMED", "DONE"]


async def test_one_that_does_not_converge_is_left_where_it_is(lab: Lab) -> None:
    lab.rounds, lab.give_up = 2, True
    attempt = await lab.migrate()
    attempt.failed(Phase.PRECOPY, errors.NotConverging, 35)
    attempt.lives_on_source()
    assert len(attempt.watcher.rounds) == 2
    assert lab.history.costs("beta") == precopy.Costs(), "nothing was measured"


async def test_without_precopy_all_goes_in_the_freeze(lab: Lab) -> None:
    lab.precopy = False
    attempt = await lab.migrate()
    assert [done.pages for done in attempt.succeeded().rounds] == [2]
    assert "--track-mem" not in lab.source.calls("dump")[0].argv
    attempt.lives_on_target()


# --- an agent dies, the link drops, a signal comes, as a phase is about to begin -------------------------------------


@pytest.mark.parametrize("phase", BEFORE_COMMIT)
async def test_the_sources_agent_dies_before_commit(lab: Lab, phase: Phase) -> None:
    attempt = await lab.migrate({phase: lab.source_agent_dies})
    # while the target restores nobody talks to the source: it is missed at COMMIT
    attempt.failed(Phase.COMMIT if phase is Phase.RESTORE else phase, errors.LinkLost, 34)
    attempt.lives_on_source()


@pytest.mark.parametrize("phase", [Phase.RESUME, Phase.CLEAN])
async def test_the_sources_agent_dies_after_commit(lab: Lab, phase: Phase) -> None:
    attempt = await lab.migrate({phase: lab.source_agent_dies})
    assert attempt.succeeded().leftovers == ()
    attempt.lives_on_target()


@pytest.mark.parametrize("phase", [Phase.PREFLIGHT, Phase.PRECOPY, Phase.FREEZE, Phase.RESTORE])
async def test_the_targets_agent_dies_before_it_holds_the_tree(lab: Lab, phase: Phase) -> None:
    attempt = await lab.migrate({phase: lab.target_agent_dies})
    attempt.failed(phase, errors.LinkLost, 34)
    attempt.lives_on_source()


@pytest.mark.parametrize("phase", FROM_COMMIT)
async def test_the_targets_agent_dies_when_it_holds_the_tree(lab: Lab, phase: Phase) -> None:
    attempt = await lab.migrate({phase: lab.target_agent_dies})
    assert attempt.succeeded().leftovers == ()
    attempt.lives_on_target()


async def test_the_targets_agent_is_ended_when_it_holds_the_tree(lab: Lab) -> None:
    """It stays for its lease, and must be seen to listen no more: else it would be waited for, as long as that is."""
    attempt = await lab.migrate({Phase.COMMIT: lab.target_agent_is_ended})
    assert attempt.succeeded().leftovers == ()
    attempt.lives_on_target()


@pytest.mark.parametrize("phase", [Phase.PREFLIGHT, Phase.PRECOPY, Phase.FREEZE, Phase.RESTORE])
async def test_the_link_drops_before_the_target_holds_the_tree(lab: Lab, phase: Phase) -> None:
    attempt = await lab.migrate({phase: lab.link_drops})
    attempt.failed(phase, errors.LinkLost, 34)
    attempt.lives_on_source()


@pytest.mark.parametrize("phase", FROM_COMMIT)
async def test_the_link_drops_when_the_target_holds_the_tree(lab: Lab, phase: Phase) -> None:
    attempt = await lab.migrate({phase: lab.link_drops})
    assert attempt.succeeded().leftovers == ()
    attempt.lives_on_target()


@pytest.mark.parametrize("phase", [Phase.CONNECT, *BEFORE_COMMIT])
async def test_a_signal_before_commit(lab: Lab, phase: Phase) -> None:
    attempt = await lab.migrate({phase: lab.signal})
    attempt.failed(phase, asyncio.CancelledError)
    attempt.lives_on_source()


@pytest.mark.parametrize("phase", [Phase.RESUME, Phase.CLEAN])
async def test_a_signal_after_commit_changes_nothing(lab: Lab, phase: Phase) -> None:
    attempt = await lab.migrate({phase: lab.signal})
    attempt.succeeded()
    attempt.lives_on_target()


async def test_a_signal_at_the_very_commit_changes_nothing(lab: Lab) -> None:
    commit = Peer.commit

    async def commit_and_signal(peer: Peer) -> Any:
        lab.signal()
        return await commit(peer)

    lab.monkeypatch.setattr(Peer, "commit", commit_and_signal)
    attempt = await lab.migrate()
    attempt.succeeded()
    attempt.lives_on_target()


# --- criu fails ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("host", "behaviour", "phase", "kind", "words"),
    [
        ("source", {"pre_dump": "fail"}, Phase.PRECOPY, errors.DumpError, "criu failed on alpha: Can't dump task"),
        ("source", {"pre_dump": "no-space"}, Phase.PRECOPY, errors.NoSpace, "alpha: .*No space left on device"),
        ("source", {"pre_dump": "die"}, Phase.PRECOPY, errors.DumpError, "criu failed on alpha"),
        ("target", {"page_server": "no-space"}, Phase.PRECOPY, errors.NoSpace, "beta: .*No space left on device"),
        ("target", {"page_server": "die"}, Phase.PRECOPY, errors.CopyError, "criu failed on beta"),
        ("target", {"page_server": "die-late"}, Phase.PRECOPY, errors.CopyError, "criu failed on beta"),
        (
            "source",
            {"dump": "fail-before-hold"},
            Phase.FREEZE,
            errors.DumpError,
            "criu failed on alpha: Can't dump task",
        ),
        ("source", {"dump": "no-space"}, Phase.FREEZE, errors.NoSpace, "alpha: .*No space left on device"),
        ("source", {"dump": "die-before-hold"}, Phase.FREEZE, errors.DumpError, "criu failed on alpha"),
        ("source", {"dump": "end-without-hold"}, Phase.FREEZE, errors.DumpError, "criu ended before its hold"),
        ("target", {"page_server": ["ok", "no-space"]}, Phase.FREEZE, errors.NoSpace, "No space left on device"),
        ("target", {"page_server": ["ok", "die-late"]}, Phase.FREEZE, errors.CopyError, "criu failed on beta"),
        (
            "target",
            {"restore": "fail"},
            Phase.RESTORE,
            errors.RestoreError,
            "criu failed on beta: Can't open file",
        ),
        ("target", {"restore": "no-space"}, Phase.RESTORE, errors.NoSpace, "beta: .*No space left on device"),
        ("target", {"restore": "die-before-hold"}, Phase.RESTORE, errors.RestoreError, "criu failed on beta"),
    ],
)
async def test_a_criu_that_fails_before_commit(
    lab: Lab, host: str, behaviour: dict[str, Any], phase: Phase, kind: type[errors.MigrateError], words: str
) -> None:
    lab.rounds = 1
    getattr(lab, host).behave(**behaviour)
    attempt = await lab.migrate()
    attempt.failed(phase, kind)
    assert re.search(words, str(attempt.error))
    attempt.lives_on_source()


@pytest.mark.parametrize("behaviour", ["die-at-hold", "hook-killed"])
async def test_a_dump_that_is_lost_as_it_reaches_its_hold(lab: Lab, behaviour: str) -> None:
    """Nobody may have queued a SIGSTOP by then and the tree has run: nothing of this dump may be used."""
    lab.source.behave(dump=behaviour)
    attempt = await lab.migrate()
    # seen at once, or when COMMIT is to be written: a matter of microseconds
    assert attempt.watcher.phases[-1] in (Phase.FREEZE, Phase.COMMIT)
    attempt.failed(attempt.watcher.phases[-1], errors.DumpError, 32)
    attempt.lives_on_source()


async def test_a_criu_that_dies_in_its_hold_on_the_source(lab: Lab) -> None:
    """The queued SIGSTOP keeps the tree from running; undoing takes it back."""

    async def criu_dies() -> None:
        lab.source.kill_criu("dump")
        await asyncio.sleep(0.05)

    attempt = await lab.migrate({Phase.COMMIT: criu_dies}, children=1)
    attempt.failed(Phase.COMMIT, errors.DumpError, 32)
    attempt.lives_on_source()


@pytest.mark.parametrize("phase", [Phase.COMMIT, Phase.RESUME])
async def test_a_criu_that_dies_in_its_hold_on_the_target(lab: Lab, phase: Phase) -> None:
    """The tree never ran there: what is left of it is cleared away, and it is restored once more from the images."""
    attempt = await lab.migrate({phase: lambda: lab.target.kill_criu("restore")}, children=1)
    attempt.succeeded()
    attempt.lives_on_target()
    assert len(lab.target.calls("restore")) == 2


@pytest.mark.parametrize("behaviour", ["die-at-hold", "hook-killed"])
async def test_a_restore_that_is_lost_as_it_reaches_its_hold(lab: Lab, behaviour: str) -> None:
    lab.target.behave(restore=[behaviour])
    attempt = await lab.migrate()
    # whether its end or its hold is seen first is a matter of microseconds
    if attempt.error is None:
        attempt.lives_on_target()
    else:
        attempt.failed(Phase.RESTORE, errors.RestoreError, 33)
        attempt.lives_on_source()


async def test_a_restore_that_fails_after_the_tree_was_let_go_is_not_tried_again(lab: Lab) -> None:
    lab.target.behave(restore="fail-after-hold")
    attempt = await lab.migrate()
    attempt.failed(Phase.RESUME, errors.NotResumed, 70)
    attempt.lives_nowhere()
    assert len(lab.target.calls("restore")) == 1


async def test_a_restore_that_fails_again_keeps_the_images(lab: Lab) -> None:
    lab.target.behave(restore=["ok", "fail"])
    attempt = await lab.migrate({Phase.RESUME: lambda: lab.target.kill_criu("restore")})
    attempt.failed(Phase.RESUME, errors.NotResumed, 70)
    attempt.lives_nowhere()


# --- things break while criu is at work ------------------------------------------------------------------------------

_AT_WORK = [
    (Phase.PRECOPY, "source", "pre-dump", {"pre_dump": "hang"}),
    (Phase.FREEZE, "source", "dump", {"dump": "hang"}),
    (Phase.RESTORE, "target", "restore", {"restore": "slow"}),
]


@pytest.mark.parametrize(("phase", "host", "command", "behaviour"), _AT_WORK, ids=[row[2] for row in _AT_WORK])
@pytest.mark.parametrize("what", ["source_agent_dies", "target_agent_dies", "link_drops", "signal"])
async def test_in_the_middle(
    lab: Lab, phase: Phase, host: str, command: str, behaviour: dict[str, Any], what: str
) -> None:
    lab.rounds = 1 if phase is Phase.PRECOPY else 0
    getattr(lab, host).behave(**behaviour)
    attempt = await lab.migrate({phase: lab.when_criu(host, command, getattr(lab, what))})
    if what == "signal":
        attempt.failed(phase, asyncio.CancelledError)
    elif (what, phase) == ("source_agent_dies", Phase.RESTORE):
        attempt.failed(Phase.COMMIT, errors.LinkLost, 34)
    else:
        attempt.failed(phase, errors.LinkLost, 34)
    attempt.lives_on_source()


# --- an agent dies at a decision: right before its record is on disk, or right after ---------------------------------

_UNDONE_BY = {"BEGIN": Phase.PREFLIGHT, "FROZEN": Phase.FREEZE, "PREPARED": Phase.PREFLIGHT, "HELD": Phase.RESTORE}


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("record", ["BEGIN", "FROZEN", "COMMIT", "KILLED", "DONE"])
async def test_the_sources_agent_dies_at_a_decision(lab: Lab, record: str, when: str) -> None:
    lab.source.deaths = [(when, record)]
    attempt = await lab.migrate(children=1)
    if (when, record) == ("before", "BEGIN"):
        # there is no journal to tell of its locks; they died with it, and the next agent to lock the tree takes them
        attempt.failed(_UNDONE_BY[record], errors.LinkLost, 34)
        assert {Path(line.split()[0]).parent.name for line in lab.source.settle_down(0.1)} == {"run", "locks"}
        TaskLocks(lab.source.run / "locks").sweep(attempt.victim.pids)
        attempt.lives_on_source()
    elif record in ("BEGIN", "FROZEN"):
        attempt.failed(_UNDONE_BY[record], errors.LinkLost, 34)
        attempt.lives_on_source()
    elif (when, record) == ("before", "COMMIT"):
        attempt.failed(Phase.COMMIT, errors.LinkLost, 34)
        attempt.lives_on_source()
    else:
        assert attempt.succeeded().leftovers == ()
        attempt.lives_on_target()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("record", ["PREPARED", "HELD", "RESUMING", "RESUMED", "DONE"])
async def test_the_targets_agent_dies_at_a_decision(lab: Lab, record: str, when: str) -> None:
    lab.target.deaths = [(when, record)]
    attempt = await lab.migrate(children=1)
    if record in ("PREPARED", "HELD"):
        attempt.failed(_UNDONE_BY[record], errors.LinkLost, 34)
        attempt.lives_on_source()
    else:
        report = attempt.succeeded()
        assert report.leftovers == ()
        assert report.target_pid in lab.target.restored()
        attempt.lives_on_target()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("record", ["ABORT", "DONE"])
@pytest.mark.parametrize("host", ["source", "target"])
async def test_an_agent_dies_while_it_undoes(lab: Lab, host: str, record: str, when: str) -> None:
    getattr(lab, host).deaths = [(when, record)]
    attempt = await lab.migrate({Phase.COMMIT: lab.signal}, children=1)
    attempt.failed(Phase.COMMIT, asyncio.CancelledError)
    attempt.lives_on_source()


@pytest.mark.parametrize(
    ("host", "record", "phase", "kind"),
    [
        ("source", "BEGIN", Phase.PREFLIGHT, errors.NoSpace),
        ("target", "PREPARED", Phase.PREFLIGHT, errors.NoSpace),
        ("source", "FROZEN", Phase.FREEZE, errors.NoSpace),
        ("target", "HELD", Phase.RESTORE, errors.NoSpace),
        ("source", "COMMIT", Phase.COMMIT, errors.NoSpace),
    ],
)
async def test_a_decision_that_the_disk_does_not_take_before_commit(
    lab: Lab, host: str, record: str, phase: Phase, kind: type[errors.MigrateError]
) -> None:
    getattr(lab, host).deaths = [("fails", record)]
    attempt = await lab.migrate(children=1)
    attempt.failed(phase, kind)
    if record == "BEGIN":
        TaskLocks(lab.source.run / "locks").sweep(attempt.victim.pids)
    attempt.lives_on_source()


@pytest.mark.parametrize(("host", "record"), [("source", "KILLED"), ("source", "DONE"), ("target", "DONE")])
async def test_a_decision_that_the_disk_does_not_take_after_commit(lab: Lab, host: str, record: str) -> None:
    getattr(lab, host).deaths = [("fails", record)]
    attempt = await lab.migrate(children=1)
    assert attempt.succeeded().leftovers == ()
    attempt.lives_on_target()


@pytest.mark.parametrize("record", ["RESUMING", "RESUMED"])
async def test_a_target_whose_disk_is_full_at_resume(lab: Lab, record: str) -> None:
    """Nobody may say that the process runs nowhere: with RESUMED it does."""
    lab.target.deaths = [("fails", record)]
    attempt = await lab.migrate(children=1)
    attempt.failed(Phase.RESUME, errors.InDoubt, 71)
    assert attempt.victim.living == []
    assert (await lab.recover(attempt)).host == "beta"
    attempt.lives_on_target()


# --- an observer fails -----------------------------------------------------------------------------------------------


def _fails() -> None:
    raise ZeroDivisionError("a progress bar of nothing")


@pytest.mark.parametrize("phase", [Phase.CONNECT, Phase.FREEZE, Phase.COMMIT, Phase.RESUME, Phase.CLEAN])
async def test_an_observer_that_fails_changes_nothing_but_the_end(lab: Lab, phase: Phase) -> None:
    attempt = await lab.migrate({phase: _fails})
    attempt.failed(Phase.CLEAN, ZeroDivisionError)
    assert attempt.watcher.reported is not None
    attempt.lives_on_target()


async def test_an_observer_that_fails_at_everything(lab: Lab) -> None:
    for name in ("note", "detail", "round_started", "transferred", "round_done", "report"):
        lab.monkeypatch.setattr(Watcher, name, lambda *arguments: _fails())
    attempt = await lab.migrate({Phase.COMMIT: lab.target_agent_dies})
    attempt.failed(Phase.CLEAN, ZeroDivisionError)
    attempt.lives_on_target()


# --- nobody can settle it at once: recover ---------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [Phase.PRECOPY, Phase.FREEZE, Phase.RESTORE, Phase.COMMIT])
async def test_all_contact_is_lost_before_commit(lab: Lab, phase: Phase) -> None:
    attempt = await lab.migrate({phase: lab.all_is_lost})
    assert attempt.victim.runs
    lab.all_is_well()
    outcome = await lab.recover(attempt)
    assert (outcome.host, outcome.pid) == ("alpha", attempt.victim.pid)
    attempt.lives_on_source()
    assert (await lab.recover(attempt)).course is recovery.Course.NOTHING


@pytest.mark.parametrize("phase", [Phase.RESUME, Phase.CLEAN])
async def test_all_contact_is_lost_after_commit(lab: Lab, phase: Phase) -> None:
    attempt = await lab.migrate({phase: lab.all_is_lost})
    if phase is Phase.RESUME:
        attempt.failed(Phase.RESUME, errors.InDoubt, 71)
        attempt.lives_nowhere()
    else:
        assert len(attempt.succeeded().leftovers) == 2
        attempt.only_copy_runs_on_target()
    lab.all_is_well()
    outcome = await lab.recover(attempt)
    assert outcome.host == "beta"
    assert outcome.pid in lab.target.restored()
    attempt.lives_on_target()
    assert (await lab.recover(attempt)).course is recovery.Course.NOTHING


async def test_the_source_cannot_be_asked_after_its_agent_died_at_commit(lab: Lab) -> None:
    """COMMIT is written, but nobody here knows: then nobody may discard what the target holds."""

    def no_other_agent() -> None:
        lab.source.starts_no_agent = True

    lab.source.deaths = [("after", "COMMIT")]
    attempt = await lab.migrate({Phase.COMMIT: no_other_agent}, children=1)
    attempt.failed(Phase.COMMIT, errors.InDoubt, 71)
    eventually(lambda: attempt.victim.living == [], "the hook lets criu kill the tree")
    attempt.lives_nowhere()
    lab.source.starts_no_agent = False
    assert (await lab.recover(attempt)).course is recovery.Course.FORWARD
    attempt.lives_on_target()


@pytest.mark.parametrize("record", ["RESUMING", "RESUMED"])
async def test_both_agents_die_after_commit_and_recover_finishes_it(lab: Lab, record: str) -> None:
    def target_unreachable() -> None:
        lab.links.unreachable.add("target")

    lab.source.deaths = [("after", "KILLED")]
    lab.target.deaths = [("before", record)]
    attempt = await lab.migrate({Phase.RESUME: target_unreachable}, children=1)
    attempt.failed(Phase.RESUME, errors.InDoubt, 71)
    assert attempt.victim.living == []
    lab.all_is_well()
    outcome = await lab.recover(attempt)
    assert outcome.pid in lab.target.restored()
    attempt.lives_on_target()


async def test_recover_after_restoring_failed_twice(lab: Lab) -> None:
    """The tree never ran and criu said so: what stood in the way is gone, so it is restored from the kept images."""
    lab.target.behave(restore=["ok", "fail", "ok"])
    attempt = await lab.migrate({Phase.RESUME: lambda: lab.target.kill_criu("restore")}, children=1)
    attempt.failed(Phase.RESUME, errors.NotResumed, 70)
    assert (await lab.recover(attempt)).host == "beta"
    attempt.lives_on_target()


async def test_recover_never_starts_a_tree_again_that_may_have_run(lab: Lab) -> None:
    lab.target.behave(restore=["fail-after-hold"])
    attempt = await lab.migrate()
    attempt.failed(Phase.RESUME, errors.NotResumed, 70)
    with pytest.raises(errors.NotResumed):
        await lab.recover(attempt)
    attempt.lives_nowhere()
    assert len(lab.target.calls("restore")) == 1


async def test_recover_waits_for_its_turn(lab: Lab) -> None:
    async def meanwhile() -> None:
        attempt_id = next(iter(lab.source.state.iterdir())).name
        with pytest.raises(errors.Locked):
            await recovery.recover_over(attempt_id, lab.links, Watcher({}))

    attempt = await lab.migrate({Phase.FREEZE: meanwhile})
    attempt.succeeded()
    attempt.lives_on_target()


async def test_recover_of_nothing(lab: Lab) -> None:
    with pytest.raises(errors.PreflightError):
        await recovery.recover_over("20260101-000000-abcdef", lab.links, Watcher({}))
