"""A service's unit, whatever dies: suspended while its tree may be killed, never revived, and as it was afterwards."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from agent.protocol import TreeFacts
from migrator import errors, plan, units
from migrator.phases import Phase
from tests.fake_hosts import Pair, eventually
from tests.fake_systemd import UNIT, FakeSystemd
from tests.migrator.test_migration import PHASES, Attempt, Cue, Lab


class UnitLab(Lab):
    """The victim is the main process of x.service."""

    def __init__(self, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
        super().__init__(pair, monkeypatch)
        self.systemd = FakeSystemd(pair.directory / "systemd")
        constants: dict[str, Any] = {**self.systemd.constants}
        self.source.constants = constants

    def _plan(self, tree: TreeFacts) -> plan.Plan:
        self.systemd.runs(tree.root)
        return dataclasses.replace(super()._plan(tree), systemd=units.Systemd(suspended=UNIT))

    def unit_is_right(self) -> None:
        """As it was, and no second process was ever started."""
        assert not self.systemd.revived
        assert self.systemd.as_it_was

    async def settled(self, attempt: Attempt) -> None:
        """Whatever is left to be settled is."""
        self.all_is_well()
        outcome = await self.recover(attempt)
        assert outcome.course is not None
        self.unit_is_right()


@pytest.fixture
def lab(pair: Pair, monkeypatch: pytest.MonkeyPatch) -> UnitLab:
    return UnitLab(pair, monkeypatch)


async def test_a_service_moves(lab: UnitLab) -> None:
    suspended: list[bool] = []
    cues: dict[Phase, Cue] = {phase: lambda: suspended.append(lab.systemd.suspended) for phase in PHASES}
    attempt = await lab.migrate(cues, children=1)
    attempt.succeeded()
    attempt.lives_on_target()
    lab.unit_is_right()
    assert dict(zip(PHASES, suspended, strict=True)) == {
        phase: phase not in (Phase.CONNECT, Phase.PREFLIGHT) for phase in PHASES
    }


@pytest.mark.parametrize("phase", [Phase.PRECOPY, Phase.FREEZE, Phase.RESTORE, Phase.COMMIT])
@pytest.mark.parametrize("way", ["signal", "source_agent_dies", "target_agent_dies", "link_drops"])
async def test_however_it_is_cut_off_the_unit_is_as_it_was(lab: UnitLab, phase: Phase, way: str) -> None:
    attempt = await lab.migrate({phase: getattr(lab, way)})
    if phase is Phase.COMMIT and way in ("target_agent_dies", "link_drops"):
        attempt.lives_on_target()  # COMMIT is the source's alone
    else:
        assert attempt.error is not None
        attempt.lives_on_source()
    lab.unit_is_right()


@pytest.mark.parametrize("when", ["before", "after"])
@pytest.mark.parametrize("record", ["unit", "FROZEN", "COMMIT", "KILLED", "unit-back", "DONE"])
async def test_an_agent_that_is_killed_at_any_record(lab: UnitLab, when: str, record: str) -> None:
    """Another one takes its place at once, by the journal."""
    lab.source.deaths = [(when, record)]
    attempt = await lab.migrate()
    lab.unit_is_right()
    if attempt.error is None:
        attempt.lives_on_target()
    else:
        attempt.lives_on_source()


@pytest.mark.parametrize("record", ["unit", "FROZEN", "COMMIT", "KILLED", "unit-back"])
async def test_agent_and_migrate_killed_at_any_record(lab: UnitLab, record: str) -> None:
    """Nobody is there to settle it, until `migrate recover`."""

    def lost() -> None:
        lab.links.unreachable.add("target")
        lab.source.starts_no_agent = True

    lab.source.deaths = [("after", record)]
    attempt = await lab.migrate({Phase.PRECOPY: lost} if record != "unit" else {Phase.PREFLIGHT: lost})
    eventually(lambda: not any(call.alive for call in lab.source.calls()), "criu leaves")
    assert not lab.systemd.revived
    await lab.settled(attempt)
    assert (attempt.victim.living == []) is (lab.target.running() != [])


async def test_a_unit_that_can_not_be_suspended_stays(lab: UnitLab) -> None:
    lab.systemd.will("outdone")
    attempt = await lab.migrate()
    assert isinstance(attempt.error, errors.CopyError)
    assert "systemctl cat x.service" in attempt.error.message
    attempt.lives_on_source()
    lab.unit_is_right()


async def test_a_rehearsal_leaves_the_unit_as_it_was(lab: UnitLab) -> None:
    lab.rehearsal = True
    attempt = await lab.migrate()
    assert attempt.error is None
    assert attempt.victim.runs
    lab.unit_is_right()
