"""`migrate status`: what runs, what is held and what is left over, here and on the other host. It changes nothing.

Asks agents, and says plainly which host it could not ask. What follows from two journals is `recovery`'s to say, how it
is shown `status_words`'s.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable
from typing import TypeVar

from agent import protocol
from migrator import errors
from migrator.peer import PeerFault, PeerLost
from migrator.recovery import Course, Hosts, agent_at, course

T = TypeVar("T")

SECONDS = 10.0
"""For so long the other host may take to let us in: who asks how things are does not wait."""


@dataclasses.dataclass(frozen=True)
class HostRemains:
    """What one host has of ours."""

    host: str
    items: tuple[protocol.Remain, ...]

    @property
    def left(self) -> int:
        """How many of them nobody is at work on."""
        return sum(not item.in_use for item in self.items)


@dataclasses.dataclass(frozen=True)
class Told:
    """One migration at length: what each host says of it."""

    migration: str
    here: str
    stories: tuple[tuple[str, protocol.Story], ...]
    """(host, its story), ours first; the other one's where it could be asked."""
    other: str
    """What our journal calls the other host."""
    failure: errors.MigrateError | None
    """Why the other host could not be asked."""

    def of(self, role: str) -> protocol.Story | None:
        """The story of the host that has this role in it."""
        return next((story for _, story in self.stories if story.state.role == role), None)

    @property
    def follows(self) -> str:
        """The one command to type; "" where nothing is to be done."""
        if any(story.at_work for _, story in self.stories):
            committed = (source := self.of("source")) is not None and "COMMIT" in source.state.records
            return "" if committed or self.of("source") is None else f"migrate abort {self.migration}"
        source, target = self.of("source"), self.of("target")
        if source is not None:
            return "" if _settled(source.state, target, self.failure) else f"migrate recover {self.migration}"
        over = target is None or "DONE" in target.state.records
        return "" if over else f"migrate recover {self.migration}"


def _settled(source: protocol.JournalState, target: protocol.Story | None, failure: errors.MigrateError | None) -> bool:
    """Whether nothing is to be done; with a target that can't be asked, as far as the source's journal tells."""
    if failure is not None or source.ice:
        return "DONE" in source.records
    return course(source, target.state if target is not None else None) is Course.NOTHING


@dataclasses.dataclass(frozen=True)
class Listing:
    """The migrations of one host."""

    host: str
    unfinished: tuple[protocol.Listed, ...]
    finished: tuple[protocol.Listed, ...]
    """The newest of them."""


@dataclasses.dataclass(frozen=True)
class Listings:
    """Those of this host, and of the one that the operator has named."""

    hosts: tuple[Listing, ...]
    failure: errors.MigrateError | None


async def remains_here(hosts: Hosts) -> HostRemains:
    """Everything of ours on this host. Raises ConnectError and its kinds."""
    async with agent_at(await hosts.here(), "source") as own:
        return HostRemains(own.host, (await _asked(own.remains())).items)


async def remains_there(hosts: Hosts) -> HostRemains:
    """The same on the host that the operator has named. Raises ConnectError and its kinds."""
    async with agent_at(await hosts.there(""), "target") as other:
        return HostRemains(other.host, (await _asked(other.remains())).items)


async def migrations(hosts: Hosts, *, named: bool, newest: int) -> Listings:
    """What is not finished, and the newest that are; here, and there where the operator has `named` a host.

    Raises ConnectError and its kinds where we can't even look here.
    """
    async with agent_at(await hosts.here(), "source") as own:
        found = [_listing(own.host, (await _asked(own.migrations())).items, newest)]
    if not named:
        return Listings(tuple(found), None)
    try:
        async with agent_at(await hosts.there(""), "target") as other:
            found.append(_listing(other.host, (await _asked(other.migrations())).items, newest))
    except errors.MigrateError as error:
        return Listings(tuple(found), error)
    return Listings(tuple(found), None)


def _listing(host: str, known: tuple[protocol.Listed, ...], newest: int) -> Listing:
    unfinished = tuple(one for one in known if "DONE" not in one.records)
    return Listing(host, unfinished, tuple(one for one in known if "DONE" in one.records)[:newest])


async def story(migration: str, hosts: Hosts) -> Told:
    """One migration at length, from both hosts where they can be asked.

    Raises PreflightError where neither knows of it, ConnectError and its kinds where we can't even look here.
    """
    request = protocol.ReadJournal(migration)
    async with agent_at(await hosts.here(), "source") as own:
        host, ours = own.host, await _asked(own.story(request))
    stories, failure = [(host, ours)], None
    try:
        if ours.state.ice:  # there is no other host
            return Told(migration, host, tuple(stories), ours.state.peer, None)
        async with agent_at(await hosts.there(ours.state.peer, ours.state.address), "target") as other:
            theirs = await _asked(other.story(request))
            if theirs.state.role:
                stories.append((other.host, theirs))
    except errors.MigrateError as error:
        failure = error
    known = tuple(one for one in stories if one[1].state.role)
    if not known:
        raise errors.PreflightError(
            f"{host} has no journal of a migration {migration}" + (f"; {failure.message}" if failure else ""),
            hint="`migrate status` lists them; the journals lie in /var/lib/migrate",
        )
    return Told(migration, host, known, ours.state.peer, failure)


async def _asked(question: Awaitable[T]) -> T:
    """The answer to a question that changes nothing. Raises ConnectError."""
    try:
        return await question
    except (PeerFault, PeerLost) as error:
        raise errors.ConnectError(str(error)) from error
