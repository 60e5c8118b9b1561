"""The loop of pre-copy, with a scripted controller and hosts that only say what they were asked."""

from __future__ import annotations

import time
from typing import Any

import pytest

from agent import protocol
from migrator import errors, precopy
from migrator.carrier import Streamed
from migrator.peer import PeerFault
from migrator.precopy import Action, Costs, Decision, Limits, OnNoConverge
from migrator.rounds import Rounds
from tests.migrator.test_migration import Watcher


class Hosts:
    """Both ends in one."""

    def __init__(self, fault: protocol.FaultCode | None = None) -> None:
        self.source = self.target = self
        self.asked: list[str] = []
        self.beside = 0
        self._fault = fault

    async def pre_dump(self, request: protocol.PreDump) -> protocol.Dumped:
        self.asked.append(f"pre-dump {request.round}")
        return protocol.Dumped(10, 40960, 0.1, 0.01)

    async def accept(self, request: protocol.Accept) -> protocol.Nothing:
        self.asked.append(f"accept {request.round}")
        return protocol.Nothing()

    async def accept_done(self, request: protocol.AcceptDone) -> protocol.Accepted:
        return protocol.Accepted(40960)

    async def throttle(self, request: protocol.Throttle) -> protocol.Throttled:
        self.asked.append(f"throttle {request.share}")
        if self._fault is not None:
            raise PeerFault("alpha", "throttle", protocol.Fault(self._fault, "no cgroups are mounted here"))
        return protocol.Throttled(request.share)


class Script:
    """A controller that says what it is told to say, and keeps what it was asked."""

    def __init__(self, *actions: Action) -> None:
        self._actions = list(actions)
        self.asked: list[tuple[int, OnNoConverge, tuple[int, ...]]] = []

    def __call__(self, rounds: Any, limits: Limits, costs: Costs, throttled: list[int]) -> Decision:
        self.asked.append((len(rounds), limits.on_no_converge, tuple(throttled)))
        return Decision(self._actions.pop(0), "so it goes", 0.25 * len(self.asked), 4096, False, 0.5)


def rounds_of(hosts: Hosts) -> tuple[Rounds, Watcher]:
    watcher = Watcher({})

    async def beside() -> None:
        hosts.beside += 1

    return Rounds(hosts, Streamed(hosts), watcher, beside, time.monotonic()), watcher  # type: ignore[arg-type]


async def test_rounds_until_it_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    hosts, script = Hosts(), Script(Action.AGAIN, Action.AGAIN, Action.FREEZE)
    monkeypatch.setattr(precopy, "decide", script)
    rounds, watcher = rounds_of(hosts)
    assert await rounds.precopy(Limits(), Costs()) == 3
    assert hosts.asked == ["pre-dump 1", "accept 2", "pre-dump 2", "accept 3"]
    assert hosts.beside == 2, "beside each round"
    assert watcher.rounds == rounds.done
    assert [done.bytes for done in rounds.done] == [40960, 40960]
    first, second = rounds.done
    assert 0 < first.started_seconds < second.started_seconds
    assert first.dirty_rate == 0, "nothing was watched before"
    assert second.dirty_rate == pytest.approx(40960 / (second.started_seconds - first.started_seconds))
    assert rounds.predicted_downtime == 0.75
    assert watcher.notes == ["freezing: so it goes"], "over the limit: that is said"


async def test_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precopy, "decide", Script(Action.AGAIN, Action.FAIL))
    rounds, _ = rounds_of(Hosts())
    with pytest.raises(errors.NotConverging, match="so it goes") as caught:
        await rounds.precopy(Limits(), Costs())
    assert caught.value.exit_code == 35
    assert "--max-downtime" in caught.value.hint


async def test_slowed_down_between_two_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(Action.AGAIN, Action.THROTTLE, Action.AGAIN, Action.THROTTLE, Action.FREEZE)
    monkeypatch.setattr(precopy, "decide", script)
    hosts = Hosts()
    rounds, watcher = rounds_of(hosts)
    assert await rounds.precopy(Limits(on_no_converge=OnNoConverge.THROTTLE), Costs()) == 3
    assert hosts.asked == ["pre-dump 1", "accept 2", "throttle 0.5", "pre-dump 2", "accept 3", "throttle 0.5"]
    assert [asked[2] for asked in script.asked] == [(), (), (1,), (1,), (1, 2)]
    assert "it has 50% of its processor time until the freeze: 0.50 processors" in watcher.notes


async def test_a_host_that_cannot_slow_it_down_says_so_and_it_is_frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    script = Script(Action.AGAIN, Action.THROTTLE, Action.FREEZE)
    monkeypatch.setattr(precopy, "decide", script)
    rounds, watcher = rounds_of(Hosts(protocol.FaultCode.THROTTLE))
    assert await rounds.precopy(Limits(on_no_converge=OnNoConverge.THROTTLE), Costs()) == 2
    assert "it can't be slowed down: no cgroups are mounted here" in watcher.notes
    assert script.asked[-1] == (1, OnNoConverge.FREEZE, ())


async def test_any_other_fault_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precopy, "decide", Script(Action.THROTTLE))
    rounds, _ = rounds_of(Hosts(protocol.FaultCode.NO_PROCESS))
    with pytest.raises(PeerFault):
        await rounds.precopy(Limits(on_no_converge=OnNoConverge.THROTTLE), Costs())
