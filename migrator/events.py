"""What happens in a migration, as values: for `on_event` of the Python API (`api`), the log, and the command line.

Owns the events and the observer that makes them. Pure data; nothing here touches a host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TypeAlias

from migrator.phases import Observer, Phase, Report, Round


@dataclasses.dataclass(frozen=True)
class Started:
    """A migration begins; `id` is its name in the journals, and for `migrate recover`. A second attempt has another."""

    id: str


@dataclasses.dataclass(frozen=True)
class PhaseBegun:
    """It is about to enter a phase. From COMMIT on there is no way back."""

    phase: Phase


@dataclasses.dataclass(frozen=True)
class Noted:
    """A line that the operator should read; one of `detail` is a criu command, or a measurement."""

    text: str
    detail: bool = False


@dataclasses.dataclass(frozen=True)
class RoundBegun:
    """A round begins, the last one (`final`) in the freeze; `expected_bytes` is 0 where unknown."""

    number: int
    expected_bytes: int
    final: bool


@dataclasses.dataclass(frozen=True)
class Transferred:
    """So many bytes of this round have gone out since it began, counted before they are compressed."""

    bytes: int


@dataclasses.dataclass(frozen=True)
class RoundDone:
    """A round has arrived whole."""

    number: int
    result: Round
    final: bool


@dataclasses.dataclass(frozen=True)
class Ended:
    """It is over, well or not."""

    report: Report


Event: TypeAlias = Started | PhaseBegun | Noted | RoundBegun | Transferred | RoundDone | Ended
Listener: TypeAlias = Callable[[Event], None]


class Telling:
    """The observer (`phases.Observer`) that makes an event of whatever it is told, for any number of listeners."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def _tell(self, event: Event) -> None:
        for listener in self._listeners:
            listener(event)

    def started(self, migration: str) -> None:
        """As `Started`."""
        self._tell(Started(migration))

    async def phase(self, phase: Phase) -> None:
        """As `PhaseBegun`."""
        self._tell(PhaseBegun(phase))

    def note(self, text: str) -> None:
        """As `Noted`."""
        self._tell(Noted(text))

    def detail(self, text: str) -> None:
        """As `Noted`, a detail."""
        self._tell(Noted(text, detail=True))

    def round_started(self, number: int, expected_bytes: int, final: bool) -> None:
        """As `RoundBegun`."""
        self._tell(RoundBegun(number, expected_bytes, final))

    def transferred(self, sent_bytes: int) -> None:
        """As `Transferred`."""
        self._tell(Transferred(sent_bytes))

    def round_done(self, number: int, result: Round, final: bool) -> None:
        """As `RoundDone`."""
        self._tell(RoundDone(number, result, final))

    def report(self, report: Report) -> None:
        """As `Ended`."""
        self._tell(Ended(report))


class Both:
    """An observer in the place of two."""

    def __init__(self, first: Observer, second: Observer) -> None:
        self._both = (first, second)

    def started(self, migration: str) -> None:
        """To both."""
        for one in self._both:
            one.started(migration)

    async def phase(self, phase: Phase) -> None:
        """To both."""
        for one in self._both:
            await one.phase(phase)

    def note(self, text: str) -> None:
        """To both."""
        for one in self._both:
            one.note(text)

    def detail(self, text: str) -> None:
        """To both."""
        for one in self._both:
            one.detail(text)

    def round_started(self, number: int, expected_bytes: int, final: bool) -> None:
        """To both."""
        for one in self._both:
            one.round_started(number, expected_bytes, final)

    def transferred(self, sent_bytes: int) -> None:
        """To both."""
        for one in self._both:
            one.transferred(sent_bytes)

    def round_done(self, number: int, result: Round, final: bool) -> None:
        """To both."""
        for one in self._both:
            one.round_done(number, result, final)

    def report(self, report: Report) -> None:
        """To both."""
        for one in self._both:
            one.report(report)
