"""What a drain does to hosts: each process of it is a migration as any other, and on its way back one with the hosts
exchanged: the agent that dumps is at the other end of SSH then, and the one that restores is here.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from agent import protocol
from migrator import bundle, channel, errors, history, hosts, migration, precopy, runbook, selection
from migrator.events import Telling
from migrator.local import LocalLink
from migrator.obstacle import Obstacle
from migrator.peer import Peer, PeerFault, PeerLost
from migrator.phases import Observer, Report

if TYPE_CHECKING:
    from migrator import transport


class Errands:
    """The real hosts. `order_of` makes of a command line what the engine is asked for."""

    def __init__(self, order_of: Callable[[argparse.Namespace], hosts.Order]) -> None:
        self._order_of = order_of
        self._history = history.of_user(os.environ, os.geteuid())
        self._connections = Connections()
        self.boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()

    async def close(self) -> None:
        """End the connections that were shared."""
        await self._connections.close()

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
        order = self._order(move, pid, target)
        _, obstacles = await migration.Migration(order, Telling(), OutboundLinks(order, self._connections)).check()
        return obstacles

    async def check_back(self, move: runbook.Move, pid: int, target: str) -> tuple[Obstacle, ...]:
        """The same of its way from there to here. Raises MigrateError."""
        _, obstacles = await migration.Migration(*self._inbound(move, pid, target, 0.0, Telling())).check()
        return obstacles

    async def move(self, move: runbook.Move, pid: int, target: str, max_downtime: float, observer: Observer) -> Report:
        """Move it. Raises MigrateError, or CancelledError after all was undone."""
        order = _within(self._order(move, pid, target), max_downtime)
        return await migration.move(order, observer, OutboundLinks(order, self._connections), self._history)

    async def bring_back(
        self, move: runbook.Move, pid: int, target: str, max_downtime: float, observer: Observer
    ) -> Report:
        """Move it from there to here. Raises as `move`."""
        return await migration.move(*self._inbound(move, pid, target, max_downtime, observer), self._history)

    def _inbound(
        self, move: runbook.Move, pid: int, target: str, max_downtime: float, observer: Observer
    ) -> tuple[hosts.Order, Observer, InboundLinks]:
        """What a migration from there to here is asked with. Raises UsageError."""
        order = _within(self._order(move, pid, target), max_downtime)
        if order.wishes.rsync or order.wishes.shared:
            raise errors.UsageError(f"{move.name}: what comes back comes as a stream, not by rsync")
        there = order.target
        # what comes in is not packed: that would be done here, after the way
        wishes = dataclasses.replace(order.wishes, compress="none")
        order = dataclasses.replace(order, target=channel.Target(socket.gethostname()), wishes=wishes)
        return order, observer, InboundLinks(order, there)

    def _order(self, move: runbook.Move, pid: int, target: str) -> hosts.Order:
        return self._order_of(runbook.options_of(move, target, pid))


class Connections:
    """SSH connections that migrations share, one a target: logging in costs more than what a small process takes."""

    def __init__(self) -> None:
        self._links: dict[tuple[object, ...], transport.SshLink] = {}
        self._lock = asyncio.Lock()

    async def to(self, order: hosts.Order, arguments: tuple[str, ...]) -> transport.SshLink:
        """One that stands, or a new one. Raises ConnectError and its kinds."""
        from migrator import transport  # late: loading SSH takes long

        key = (order.target, order.sudo, arguments)
        async with self._lock:
            link = self._links.get(key)
            if link is None or not link.stands:
                link = self._links[key] = await transport.connect(
                    order.target, sudo=order.sudo, agent_arguments=arguments
                )
            return link

    async def close(self) -> None:
        """End them all."""
        await asyncio.gather(*(link.close() for link in self._links.values()))


class OutboundLinks(hosts.RealLinks):
    """This host, and one over a connection that others use too."""

    def __init__(self, order: hosts.Order, connections: Connections) -> None:
        super().__init__(order)
        self._connections = connections

    async def target(self) -> channel.Link:
        """The connection that stands, or a new one."""
        return Borrowed(await self._connections.to(self._order, self._arguments))


class Borrowed:
    """A link whose connection stays when it is closed."""

    def __init__(self, link: transport.SshLink) -> None:
        self.name = link.name
        self._link = link
        self._channels: list[channel.Channel] = []

    async def start_agent(self, role: str) -> channel.Channel:
        """As the link's."""
        return self._kept(await self._link.start_agent(role))

    async def open_stream(self, socket: str, name: str, form: str = "plain") -> channel.Channel:
        """As the link's, memory too: a connection of its own is not worth its start."""
        return self._kept(await self._link.open_stream(socket, name, form, own=False))

    def _kept(self, opened: channel.Channel) -> channel.Channel:
        self._channels.append(opened)
        return opened

    async def close(self) -> None:
        """Close what was opened here."""
        await asyncio.gather(*(each.close() for each in self._channels))


class InboundLinks:
    """A host over SSH as the source, and this one as the target."""

    def __init__(self, order: hosts.Order, there: channel.Target) -> None:
        channel.keep_memory()
        channel.no_core_dumps()
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


def _within(order: hosts.Order, max_downtime: float) -> hosts.Order:
    """The order with no more downtime than that; one that can't keep to it stays where it is."""
    if not max_downtime or order.limits.max_downtime <= max_downtime:
        return order
    limits = dataclasses.replace(order.limits, max_downtime=max_downtime, on_no_converge=precopy.OnNoConverge.FAIL)
    return dataclasses.replace(order, limits=limits)
