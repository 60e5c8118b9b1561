"""What a drain does to hosts: each process of it is a migration as any other, and on its way back one with the hosts
exchanged: the agent that dumps is at the other end of SSH then, and the one that restores is here.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import socket
from collections.abc import Callable
from pathlib import Path

from agent import protocol
from migrator import bundle, channel, errors, history, hosts, migration, precopy, runbook, selection
from migrator.local import LocalLink
from migrator.obstacle import Obstacle
from migrator.peer import Peer, PeerFault, PeerLost
from migrator.phases import Observer, Phase, Report, Round


class Errands:
    """The real hosts. `order_of` makes of a command line what the engine is asked for."""

    def __init__(self, order_of: Callable[[argparse.Namespace], hosts.Order]) -> None:
        self._order_of = order_of
        self._history = history.of_user(os.environ, os.geteuid())
        self.boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    def find(self, wanted: runbook.Selection) -> tuple[selection.Found, ...]:
        """Raises NotFound."""
        return selection.find(wanted)

    async def free_memory(self, target: str) -> int:
        """Bytes that processes there can take. Raises MigrateError."""
        from migrator import transport  # late: loading SSH takes long

        link = await transport.connect(channel.parse_target(target))
        try:
            peer = Peer(link.name, await link.start_agent("target"))
            try:
                await peer.hello(bundle.build_id())
                return (await peer.probe(protocol.Probe())).memory_available
            finally:
                await peer.close()
        except (PeerFault, PeerLost) as error:
            raise errors.ConnectError(str(error)) from error
        finally:
            await link.close()

    async def check(self, move: runbook.Move, pid: int, target: str) -> tuple[Obstacle, ...]:
        """Everything that stands in its way there. Raises MigrateError."""
        _, obstacles = await migration.check(self._order(move, pid, target), Silent())
        return obstacles

    async def move(self, move: runbook.Move, pid: int, target: str, max_downtime: float, observer: Observer) -> Report:
        """Move it. Raises MigrateError, or CancelledError after all was undone."""
        order = _within(self._order(move, pid, target), max_downtime)
        return await migration.move(order, observer, hosts.RealLinks(order), self._history)

    async def bring_back(
        self, move: runbook.Move, pid: int, target: str, max_downtime: float, observer: Observer
    ) -> Report:
        """Move it from there to here. Raises as `move`."""
        order = _within(self._order(move, pid, target), max_downtime)
        if order.wishes.rsync or order.wishes.shared:
            raise errors.UsageError(
                f"{move.name}: what comes back comes as a stream, not by rsync or a shared directory"
            )
        there = order.target
        # what comes in is not packed: that would be done here, after the way
        wishes = dataclasses.replace(order.wishes, compress="none")
        order = dataclasses.replace(order, target=channel.Target(socket.gethostname()), wishes=wishes)
        return await migration.move(order, observer, InboundLinks(order, there), self._history)

    def _order(self, move: runbook.Move, pid: int, target: str) -> hosts.Order:
        return self._order_of(runbook.options_of(move, target, pid))


class InboundLinks:
    """A host over SSH as the source, and this one as the target."""

    def __init__(self, order: hosts.Order, there: channel.Target) -> None:
        channel.keep_memory()
        self._order = order
        self._there = there
        self._arguments = ("--criu", order.criu) if order.criu else ()

    async def source(self) -> channel.Link:
        """A new SSH connection."""
        from migrator import transport  # late: as in hosts.RealLinks

        return await transport.connect(self._there, sudo=self._order.sudo, agent_arguments=self._arguments)

    async def target(self) -> channel.Link:
        """The local agent."""
        return LocalLink(agent_arguments=self._arguments)


class Silent:
    """An observer that looks away."""

    async def phase(self, phase: Phase) -> None:
        """Nothing."""

    def note(self, text: str) -> None:
        """Nothing."""

    def detail(self, text: str) -> None:
        """Nothing."""

    def round_started(self, number: int, expected_bytes: int, final: bool) -> None:
        """Nothing."""

    def transferred(self, sent_bytes: int) -> None:
        """Nothing."""

    def round_done(self, number: int, result: Round, final: bool) -> None:
        """Nothing."""

    def report(self, report: Report) -> None:
        """Nothing."""


def _within(order: hosts.Order, max_downtime: float) -> hosts.Order:
    """The order with no more downtime than that; one that can't keep to it stays where it is."""
    if not max_downtime or order.limits.max_downtime <= max_downtime:
        return order
    limits = dataclasses.replace(order.limits, max_downtime=max_downtime, on_no_converge=precopy.OnNoConverge.FAIL)
    return dataclasses.replace(order, limits=limits)
