"""The rounds of one migration: pre-copy while the tree runs, and the account of what each round carried.

Owns the loop of pre-copy and the figures of every round, the final dump's among them. What comes after a round is
decided by `precopy`; the freeze and all that follows it are `migration`'s.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Awaitable, Callable

from agent import protocol
from migrator import errors, precopy
from migrator.carrier import Carrier
from migrator.hosts import Ends
from migrator.peer import PeerFault
from migrator.phases import Observer, Round
from migrator.together import both

_ADVICE = "allow more with --max-downtime, try when it is less busy, or move it all the same: --on-no-converge freeze"


class Rounds:
    """What has been carried so far, and the means to carry more."""

    def __init__(
        self, ends: Ends, carrier: Carrier, observer: Observer, beside: Callable[[], Awaitable[None]], began: float
    ) -> None:
        """`beside` is done beside each round of pre-copy; the migration `began` then, by `time.monotonic()`."""
        self.done: list[Round] = []
        self.wire_bytes = 0
        """Bytes that went over the link, of rounds and of everything else."""
        self._ends = ends
        self._carrier = carrier
        self._observer = observer
        self._beside = beside
        self._wire_bytes_before = 0  # when this round began
        self._came = 0  # since then
        self._began = self._started = began
        self._tracked_for = 0.0  # seconds in which what this round carries was written
        self.predicted_downtime = 0.0
        """Seconds, as the controller saw it when it decided to freeze."""

    def came(self, size: int) -> None:
        """So many bytes came from the source, before they are compressed."""
        self._came += size
        self._observer.transferred(self._came)

    def went(self, size: int) -> None:
        """So many bytes went over the link."""
        self.wire_bytes += size

    def begin(self, number: int, expected: int, *, final: bool) -> None:
        """A round begins, which is expected to carry so many bytes."""
        self._wire_bytes_before = self.wire_bytes
        self._came = 0
        now = time.monotonic()  # criu looks for dirty pages, and has them tracked anew, at the beginning of a round
        self._tracked_for, self._started = now - self._started if self.done else 0.0, now
        self._observer.round_started(number, expected, final)

    def end(
        self, number: int, pages: int, size: int, seconds: float, frozen: float, *, final: bool, disk: float = 0.0
    ) -> None:
        """A round has arrived whole. Sizes in bytes; `disk`: seconds of `seconds`, until it was on the target's."""
        dirty_rate = size / self._tracked_for if self._tracked_for else 0.0
        wire_bytes = self.wire_bytes - self._wire_bytes_before
        done = Round(pages, size, wire_bytes, seconds, frozen, self._started - self._began, dirty_rate, disk)
        self.done.append(done)
        self._observer.round_done(number, done, final)

    async def precopy(self, limits: precopy.Limits, costs: precopy.Costs) -> int:
        """Rounds while the tree runs, until the controller says freeze. Returns the final dump's number.

        Raises NotConverging where the operator would rather have it stay than be frozen for longer than the limit.
        """
        number = 1
        throttled: list[int] = []
        while True:
            decision = precopy.decide(self.done, limits, costs, throttled)
            self.predicted_downtime = decision.predicted_downtime
            if decision.action is precopy.Action.FREEZE:
                tell = self._observer.detail if decision.within_limit else self._observer.note
                tell(f"freezing: {decision.reason}")
                return number
            if decision.action is precopy.Action.FAIL:
                raise errors.NotConverging(decision.reason, hint=_ADVICE)
            if decision.action is precopy.Action.THROTTLE:
                self._observer.note(f"slowing it down: {decision.reason}")
                if await self._slow_down(decision.share):
                    throttled.append(len(self.done))
                else:
                    limits = dataclasses.replace(limits, on_no_converge=precopy.OnNoConverge.FREEZE)
                continue
            self.begin(number, decision.predicted_bytes, final=False)
            started = time.monotonic()
            (dumped, accepted), _ = await both(self._carrier.round(number), self._beside())
            seconds = time.monotonic() - started
            # what criu found dirty may have come unchanged, and then it was not sent
            pages = dumped.pages * accepted.bytes // dumped.bytes if dumped.bytes else 0
            self.end(
                number, pages, accepted.bytes, seconds, dumped.frozen_seconds, final=False, disk=accepted.disk_seconds
            )
            number += 1
            await self._carrier.expect(number)

    async def _slow_down(self, share: float) -> bool:
        """Leave the tree this share of the processor time that it took. False where its host can't do that."""
        try:
            limit = await self._ends.source.throttle(protocol.Throttle(share))
        except PeerFault as fault:
            if fault.fault.code is not protocol.FaultCode.THROTTLE:
                raise
            self._observer.note(f"it can't be slowed down: {fault.fault.message}")
            return False
        self._observer.note(
            f"it has {share:.0%} of its processor time until the freeze: {limit.processors:.2f} processors"
        )
        return True
